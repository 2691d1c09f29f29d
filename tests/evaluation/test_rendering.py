"""Games drawn again from (seed, actions)."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.evaluation.games import Games
from bayes_rl.evaluation.rendering import PLANE_COLOURS, render_game, screen_image
from tests.helpers.playing import hashed

INVADERS = EnvSettings("space_invaders", sticky_actions=0.25, max_episode_frames=1600)
MINATAR = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.1)


def test_pictures_of_an_atari_game_are_in_colour_one_per_step_and_one_before() -> None:
    (game,) = Games(EnvSettings("breakout", max_episode_frames=160, auto_fire=True), [3], 4, 0).play(hashed(4))
    settings = EnvSettings("breakout", max_episode_frames=160, auto_fire=True)
    drawn = list(render_game(settings, game))
    assert len(drawn) == len(game.actions) + 1
    assert all(p.shape == (210, 160, 3) and p.dtype == np.uint8 for p in drawn)
    assert len({p.tobytes() for p in drawn}) > len(drawn) // 2, "pictures overwrite each other"
    assert any((p[..., 0] != p[..., 2]).any() for p in drawn)
    # They are the game itself: grey and small, they are what the agent saw.
    envs = make_envs(settings, 1)
    seen = [envs.reset(np.array([game.seed]), np.ones(1, bool))[0][0, 0].copy()]
    seen += [envs.step(np.array([a])).screens[0, 0].copy() for a in game.actions]
    envs.close()
    for picture, screen in zip(drawn, seen, strict=True):
        grey = torch.from_numpy(picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))
        small = torch.nn.functional.interpolate(grey[None, None], (84, 84), mode="area")[0, 0].numpy()
        assert np.abs(small - screen).mean() < 3


def test_pictures_of_a_cropped_game_show_the_whole_screen() -> None:
    settings = EnvSettings("space_invaders", crop=(13, 197, 15, 135), max_episode_frames=40)
    (game,) = Games(settings, [3], 4, 0).play(hashed(6))
    drawn = list(render_game(settings, game))
    assert len(drawn) == 11
    assert drawn[0].shape == (210, 160, 3)


def test_pictures_of_a_small_game_are_enlarged() -> None:
    (game,) = Games(MINATAR, [3], 1, 0).play(hashed(3))
    drawn = list(render_game(MINATAR, game))
    assert len(drawn) == len(game.actions) + 1
    assert all(p.shape == (160, 160, 3) and p.dtype == np.uint8 for p in drawn)
    assert len({p.tobytes() for p in drawn}) > 1
    # Each of the 10 x 10 cells is one colour; what moves is where the agent saw it.
    assert all((p.reshape(10, 16, 10, 16, 3) == p[::16, ::16].reshape(10, 1, 10, 1, 3)).all() for p in drawn)
    envs = make_envs(MINATAR, 1)
    seen = [envs.reset(np.array([game.seed]), np.ones(1, bool))[0][0].copy()]
    seen += [envs.step(np.array([a])).screens[0].copy() for a in game.actions]
    envs.close()
    for picture, planes in zip(drawn, seen, strict=True):
        assert np.array_equal(picture[::16, ::16].any(-1), planes.any(0))


def test_a_screen_is_an_image_by_its_channels() -> None:
    grey = np.arange(1764, dtype=np.uint16).astype(np.uint8).reshape(1, 42, 42)
    image = screen_image(grey)
    assert image is not None
    assert all(np.array_equal(image[..., channel], grey[0]) for channel in range(3))
    colours = np.random.default_rng(0).integers(0, 256, (3, 40, 50), np.uint8)
    image = screen_image(colours)
    assert image is not None
    assert np.array_equal(image.transpose(2, 0, 1), colours)


def test_a_plane_has_its_own_colour_and_hides_those_before_it() -> None:
    planes = np.zeros((3, 2, 2), bool)
    planes[0, 0], planes[2, 0, 1] = True, True
    image = screen_image(planes)
    assert image is not None
    assert image.tolist() == [[[*PLANE_COLOURS[0]], [*PLANE_COLOURS[2]]], [[0, 0, 0], [0, 0, 0]]]
    single = screen_image(np.array([[[0.0, 2.0], [-1.0, np.nan]]], np.float32))  # shares of the greatest size
    assert single is not None
    assert single[..., 0].tolist() == [[0, 255], [127, 0]]


@pytest.mark.parametrize("screen", [np.zeros(4, np.float32), np.array([3], np.int32)])
def test_a_vector_is_no_image(screen: np.ndarray) -> None:
    assert screen_image(screen) is None


def test_games_are_drawn_without_a_desktop_and_without_a_message() -> None:
    """In a process of its own, because SDL complains about the missing folder of a desktop once, at its start."""
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    program = (
        "from bayes_rl.envs.base import EnvSettings\n"
        "from bayes_rl.envs.kinds import find_kind\n"
        "settings = EnvSettings('CartPole-v1', frame_skip=1)\n"
        "print(len(list(find_kind('CartPole-v1').render(settings, 3, [0, 1]))))\n"
    )
    desktop = ("XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {name: value for name, value in os.environ.items() if name not in desktop}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.split()[-1] == "3"
    assert "XDG_RUNTIME_DIR" not in ended.stderr
