"""Gymnasium environments of every sort of observation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumKind
from bayes_rl.envs.kinds import make_envs
from bayes_rl.errors import ConfigError
from tests.envs.kind_case import KindCase
from tests.helpers.playing import copied, ended, equal, everyone, run, script


class Flag(gym.Env[NDArray[np.uint8], int]):
    """A picture of 60 x 40 pixels: black, with a white upper third and a red right quarter; ends after 3 steps."""

    observation_space = gym.spaces.Box(0, 255, (60, 40, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def _picture(self) -> NDArray[np.uint8]:
        picture = np.zeros((60, 40, 3), np.uint8)
        picture[:20] = 255
        picture[20:, 30:, 0] = 255
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._picture(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._picture(), 1.0, self.time == 3, False, {}


class Endless(gym.Env[NDArray[np.float32], int]):
    """Observes the number of frames since the reset; never ends by itself; a reward of 1 each frame."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, False, False, {}


class Shifted(gym.Env[int, int]):
    """States 5, ..., 8 and actions 2, 3, 4, counted from elsewhere than 0: an action names the next state."""

    observation_space = gym.spaces.Discrete(4, start=5)
    action_space = gym.spaces.Discrete(3, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        return 5, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action in (2, 3, 4)
        return int(action) + 4, float(action), False, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    gym.register("BayesRLTests/Flag-v0", lambda **_: Flag())
    gym.register("BayesRLTests/Endless-v0", lambda **_: Endless())
    gym.register("BayesRLTests/Shifted-v0", lambda **_: Shifted())
    yield
    gym.registry.pop("BayesRLTests/Flag-v0")
    gym.registry.pop("BayesRLTests/Endless-v0")
    gym.registry.pop("BayesRLTests/Shifted-v0")


class TestGymnasiumKind(KindCase):
    """Registered Gymnasium environments."""

    kind = GymnasiumKind
    settings = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.25)
    joined = ("CartPole-v1", "Acrobot-v1")
    refused = (({"crop": (0, 84, 0, 84)}, "data.rules.crop"),)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data.env: 'Pendulum-v1' has actions Box.*only discrete"):
        make_envs(EnvSettings("Pendulum-v1"), 1)


@pytest.mark.parametrize(
    ("env", "env_kwargs", "word"),
    [
        ("CartPole-v1", {"gravity": 3.7}, "gravity"),  # unknown
        ("FrozenLake-v1", {"map_name": "9x9"}, "9x9"),  # unknown value
        ("MinAtar/Breakout-v1", {"sticky_action_prob": 0.5}, "sticky_action_prob"),  # an option of its own
    ],
)
def test_a_refused_keyword_is_named_in_one_line(env: str, env_kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_envs(EnvSettings(env, env_kwargs=env_kwargs), 1)
    text = str(error.value)
    assert text.startswith(f"--data.env_kwargs: {env_kwargs!r} is refused by {env}: ")
    assert text.count(word) == 2
    assert "\n" not in text


def test_keywords_reach_the_environment() -> None:
    """A lake without ice: the way that leads to the goal does so every time."""
    way = [2, 2, 1, 1, 1, 2]
    envs = make_envs(EnvSettings("FrozenLake-v1", 1, 0.0, env_kwargs={"is_slippery": False}), 2)
    _, steps = run(envs, [0, 1], np.array([way, way]).T)
    assert steps[-1].rewards.tolist() == [1.0, 1.0]
    assert steps[-1].screens.tolist() == [[15], [15]]
    envs.close()


@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1"])
def test_resetting_a_finished_gymnasium_environment_leaves_the_others_untouched(env: str) -> None:
    settings = EnvSettings(env, frame_skip=1)
    together = make_envs(settings, 3)
    alone = [make_envs(settings, 1) for _ in range(3)]
    together.reset(np.array([1, 2, 3]), everyone(together))
    for e in range(3):
        alone[e].reset(np.array([e + 1]), everyone(alone[e]))
    resets = 0
    for actions in script(together, 120):
        step = copied(together.step(actions))
        for e in range(3):
            assert equal(step, copied(alone[e].step(actions[e : e + 1])), e, 0)
        over = ended(step)
        if over.any():
            resets += 1
            new = np.flatnonzero(over) + 100 * resets
            screens, _ = together.reset(new, over)
            assert np.array_equal(screens[~over], step.screens[~over])
            for e, seed in zip(np.flatnonzero(over), new, strict=True):
                assert np.array_equal(screens[e], alone[e].reset(np.array([seed]), everyone(alone[e]))[0][0])
    assert resets > 3
    for envs in (together, *alone):
        envs.close()


@pytest.mark.parametrize("frame_skip", [1, 4])
def test_every_environment_is_truncated_after_its_frames(frame_skip: int) -> None:
    """`max_episode_frames` says so without exception."""
    settings = EnvSettings("BayesRLTests/Endless-v0", frame_skip=frame_skip, sticky_actions=0, max_episode_frames=24)
    envs = make_envs(settings, 1)
    _, steps = run(envs, [0], np.zeros((24 // frame_skip, 1), np.int64))
    assert [bool(s.truncated[0]) for s in steps] == [False] * (24 // frame_skip - 1) + [True]
    envs.close()


def test_frame_skip_repeats_and_sums() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Endless-v0", frame_skip=5, sticky_actions=0), 2)
    _, steps = run(envs, [0, 1], np.zeros((3, 2), np.int64))
    assert [s.screens.tolist() for s in steps] == [[[5.0]] * 2, [[10.0]] * 2, [[15.0]] * 2]
    assert all(s.rewards.tolist() == [5.0, 5.0] and s.lives.tolist() == [0, 0] for s in steps)
    envs.close()


def test_cartpole_is_a_float_vector() -> None:
    envs = make_envs(EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((4,), np.float32, 1.0, 2)
    single = gym.make("CartPole-v1")
    wanted, _ = single.reset(seed=6)
    screens, _ = envs.reset(np.array([5, 6]), everyone(envs))
    assert screens.dtype == np.float32
    for action in (0, 1, 1, 0, 1):
        np.testing.assert_array_equal(screens[1], wanted)
        wanted = single.step(action)[0]
        screens = envs.step(np.array([1 - action, action])).screens
    single.close()
    envs.close()


@pytest.mark.parametrize(("env", "states", "actions"), [("FrozenLake-v1", 16, 4), ("CliffWalking-v1", 48, 4)])
def test_numbered_states_stay_numbers(env: str, states: int, actions: int) -> None:
    envs = make_envs(EnvSettings(env, frame_skip=1, sticky_actions=0.0), 1)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale) == ((1,), np.int32, 1.0)
    assert (envs.num_categories, envs.num_actions) == (states, actions)
    single = gym.make(env)
    seen = set()
    for seed in range(10):
        wanted, _ = single.reset(seed=seed)
        screens, _ = envs.reset(np.array([seed]), everyone(envs))
        terminated = False
        for action in np.random.default_rng(seed).integers(0, actions, 20):
            assert screens.dtype == np.int32
            assert screens.tolist() == [[wanted]]
            seen.add(int(wanted))
            if terminated:
                break
            wanted, _, terminated, _, _ = single.step(action)
            screens = envs.step(np.array([action])).screens
    assert len(seen) > 6
    single.close()
    envs.close()


def test_states_and_actions_are_counted_from_0() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Shifted-v0", frame_skip=2, sticky_actions=0.25), 1)
    assert (envs.num_categories, envs.num_actions) == (4, 3)
    assert envs.reset(np.array([0]), everyone(envs))[0].tolist() == [[0]]
    envs.close()
    envs = make_envs(EnvSettings("BayesRLTests/Shifted-v0", frame_skip=1, sticky_actions=0.0), 1)
    _, steps = run(envs, [0], np.array([[0], [1], [2]]))
    assert [s.screens.tolist() for s in steps] == [[[1]], [[2]], [[3]]]
    assert [s.rewards.tolist() for s in steps] == [[2.0], [3.0], [4.0]]
    assert envs.send(np.array([1])).tolist() == [1], "what was played is counted from 0 too"
    envs.recv()
    envs.close()


def test_several_numbers_become_one_hot_vectors() -> None:
    """Blackjack: the sum in hand, the dealer's card, a usable ace."""
    envs = make_envs(EnvSettings("Blackjack-v1", frame_skip=1, sticky_actions=0.0), 1)
    assert (envs.screen_shape, envs.screen_dtype, envs.num_categories) == ((45,), np.float32, 0)
    screens, _ = envs.reset(np.array([0]), everyone(envs))
    single = gym.make("Blackjack-v1")
    hand, dealer, ace = single.reset(seed=0)[0]
    assert np.flatnonzero(screens[0]).tolist() == [hand, 32 + dealer, 43 + ace]
    assert screens[0].max() == 1
    single.close()
    envs.close()


def test_a_picture_becomes_grey_84_by_84_and_upright() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Flag-v0", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale) == ((1, 84, 84), np.uint8, 255.0)
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    assert screens.shape == (2, 1, 84, 84)
    assert screens.dtype == np.uint8
    assert (screens[:, 0, :28] == 255).all()  # the upper third, white
    assert (screens[:, 0, 29:, :62] == 0).all()
    assert (screens[:, 0, 29:, 64:] == 85).all()  # the right quarter, red: a third of white
    envs.close()


def test_a_reset_without_a_seed_continues_the_random_numbers() -> None:
    envs, screens = make_envs(EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0), 1), []
    for seed in (5, UNSEEDED, UNSEEDED, 5, UNSEEDED):
        screens.append(tuple(envs.reset(np.array([seed]), everyone(envs))[0][0].tolist()))
    assert screens[3:] == screens[:2]
    assert len(set(screens)) == 3
    envs.close()
