"""MiniGrid games."""

from __future__ import annotations

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


def test_codes_are_planes_as_minigrid_writes_them() -> None:
    """An agent in the middle of the last axis looks to the right along the upper wall of a room of 3 x 3 cells."""
    envs = make_envs(EMPTY, 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((3, 7, 7), np.uint8, 10, 7)
    assert envs.reading == "3 planes of 7 x 7, channels last, values 0 to 10"
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    objects = screens[0, 0]
    assert sorted(zip(*np.unique(objects, return_counts=True), strict=True)) == [(1, 8), (2, 40), (8, 1)]
    assert np.argwhere(objects == 8).tolist() == [[5, 4]]  # the goal, in MiniGrid's own order of the axes
    assert set(np.unique(screens[0, 1])) == {0, 1, 5}  # the goal is green, walls are grey
    assert not screens[0, 2].any()  # no door is closed
    envs.close()
    assert action_names(EMPTY, 7) == ["left", "right", "forward", "pickup", "drop", "toggle", "done"]


def test_games_repeat_and_a_mistyped_one_names_the_nearest() -> None:
    assert games_repeat(EMPTY)
    with pytest.raises(ConfigError, match=r"'MiniGrid-Emty-5x5-v0' is no known .*; nearest: 'MiniGrid-Empty-5x5-v0'"):
        make_envs(EnvSettings("MiniGrid-Emty-5x5-v0"), 1)


def test_without_minigrid_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install the extra: pip install minigrid"):
        make_envs(EnvSettings("MiniGrid-Never-5x5-v0"), 1)
