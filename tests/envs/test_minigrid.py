"""MiniGrid games."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import action_names, games_repeat, make_envs
from bayes_rl.envs.minigrid import MiniGridKind
from bayes_rl.errors import ConfigError
from tests.envs.kind_case import KindCase
from tests.helpers.playing import everyone

pytest.importorskip("minigrid", exc_type=ImportError)

EMPTY = EnvSettings("MiniGrid-Empty-5x5-v0", frame_skip=1, sticky_actions=0.0)


class TestMiniGridKind(KindCase):
    """MiniGrid games."""

    kind = MiniGridKind
    settings = EnvSettings("MiniGrid-DoorKey-5x5-v0", frame_skip=1, sticky_actions=0.25)
    joined = ("MiniGrid-Empty-5x5-v0", "BabyAI-GoToRedBall-v0")
    refused = (({"env": "MiniGrid-Emty-5x5-v0"}, "data.env"), ({"crop": (0, 84, 0, 84)}, "data.rules.crop"))


def test_planes_say_which_object_colour_and_state_a_cell_has() -> None:
    """An agent in the middle of the last axis looks to the right along the upper wall of a room of 3 x 3 cells."""
    envs = make_envs(EMPTY, 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((20, 7, 7), np.uint8, 1, 7)
    assert envs.reading == "20 planes of 7 x 7, channels last, values 0 to 1"
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    objects, colours, states = np.split(screens[0], (11, 17))
    for planes in (objects, colours, states):
        assert (planes.sum(0) == 1).all()  # a cell has one of each
    counts = objects.sum((1, 2))
    assert (counts[[1, 2, 8]] == (8, 40, 1)).all()
    assert counts.sum() == 49
    assert np.argwhere(objects[8]).tolist() == [[5, 4]]  # in MiniGrid's own order of the axes
    assert colours[1].sum() == 1
    assert colours[1, 5, 4]
    assert (colours[5] == objects[2]).all()  # walls are grey
    assert states[0].all()  # no door is closed
    envs.close()
    assert action_names(EMPTY, 7) == ["left", "right", "forward", "pickup", "drop", "toggle", "done"]


def test_planes_are_those_of_minigrid_s_codes_along_a_game() -> None:
    """MiniGrid itself plays the same actions from the same seed; the door is opened by the key on the way."""
    settings = EnvSettings("MiniGrid-DoorKey-5x5-v0", frame_skip=1, sticky_actions=0.0)
    envs, game, rng = make_envs(settings, 1), gym.make("MiniGrid-DoorKey-5x5-v0"), np.random.default_rng(0)
    screens, _ = envs.reset(np.array([7]), everyone(envs))
    codes = game.reset(seed=7)[0]["image"]
    seen = set()
    for _ in range(240):
        for planes, code in zip(np.split(screens[0], (11, 17)), np.moveaxis(codes, -1, 0), strict=True):
            assert np.array_equal(planes.argmax(0), code)
            assert (planes.sum(0) == 1).all()
        seen |= set(zip(codes[..., 0].flat, codes[..., 2].flat, strict=True))
        action = rng.integers(6)
        step = envs.step(np.array([action]))
        codes, _, ended, cut, _ = game.step(action)
        if ended or cut:
            break
        screens = step.screens
        codes = codes["image"]
    assert {(4, 2), (5, 0)} <= seen  # a locked door and a key
    envs.close()


def test_games_repeat_and_a_mistyped_one_names_the_nearest() -> None:
    assert games_repeat(EMPTY)
    with pytest.raises(ConfigError, match=r"'MiniGrid-Emty-5x5-v0' is no known .*; nearest: 'MiniGrid-Empty-5x5-v0'"):
        make_envs(EnvSettings("MiniGrid-Emty-5x5-v0"), 1)


def test_without_minigrid_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install the extra: pip install minigrid"):
        make_envs(EnvSettings("MiniGrid-Never-5x5-v0"), 1)
