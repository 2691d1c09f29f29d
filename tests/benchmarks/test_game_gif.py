"""Animation of a game beside its uncertainty."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bayes_rl.envs.base import EnvSettings
from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.evaluation.rendering import render_game
from bayes_rl.evaluation.video import GREY, PANEL_WIDTH, SPREAD
from bayes_rl.types import ValueEstimate
from benchmarks.learning.game_gif import animate, draw, encode, main, spread_of, widest_window
from tests.helpers.command_line import SHORTEST, run
from tests.helpers.playing import hashed

ROAD = EnvSettings("MinAtar/Freeway-v1", frame_skip=1, sticky_actions=0.1, max_episode_frames=24)


def estimator(observations: Tensor) -> ValueEstimate:
    """Return Q and its spread as some function of the observation."""
    q_mean = (observations.double().flatten(1) @ torch.arange(700.0, dtype=torch.float64))[:, None].sin().float()
    q_mean = q_mean * torch.arange(1, 4)
    return ValueEstimate(q_mean, q_mean.abs() / 2, q_mean, q_mean.amax(-1))


@pytest.fixture(scope="module")
def game() -> Game:
    """Return a game of MinAtar with an estimate of every state."""
    return Games(ROAD, [3], 1, 0, estimate_every=1).play(hashed(3), estimator)[0]


def test_the_part_with_the_widest_range_is_chosen() -> None:
    spread = np.array([9, 9, 8, 7, 1, 5, 0, 9, 9], np.float32)
    assert widest_window(spread, 2) == 6  # 0 to 9, not the first 9
    assert widest_window(spread, 4) == 4
    assert widest_window(spread, 100) == 0


def test_an_image_holds_the_game_the_panel_and_the_curve_up_to_now(game: Game) -> None:
    bare = list(render_game(ROAD, game))
    images = draw(ROAD, game, 2, 5)
    assert len(images) == 5
    spread = spread_of(game)[2:7]
    assert spread == pytest.approx([float(game.estimates[i].q_std[game.actions[i]]) for i in range(2, 7)])
    for number, image in enumerate(images):
        height, width = bare[0].shape[:2]
        assert image.shape == (height + 2, width + PANEL_WIDTH + 2, 3)
        assert (image[0] == GREY).all()
        assert np.array_equal(image[1:-1, 1 : width + 1], bare[2 + number])
        curve = image[1 + height * 3 // 5 : -1, width + 1 : -1]
        columns = np.flatnonzero((curve == SPREAD).all(-1).any(0))
        now = 4 + (PANEL_WIDTH - 12) * number / 4  # the disc has a radius of 3 pixels
        assert columns.max() == pytest.approx(now + 3, abs=1)


def test_an_animation_is_read_back_with_its_images_and_times(game: Game) -> None:
    images = draw(ROAD, game, 0, 6)
    with Image.open(io.BytesIO(encode(images, 32, 20))) as animation:
        assert animation.info["loop"] == 0
        shown, duration = [], 0
        for number in range(animation.n_frames):
            animation.seek(number)
            duration += animation.info["duration"]
            shown.append(np.asarray(animation.convert("RGB")).astype(int))
    assert duration == 50 * len(images)
    assert (np.abs(shown[0] - images[0]).max(-1) <= 24).mean() > 0.97
    assert (np.abs(shown[-1] - images[-1]).max(-1) <= 24).mean() > 0.97


def test_a_smaller_limit_gives_a_smaller_file_or_one_line(game: Game) -> None:
    free = animate(ROAD, game, 2.5, 4, 10**6)
    limit = len(free) - 1
    assert len(animate(ROAD, game, 2.5, 4, limit)) <= limit
    with pytest.raises(ConfigError, match=r"kilobytes.*is too small for 2 seconds"):
        animate(ROAD, game, 2.5, 4, 1000)


def test_a_checkpoint_becomes_an_animation_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "fit", *SHORTEST, "--trainer.max_epochs=1")
    capsys.readouterr()
    main(["runs/game/version_0/checkpoints/last.ckpt", "static/game.gif", "--games=2", "--seconds=2", "--fps=4"])
    printed = capsys.readouterr().out
    assert printed.startswith("static/game.gif: ")
    assert "score" in printed
    with Image.open("static/game.gif") as animation:
        assert animation.format == "GIF"
        assert animation.n_frames > 1
        assert animation.size == (300 + PANEL_WIDTH + 2, 200 + 2)  # 600 x 400, reduced by 2
    with pytest.raises(SystemExit):
        main(["nothing.ckpt", "static/game.gif"])
    assert "'nothing.ckpt' does not exist" in capsys.readouterr().err
