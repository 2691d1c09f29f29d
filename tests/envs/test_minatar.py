"""MinAtar games."""

from __future__ import annotations

import numpy as np

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.minatar import MinAtarKind
from tests.envs.kind_case import KindCase
from tests.helpers.playing import everyone, run


class TestMinAtarKind(KindCase):
    """MinAtar games."""

    kind = MinAtarKind
    settings = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.25)
    joined = ("MinAtar/Breakout-v1", "MinAtar/Freeway-v1")
    refused = (({"env": "MinAtar/Tetris-v1"}, "data.env"), ({"crop": (0, 84, 0, 84)}, "data.rules.crop"))


def test_minatar_planes_come_channels_first() -> None:
    envs = make_envs(EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((4, 10, 10), np.uint8, 1.0, 3)
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    assert screens.shape == (2, 4, 10, 10)
    assert screens.dtype == np.uint8
    assert screens[0, 0].sum() == 1
    assert screens[0, 0, 9].any()
    assert screens[0, 3].sum() == 30
    assert screens[0, 3, 1:4].all()
    step = envs.step(np.array([0, 0]))
    assert step.screens.shape == (2, 4, 10, 10)
    assert step.lives.tolist() == [0, 0]
    envs.close()


def test_minatar_forgets_its_sticky_action_on_reset() -> None:
    """Whatever was pressed before the reset, (seed, actions) give the same game: 20 seeds at stickiness 0.5."""
    settings = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.5)
    envs = make_envs(settings, 2)
    for seed in range(20):
        envs.reset(np.array([100 + seed, 200 + seed]), everyone(envs))
        for _ in range(5):
            envs.step(np.array([1, 2]))  # left, right
        envs.reset(np.array([seed, seed]), everyone(envs))
        for _ in range(4):
            step = envs.step(np.array([0, 0]))
            assert np.array_equal(step.screens[0], step.screens[1])
    envs.close()


def test_a_frame_limit_truncates_minatar() -> None:
    envs = make_envs(EnvSettings("MinAtar/Freeway-v1", frame_skip=2, sticky_actions=0.0, max_episode_frames=20), 1)
    _, steps = run(envs, [0], np.zeros((10, 1), np.int64))
    assert [bool(s.truncated[0]) for s in steps] == [False] * 9 + [True]
    envs.close()
