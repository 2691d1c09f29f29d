"""Videos: every pixel of the panel by its formula, each value estimate beside its own picture, files read back."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageSequence
from torch import Tensor

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.atari import atari_games
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import action_names, make_envs
from bayes_rl.envs.shared_spaces import task_settings
from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.evaluation.rendering import render_game
from bayes_rl.evaluation.video import (
    CHOSEN,
    GREY,
    PANEL_WIDTH,
    SPREAD,
    WHITE,
    Panel,
    frames_with_panel,
    play_in_window,
    write_video,
)
from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.training.callbacks.video_writer import VideoWriter
from bayes_rl.types import ValueEstimate
from tests.helpers.agents import make_trainer
from tests.helpers.playing import hashed

Picture = NDArray[np.uint8]

PLAIN = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0)
BRICKS = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.1, max_episode_frames=30)
TOP = 30  # rows above the first bar
TEXT = 19  # rows of the head line, above the gauge of the spread
EIGHTEEN = (
    *("noop", "fire", "up", "right", "left", "down", "upright", "upleft", "downright", "downleft", "upfire"),
    *("rightfire", "leftfire", "downfire", "uprightfire", "upleftfire", "downrightfire", "downleftfire"),
)


def estimate(mean: Sequence[float], std: Sequence[float]) -> ValueEstimate:
    """Of one state. The noise is far greater than anything that may be drawn."""
    q_mean, q_std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
    return ValueEstimate(q_mean, q_std, q_std + 1000, q_mean.amax())


def random_estimates(seed: int, num_actions: int, count: int, shift: float = 0.0) -> list[ValueEstimate]:
    rng = np.random.default_rng(seed)
    means = rng.normal(shift, 5, (count, num_actions))
    stds = rng.uniform(0.1, 4, (count, num_actions))
    return [estimate(mean.tolist(), std.tolist()) for mean, std in zip(means, stds, strict=True)]


# ---------------------------------------------------------------------------------------------- the panel, by hand
def column_of(names: Sequence[str], estimates: list[ValueEstimate]) -> Callable[[float], float]:
    """Where a value belongs: the range of the whole game, zero included, lies between the names (8 pixels and 6 for
    each letter of the longest) and 8 pixels from the edge.
    """
    lows = [float(m) - float(s) for j in estimates for m, s in zip(j.q_mean, j.q_std, strict=True)]
    highs = [float(m) + float(s) for j in estimates for m, s in zip(j.q_mean, j.q_std, strict=True)]
    low, high = min([0.0, *lows]), max([0.0, *highs])
    left, right = 8 + 6 * max(map(len, names)), PANEL_WIDTH - 8
    return lambda value: left + (right - left) * (value - low) / (high - low) if high > low else left


def band_of(picture: Picture, index: int, num_actions: int) -> tuple[Picture, int]:
    """The rows of an action, and the number of the first one; the last row belongs to the next action, if there is."""
    row = (len(picture) - TOP) / num_actions
    start = int(TOP + row * index)
    return picture[start : int(TOP + row * (index + 1))], start


def found(picture: Picture, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """First and last row, first and last column of a colour."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    assert len(rows), f"nothing is drawn in {colour}"
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def check_panel(names: Sequence[str], estimates: list[ValueEstimate], height: int, state: int, action: int) -> None:
    """Every bar and every line where the formula says, to the pixel that contains it."""
    drawn = Panel(list(names), estimates, height).draw(estimates[state], action)
    assert drawn.shape == (height, PANEL_WIDTH, 3)
    assert drawn.dtype == np.uint8
    x, row = column_of(names, estimates), (height - TOP) / len(names)
    bars = drawn.copy()
    bars[:, : 8 + 6 * max(map(len, names))] = 0  # names are text, in grey too
    thicknesses = []
    for index in range(len(names)):
        band, start = band_of(bars, index, len(names))
        mean, std = float(estimates[state].q_mean[index]), float(estimates[state].q_std[index])
        mine, other = (CHOSEN, GREY) if index == action else (GREY, CHOSEN)
        assert not (band == other).all(-1).any(), "the colour of another"
        top, bottom, left, right = found(band, mine)
        assert abs(left - min(x(0), x(mean))) <= 1
        assert abs(right - max(x(0), x(mean))) <= 1
        thicknesses.append(bottom - top)
        middle = TOP + row * (index + 0.5)
        assert abs(start + (top + bottom) / 2 - middle) <= 1
        top, bottom, left, right = found(band, SPREAD)
        assert abs(left - x(mean - std)) <= 1
        assert abs(right - x(mean + std)) <= 1
        assert bottom - top <= 2, "a line is thin"
        assert abs(start + (top + bottom) / 2 - middle) <= 1.5
    assert max(thicknesses) - min(thicknesses) <= 1, "bars of unequal heights"
    assert 3 <= min(thicknesses) <= min(10, 0.7 * row) + 1


@pytest.mark.parametrize("shift", [-40.0, 0.0, 40.0], ids=["negative", "mixed", "positive"])
@pytest.mark.parametrize("num_actions", [2, 3, 6, 18])
@pytest.mark.parametrize("height", [160, 210, 400])
def test_bars_and_lines_are_where_the_formula_says(num_actions: int, height: int, shift: float) -> None:
    names = EIGHTEEN[:num_actions]
    estimates = random_estimates(num_actions, num_actions, 3, shift)
    for state in range(3):
        check_panel(names, estimates, height, state, (height + state) % num_actions)


def test_the_scale_is_that_of_the_whole_game_and_holds_zero_and_every_spread() -> None:
    names = ["a", "b"]
    quiet, high, low = estimate([1, 2], [0.5, 0.1]), estimate([3, 8], [1, 2]), estimate([-3, 1], [2, 0])
    for others, bounds in (
        ([], (0, 2.1)),
        ([high], (0, 10)),
        ([low], (-5, 2.1)),
        ([high, low], (-5, 10)),
        ([low, high], (-5, 10)),
    ):
        panel = Panel(names, [quiet, *others], 200)
        assert (panel.low, panel.high) == pytest.approx(bounds)
    below = Panel(names, [estimate([-3, -2], [1, 0.5])], 200)
    assert (below.low, below.high) == pytest.approx((-4, 0), abs=1e-5)


def test_bars_of_good_and_bad_actions_part_at_one_column() -> None:
    """All bars of a game touch the column of zero; by hand: label 14, 178 pixels for [-1, 3]."""
    estimates = [estimate([2, -0.5], [1, 0.5]), estimate([0.5, 1], [0.25, 0])]
    zero = 14 + 178 / 4
    panel = Panel(["0", "1"], estimates, 120)
    first, second = panel.draw(estimates[0], 0), panel.draw(estimates[1], 1)
    assert found(first, CHOSEN)[2:] == pytest.approx((zero, 14 + 178 * 0.75), abs=1)
    assert found(first[70:, 14:], GREY)[2:] == pytest.approx((178 * 0.125, zero - 14), abs=1)
    assert found(first[TOP:70], SPREAD)[2:] == pytest.approx((14 + 178 * 0.5, 192), abs=1)
    assert found(first[70:], SPREAD)[2:] == pytest.approx((14, zero), abs=1)
    assert found(second, CHOSEN)[2:] == pytest.approx((zero, 14 + 178 * 0.5), abs=1)
    assert found(second[TOP:70, 14:], GREY)[2:] == pytest.approx((zero - 14, 178 * 0.375), abs=1)


@pytest.mark.parametrize("num_actions", [2, 18])
def test_an_agent_that_expects_nothing_has_bars_without_length(num_actions: int) -> None:
    names, nothing = EIGHTEEN[:num_actions], estimate([0] * num_actions, [0] * num_actions)
    check_panel(names, [nothing], 210, 0, 1)


def test_the_head_line_shows_the_estimate_of_the_chosen_action() -> None:
    one = estimate([1.25, -31.5, 7], [0.5, 2.25, 1])
    panel = Panel(["a", "b", "c"], [one], 210)
    for action, text in enumerate(["Q 1.25 +- 0.50", "Q -31.50 +- 2.25", "Q 7.00 +- 1.00"]):
        assert np.array_equal(panel.draw(one, action)[:TEXT], head_line(text))


def head_line(text: str) -> Picture:
    image = Image.new("RGB", (PANEL_WIDTH, TEXT))
    ImageDraw.Draw(image).text((4, 2), text, fill=WHITE)
    return np.asarray(image)


def test_a_gauge_shows_the_spread_of_the_chosen_action_relative_to_the_greatest_of_the_game() -> None:
    """The gauge has 186 columns from column 5 on, in the rows 20 to 24. Its scale is not that of Q."""
    one, other = estimate([1000, 2000], [0.5, 0.25]), estimate([1000, 2000], [0.0, 2.0])
    panel = Panel(["a", "b"], [one, other], 210)
    for state, action, share in ((one, 0, 0.25), (one, 1, 0.125), (other, 1, 1.0)):
        columns = round(186 * share)
        assert found(panel.draw(state, action)[:TOP], SPREAD) == (20, 24, 5, 4 + columns)
    assert not (panel.draw(other, 0)[:TOP] == SPREAD).all(-1).any()
    assert found(panel.draw(other, 0)[TEXT:TOP], GREY) == (0, 6, 4, 192)  # the outline


def test_each_action_has_its_name_beside_its_bar_the_chosen_one_in_white() -> None:
    names, height = ["noop", "left", "upfire"], TOP + 3 * 24
    one = estimate([1, 2, 3], [0.1, 0.1, 0.1])
    for action in range(3):
        drawn = Panel(names, [one], height).draw(one, action)
        wanted = Image.new("RGB", (PANEL_WIDTH, height))
        for index, name in enumerate(names):
            colour = WHITE if index == action else GREY
            ImageDraw.Draw(wanted).text((4, TOP + 12 + 24 * index - 6), name, fill=colour)
        label = 8 + 6 * len("upfire")
        assert np.array_equal(drawn[TOP:, :label], np.asarray(wanted)[TOP:, :label])


# ------------------------------------------------------------------------------------------- pictures and estimates
def squares(count: int, height: int = 120, width: int = 90) -> list[Picture]:
    """Different pictures of few colours: a square that moves over a checked ground."""
    ground = np.indices((height, width)).sum(0) // 10 % 2
    drawn = []
    for step in range(count):
        picture = np.array([(30, 60, 90), (200, 140, 20)], np.uint8)[ground]
        picture[5 * step : 5 * step + 20, 10:30] = (255 - 7 * step, 3 * step, 11 * step)
        drawn.append(picture)
    return drawn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """What every game looks like: the list may be changed."""
    screens = squares(6)

    def looks(settings: EnvSettings, game: Game) -> Iterator[Picture]:
        yield from screens

    monkeypatch.setattr("bayes_rl.evaluation.video.render_game", looks)
    return screens


def test_a_game_without_estimates_is_shown_without_a_panel(drawn: list[Picture]) -> None:
    shown = list(frames_with_panel(PLAIN, Game(1, actions=[0, 1, 1, 0, 1])))
    assert len(shown) == 6
    assert all(np.array_equal(a, b) for a, b in zip(shown, drawn, strict=True))


def test_a_game_with_estimates_of_some_states_is_shown_without_a_panel(drawn: list[Picture]) -> None:
    game = Game(1, actions=[0, 1, 1, 0, 1], estimates=random_estimates(0, 2, 2))
    assert all(np.array_equal(a, b) for a, b in zip(frames_with_panel(PLAIN, game), drawn, strict=True))


def test_beside_each_picture_stands_the_estimate_of_that_state_and_the_last_one_twice(drawn: list[Picture]) -> None:
    actions, estimates = [0, 1, 1, 0, 1], random_estimates(3, 2, 5)
    shown = list(frames_with_panel(PLAIN, Game(1, actions=actions, estimates=estimates)))
    assert len(shown) == len(actions) + 1
    panel = Panel(["0", "1"], estimates, 120)
    wanted = [panel.draw(j, a) for j, a in zip(estimates, actions, strict=True)]
    assert len({w.tobytes() for w in wanted}) == 5
    for picture, screen, expected in zip(shown, drawn, [*wanted, wanted[-1]], strict=True):
        assert picture.shape == (120, 90 + PANEL_WIDTH, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture[:, :90], screen)
        assert np.array_equal(picture[:, 90:], expected)


def code(occupied: Tensor) -> Tensor:
    """A number that encodes which of 10 x 10 cells are occupied, `[E, 10, 10]` to `[E]`; hundredths."""
    return (occupied.flatten(1) * torch.arange(1, 101)).sum(1) / 100


def test_the_estimate_of_a_state_in_a_real_game_stands_beside_that_state() -> None:
    """The Q-value encodes which cells of the screen are occupied: the head line agrees with its own picture."""
    pytest.importorskip("minatar")

    def estimator(observations: Tensor) -> ValueEstimate:
        q_mean = code((observations != 0).any(1))[:, None] + 100 * torch.arange(3)
        return ValueEstimate(q_mean, q_mean * 0 + 0.5, q_mean, q_mean.amax(-1))

    (game,) = Games(BRICKS, [3], 1, 0, estimate_every=1).play(hashed(3), estimator)
    shown = list(frames_with_panel(BRICKS, game))
    assert len(shown) == len(game.actions) + 1
    assert len({p[:TEXT, 160:].tobytes() for p in shown}) > len(shown) // 2
    assert len(set(game.actions)) > 1
    for picture, action in zip(shown, game.actions, strict=False):
        state = float(code(torch.from_numpy(picture[::16, :160:16].any(-1))[None])[0])
        assert np.array_equal(picture[:TEXT, 160:], head_line(f"Q {state + 100 * action:.2f} +- 0.50"))
    assert np.array_equal(shown[-1][:, 160:], shown[-2][:, 160:])


# ------------------------------------------------------------------------------------------------- names of actions
@pytest.mark.parametrize(
    ("env", "full"),
    [
        *[("breakout", False), ("ALE/Breakout-v5", False), ("space_invaders", False), ("skiing", False)],
        *[("boxing", False), ("breakout", True)],  # all 18, because the game knows them or because they are asked for
    ],
)
def test_atari_actions_have_the_names_that_the_emulator_gives_them(env: str, full: bool) -> None:
    settings = EnvSettings(env, full_action_space=full)
    envs = make_envs(settings, 1)
    number = envs.num_actions
    envs.close()
    rom = atari_games()[env]
    official = "".join(word.title() for word in rom.split("_"))
    one = gym.make(f"ALE/{official}-v5", full_action_space=full)
    meanings = one.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    one.close()
    played = AtariVectorEnv(rom, 1, full_action_space=full)
    vector = [action.name for action in played.ale.get_action_set()]
    played.close()
    names = action_names(settings, number)
    assert names == [meaning.lower() for meaning in meanings] == [name.lower() for name in vector]
    assert len(names) == number


def test_atari_names_by_hand() -> None:
    assert action_names(EnvSettings("breakout"), 4) == ["noop", "fire", "right", "left"]
    assert action_names(EnvSettings("breakout", full_action_space=True), 18) == list(EIGHTEEN)


def test_actions_that_nobody_named_are_numbers() -> None:
    assert action_names(PLAIN, 2) == ["0", "1"]
    assert action_names(EnvSettings("bayes_rl/DeepSea-v0"), 2) == ["0", "1"]


def test_actions_that_several_games_share_are_numbers() -> None:
    pytest.importorskip("minatar")
    for settings in task_settings(BRICKS, ["MinAtar/Breakout-v1", "MinAtar/SpaceInvaders-v1"]):
        assert action_names(settings, len(settings.action_map)) == ["0", "1", "2", "3"]


# -------------------------------------------------------------------------------------------------------- the file
@pytest.fixture
def gif(monkeypatch: pytest.MonkeyPatch) -> None:
    """moviepy is not installed."""
    monkeypatch.setitem(sys.modules, "moviepy", None)


def read(path: Path) -> list[tuple[Picture, int]]:
    """Every frame of a GIF and its duration in milliseconds."""
    with Image.open(path) as image:
        assert image.format == "GIF"
        return [(np.asarray(f.convert("RGB")).copy(), f.info["duration"]) for f in ImageSequence.Iterator(image)]


@pytest.mark.usefixtures("gif")
def test_pictures_of_few_colours_survive_exactly(drawn: list[Picture], tmp_path: Path) -> None:
    path = write_video(PLAIN, Game(1, actions=[0] * 5), tmp_path, 10)
    frames = [frame for frame, _ in read(path)]
    assert len(frames) == 6
    assert all(np.array_equal(a, b) for a, b in zip(frames, drawn, strict=True))


@pytest.mark.usefixtures("gif")
def test_pictures_of_many_colours_are_written_in_32(drawn: list[Picture], tmp_path: Path) -> None:
    """A ramp of 240 greys, in 32 boxes of at most 8 when each is as wide: no grey is further than 8 from its own."""
    drawn[:] = [
        np.roll(np.arange(240, dtype=np.uint8), 9 * k)[None, :, None].repeat(20, 0).repeat(3, 2) for k in (0, 1)
    ]
    frames = [frame for frame, _ in read(write_video(PLAIN, Game(1, actions=[0]), tmp_path, 10))]
    assert len(frames) == 2
    for frame, picture in zip(frames, drawn, strict=True):
        assert 16 < len(np.unique(frame.reshape(-1, 3), axis=0)) <= 32
        assert np.abs(frame.astype(int) - picture).max() <= 8


@pytest.mark.usefixtures("gif")
def test_a_game_with_estimates_is_written_with_its_panel(drawn: list[Picture], tmp_path: Path) -> None:
    game = Game(1, actions=[0, 1, 1, 0, 1], estimates=random_estimates(3, 2, 5))
    frames = [frame for frame, _ in read(write_video(PLAIN, game, tmp_path, 10))]
    wanted = list(frames_with_panel(PLAIN, game))
    assert len(frames) == len(wanted)
    for frame, picture in ((frames[0], wanted[0]), (frames[-1], wanted[-1])):
        away = np.abs(frame.astype(int) - picture).max(-1)
        assert (away == 0).mean() > 0.97, "all but the edges of letters"
        assert away.mean() < 1


@pytest.mark.usefixtures("gif", "drawn")
@pytest.mark.parametrize("fps", [1, 8, 10, 15, 20, 25, 30, 50])
def test_a_picture_stands_for_its_share_of_a_second(fps: int, tmp_path: Path) -> None:
    """GIF counts in hundredths of a second: a duration is off by less than one."""
    frames = read(write_video(PLAIN, Game(1, actions=[0] * 5), tmp_path, fps))
    assert len(frames) == 6
    for _, duration in frames:
        assert abs(duration - 1000 / fps) < 10
        assert duration == 1000 / fps or 1000 % (10 * fps), "a whole number of hundredths is exact"


@pytest.mark.usefixtures("gif")
def test_a_game_that_stands_still_takes_its_time(drawn: list[Picture], tmp_path: Path) -> None:
    """Equal pictures one after the other may share a frame, and then it lasts as long as all of them."""
    one, other = drawn[:2]
    drawn[:] = [one, one, other, one, one, one]
    frames = read(write_video(PLAIN, Game(1, actions=[0] * 5), tmp_path, 10))
    played = [frame for frame, duration in frames for _ in range(duration // 100)]
    assert sum(duration for _, duration in frames) == 600
    assert all(np.array_equal(a, b) for a, b in zip(played, drawn, strict=True))


@pytest.mark.usefixtures("gif", "drawn")
def test_videos_begin_again_for_ever(tmp_path: Path) -> None:
    with Image.open(write_video(PLAIN, Game(1, actions=[0] * 5), tmp_path, 10)) as image:
        assert image.info["loop"] == 0


@pytest.mark.usefixtures("gif", "drawn")
@pytest.mark.parametrize(
    ("seed", "score", "name"),
    [(7, 12.0, "seed7_score12.gif"), (123456, -3.5, "seed123456_score-3.5.gif"), (0, 0.0, "seed0_score0.gif")],
)
def test_files_are_named_by_seed_and_score_in_a_folder_made_for_them(
    seed: int, score: float, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "some" / "where"
    for _ in range(2):  # also into a folder that is there
        path = write_video(PLAIN, Game(seed, score, actions=[0] * 5), folder, 10)
        assert path == folder / name
        assert sorted(folder.iterdir()) == [path]


@pytest.mark.usefixtures("gif")
def test_an_atari_game_with_all_actions_beside_it(tmp_path: Path) -> None:
    settings = EnvSettings("breakout", max_episode_frames=40, full_action_space=True, auto_fire=True)

    def estimator(observations: Tensor) -> ValueEstimate:
        q_mean = (observations.double().mean((1, 2, 3))[:, None] * torch.arange(18)).sin().float()
        return ValueEstimate(q_mean, q_mean.abs() / 2, q_mean, q_mean.amax(-1))

    (game,) = Games(settings, [3], 1, 0, estimate_every=1).play(hashed(18), estimator)
    frames = [frame for frame, _ in read(write_video(settings, game, tmp_path, 10))]
    bare = list(render_game(settings, game))
    assert len(bare) == len(game.actions) + 1 == 11
    assert len(frames) > 5  # equal ones are one
    for frame, picture in ((frames[0], bare[0]), (frames[-1], bare[-1])):
        assert frame.shape == (210, 160 + PANEL_WIDTH, 3)
        assert (np.abs(frame[:, :160].astype(int) - picture).max(-1) <= 8).mean() > 0.95


@pytest.mark.usefixtures("gif")
def test_a_game_is_drawn_by_its_own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    game, asked = Game(4, actions=[1, 0]), []

    def looks(*arguments: Any) -> Iterator[Picture]:
        asked.append(arguments)
        yield from squares(3)

    monkeypatch.setattr("bayes_rl.evaluation.video.render_game", looks)
    settings = replace(PLAIN, max_episode_frames=77)
    write_video(settings, game, tmp_path, 10)
    assert asked == [(settings, game)]


def test_with_moviepy_it_is_an_mp4(drawn: list[Picture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clips: list[tuple[list[Picture], int, str, bool]] = []

    class ImageSequenceClip:
        def __init__(self, sequence: list[Picture], fps: int) -> None:
            self.sequence, self.fps = sequence, fps

        def write_videofile(self, filename: str, logger: object, audio: bool) -> None:
            assert logger is None
            Path(filename).write_bytes(b"a film")
            clips.append((self.sequence, self.fps, filename, audio))

    moviepy = types.ModuleType("moviepy")
    moviepy.ImageSequenceClip = ImageSequenceClip  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moviepy", moviepy)
    path = write_video(PLAIN, Game(7, 12.5, actions=[0] * 5), tmp_path / "videos", 12)
    ((sequence, fps, filename, audio),) = clips
    assert (path, fps, audio) == (tmp_path / "videos" / "seed7_score12.5.mp4", 12, False)
    assert filename.endswith(".mp4"), "moviepy reads the format from the ending"
    assert filename != str(path), "a half written video would look like a whole one"
    assert path.read_bytes() == b"a film"
    assert list((tmp_path / "videos").iterdir()) == [path]
    assert all(np.array_equal(a, b) for a, b in zip(sequence, drawn, strict=True))


def test_the_window_shows_every_picture_for_its_share_of_a_second(
    drawn: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    class Shown:
        def set_data(self, picture: Picture) -> None:
            events.append(picture)

    def imshow(picture: Picture) -> Shown:
        events.append("window")
        return Shown()

    monkeypatch.setattr("matplotlib.pyplot.imshow", imshow)
    monkeypatch.setattr("matplotlib.pyplot.axis", lambda option: None)
    monkeypatch.setattr("matplotlib.pyplot.pause", events.append)
    monkeypatch.setattr("matplotlib.pyplot.close", lambda: events.append("closed"))
    play_in_window(PLAIN, Game(1, actions=[0] * 5), 8)
    assert events.pop(0) == "window"
    assert events.pop() == "closed"
    assert events[1::2] == [1 / 8] * 6
    assert all(np.array_equal(a, b) for a, b in zip(events[::2], drawn, strict=True))


# --------------------------------------------------------------------------------------------------------- predict
TASKS = ["MinAtar/Breakout-v1", "MinAtar/Freeway-v1"]


def value_estimate(observations: Tensor) -> ValueEstimate:
    q_mean = (code((observations != 0).any(1))[:, None] * torch.arange(1, 6)).sin()
    return ValueEstimate(q_mean, q_mean.abs() / 2, q_mean, q_mean.amax(-1))


class Player(pl.LightningModule):
    """Plays what it is handed, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.played: list[tuple[EnvSettings, Game]] = []

    def predict_step(self, games: Games, batch_idx: int) -> list[Game]:
        played = games.play(hashed(5), value_estimate)
        self.played += [(games.settings, game) for game in played]
        return played


def predict(folder: Path, **evaluation: Any) -> tuple[Player, ReplayDataModule]:
    """Two games of each of two tasks that end soon, as `predict` plays them; videos go to `folder`/videos."""
    pytest.importorskip("minatar")
    data = ReplayDataModule(
        tasks=TASKS,
        rules={"frame_skip": 1, "max_episode_frames": 7},
        frame_stack=1,
        num_envs=1,
        replay={"capacity": 100, "min_size": 10},
        evaluation={"games": 2, **evaluation},
        seed=5,
    )
    player = Player()
    trainer = make_trainer(VideoWriter(), KeptCheckpoint(folder / "checkpoints"), enable_checkpointing=True)
    try:
        trainer.predict(player, datamodule=data)
    except ConfigError:
        assert player.played == [], "games were played before the refusal"
        raise
    return player, data


@pytest.mark.usefixtures("gif")
def test_predict_writes_every_game_as_its_own_task_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    player, data = predict(tmp_path / "run", fps=20)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seed ")]
    seeds = [seed for task in (0, 1) for seed in data.games("predict", None, task).seeds]
    assert [game.seed for _, game in player.played] == seeds
    assert len(set(seeds)) == len(lines) == 4
    files = [tmp_path / f"run/videos/seed{game.seed}_score{game.score:g}.gif" for _, game in player.played]
    assert sorted((tmp_path / "run" / "videos").iterdir()) == sorted(files)
    firsts = []
    for (settings, game), path, line in zip(player.played, files, lines, strict=True):
        assert line == f"seed {game.seed}: score {game.score:g} in {len(game.actions)} frames, {path}"
        frames = read(path)
        assert sum(duration for _, duration in frames) == 50 * (len(game.actions) + 1)
        wanted = list(frames_with_panel(settings, game))
        assert wanted[0].shape == (160, 160 + PANEL_WIDTH, 3)
        for (frame, _), picture in ((frames[0], wanted[0]), (frames[-1], wanted[-1])):
            assert (np.abs(frame.astype(int) - picture).max(-1) <= 8).mean() > 0.97
        firsts.append(frames[0][0][:, :160])
    assert [s.env for s, _ in player.played] == [task for task in TASKS for _ in range(2)]
    assert (firsts[0] != firsts[2]).any(-1).mean() > 0.1, "two games that look alike"


@pytest.mark.parametrize("backend", ["agg", "Agg", "pdf", "svg", "ps"])
def test_a_window_is_refused_before_any_game_where_there_is_no_display(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: backend)
    with pytest.raises(ConfigError, match=r"--data\.evaluation\.render: 'human' needs a display") as refusal:
        predict(tmp_path / "run", render="human")
    assert refusal.value.key == "data.evaluation.render"
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("gif")
@pytest.mark.parametrize("render", [None, "human"])
def test_games_are_shown_if_asked_for_and_written_always(
    render: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[tuple[EnvSettings, Game, int]] = []
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg" if render is None else "TkAgg")
    monkeypatch.setattr(
        "bayes_rl.training.callbacks.video_writer.play_in_window", lambda *arguments: shown.append(arguments)
    )
    player, _ = predict(tmp_path / "run", render=render, fps=11)
    assert len(list((tmp_path / "run" / "videos").iterdir())) == len(player.played) == 4
    assert shown == ([] if render is None else [(settings, game, 11) for settings, game in player.played])
