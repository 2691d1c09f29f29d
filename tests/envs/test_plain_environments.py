"""Environments as users write them: short, without what Gymnasium's own have, and sometimes random by themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumEnvs, GymnasiumKind
from bayes_rl.envs.kinds import find_kind, games_repeat, make_envs
from bayes_rl.envs.monitored import FailedEnvError
from bayes_rl.errors import ConfigError, UserCodeError
from tests.envs.kind_case import KindCase
from tests.helpers.playing import everyone


class Short(gym.Env[NDArray[np.float32], int]):
    """Observes a number drawn at each step; neither `render_mode`, nor `render`, nor a seed, and `close` fails."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.time = 0

    def observe(self) -> NDArray[np.float32]:
        return np.array([self.np_random.random(), self.time / 9], np.float32)

    def reset(self) -> tuple[NDArray[np.float32], dict[str, Any]]:  # type: ignore[override]
        self.time = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observe(), float(action), self.time == 9, False, {"any": object(), "list": [1] * self.time}

    def close(self) -> None:
        raise RuntimeError("nothing to close")


class Random(Short):
    """Draws from Python's own generator."""

    def observe(self) -> NDArray[np.float32]:
        return np.array([random.random(), 0], np.float32)


class Remembering(Short):
    """Counts episodes, whatever the seed."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.episodes += 1
        self.time = 0
        return self.observe(), {}

    def observe(self) -> NDArray[np.float32]:
        return np.array([self.episodes, self.time], np.float32)


class Numbered(Short):
    """Observes how many environments were made before."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Numbered.made += 1
        self.number = Numbered.made

    def observe(self) -> NDArray[np.float32]:
        return np.array([self.number, self.time], np.float32)


class Fleeting(Short):
    """Repeats at first, and draws its reward from Python's own generator later."""

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, random.random() if self.time > 4 else 0.0, terminated, truncated, info


class Blank(Short):
    """Draws nothing, without an error."""

    def render(self) -> None:
        return None


class Old(Short):
    """Draws without being asked to by `render_mode`."""

    def reset(self, seed: int | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:  # type: ignore[override]
        gym.Env.reset(self, seed=seed)
        return super().reset()

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        return np.full((20, 30, 3), self.time, np.uint8)


class Alone(Short):
    """Returns an observation without a dictionary, as in the days of Gym."""

    def reset(self) -> Any:
        return super().reset()[0]


class Larger(Short):
    """Returns more numbers than its space has."""

    def observe(self) -> NDArray[np.float32]:
        return np.zeros(3, np.float32)


class Rewarding(Short):
    """Returns as reward and as image what `env_kwargs` say."""

    def __init__(self, reward: Any = 0.0, image: Any = None) -> None:
        super().__init__()
        self.reward, self.image = reward, image

    def step(self, action: int) -> tuple[NDArray[np.float32], Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.reward, terminated, truncated, info

    def render(self) -> Any:
        return self.image


class Broken(Short):
    """Cannot be made."""

    def __init__(self, level: int = 1) -> None:
        raise KeyError(f"level {level}\nhas no map")


class Bare(gym.Env[Any, Any]):
    """Has no spaces."""


CLASSES = (Short, Random, Remembering, Numbered, Fleeting, Blank, Old, Alone, Larger, Rewarding, Broken, Bare)


def settings_of(name: str, **change: Any) -> EnvSettings:
    return EnvSettings(f"BayesRLTests/{name}-v0", **{"frame_skip": 1, "sticky_actions": 0.0, **change})


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    for cls in CLASSES:
        gym.register(f"BayesRLTests/{cls.__name__}-v0", cls)
    yield
    for cls in CLASSES:
        gym.registry.pop(f"BayesRLTests/{cls.__name__}-v0")


class TestPlainEnvironment(KindCase):
    """An environment whose `reset` takes a seed by the generator of its base class alone."""

    kind = GymnasiumKind
    settings = EnvSettings("BayesRLTests/Old-v0", frame_skip=1, sticky_actions=0.25)
    joined = ("BayesRLTests/Old-v0", "BayesRLTests/Short-v0")


@pytest.mark.parametrize("order_enforce", [True, False])
def test_a_reset_without_a_seed_is_seeded_by_its_generator(order_enforce: bool) -> None:
    gym.register("BayesRLTests/Unordered-v0", Short, order_enforce=order_enforce)
    envs = make_envs(settings_of("Unordered"), 2)
    first = [envs.reset(np.array([seed, 5]), everyone(envs))[0].copy() for seed in (3, 4, 3)]
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0][0], first[1][0])
    assert np.array_equal(first[0][1], first[1][1])
    envs.close()
    gym.registry.pop("BayesRLTests/Unordered-v0")


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        *(("Short", True), ("Old", True), ("Random", False), ("Fleeting", False)),
        *(("Remembering", False), ("Numbered", False)),
    ],
)
def test_games_that_are_no_function_of_seed_and_actions_are_recognised(name: str, repeats: bool) -> None:
    assert games_repeat(settings_of(name)) is repeats


@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1", "FrozenLake-v1", "breakout"])
def test_known_games_repeat(env: str) -> None:
    assert games_repeat(EnvSettings(env, frame_skip=1, sticky_actions=0.25))


def test_a_close_that_fails_closes_the_others() -> None:
    envs = make_envs(settings_of("Short"), 3)
    assert isinstance(envs, GymnasiumEnvs)
    envs.close()
    assert envs._envs.closed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Short", "NotImplementedError"),
        ("Blank", "ValueError: render.. returned NoneType instead of an image"),
    ],
)
def test_an_environment_that_draws_nothing_says_so_in_one_line(name: str, reason: str) -> None:
    settings = settings_of(name)
    with pytest.raises(ConfigError, match=f"cannot be drawn here: {reason}") as error:
        list(find_kind(settings.env).render(settings, 1, [0, 1]))
    assert "\n" not in str(error.value)


def test_an_environment_draws_without_the_argument_render_mode() -> None:
    settings = settings_of("Old")
    images = list(find_kind(settings.env).render(settings, 1, [0, 1]))
    assert [image[0, 0, 0] for image in images] == [0, 1, 2]
    assert images[0].shape == (160, 240, 3)


def test_an_error_in_a_constructor_is_one_line_and_keeps_its_cause() -> None:
    with pytest.raises(UserCodeError) as error:
        make_envs(settings_of("Broken"), 1)
    assert str(error.value).startswith("--data.env: 'BayesRLTests/Broken-v0' fails in its constructor: KeyError: ")
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(UserCodeError, match=r"^--data.env_kwargs: {'level': 3} is refused") as error:
        make_envs(settings_of("Broken", env_kwargs={"level": 3}), 1)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Alone", r"TypeError: reset\(\) returned ndarray instead of \(observation, info\)"),
        ("Larger", r"ValueError: an observation does not fit its space Box\(0.0, 1.0, \(2,\), float32\)"),
    ],
)
def test_an_environment_that_breaks_its_promises_is_told_which(name: str, problem: str) -> None:
    with pytest.raises(FailedEnvError, match=f"environment 0 of BayesRLTests/{name}-v0 .* raised {problem}"):
        games_repeat(settings_of(name))


def test_an_array_of_one_number_is_a_reward() -> None:
    envs = make_envs(settings_of("Rewarding", env_kwargs={"reward": np.array([1.5])}), 2)
    envs.reset(np.array([1, 2]), everyone(envs))
    assert envs.step(np.array([0, 1])).rewards.tolist() == [1.5, 1.5]


@pytest.mark.parametrize("reward", [None, [1.0, 2.0]])
def test_another_reward_is_told_with_its_environment(reward: Any) -> None:
    problem = rf"environment 0 of .* raised TypeError: step\(\) returned the reward {re.escape(repr(reward))} instead"
    with pytest.raises(FailedEnvError, match=problem):
        games_repeat(settings_of("Rewarding", env_kwargs={"reward": reward}))


@pytest.mark.parametrize(
    ("pixel", "drawn"),
    [(200, 200), (1, 1), (0.5, 127), (1.0, 255), (200.0, 200), (True, 255), (np.uint8(1), 1)],
)
def test_an_image_of_any_numbers_is_drawn_as_meant(pixel: Any, drawn: int) -> None:
    settings = settings_of("Rewarding", env_kwargs={"image": [[[pixel] * 3] * 8] * 160})
    image = next(find_kind(settings.env).render(settings, 1, []))
    assert image.dtype == np.uint8
    assert (image == drawn).all()


@pytest.mark.parametrize("pixel", [-1, 256, np.nan])
def test_pixels_beyond_the_range_are_told(pixel: float) -> None:
    settings = settings_of("Rewarding", env_kwargs={"image": np.full((8, 8, 3), pixel)})
    with pytest.raises(ConfigError, match=r"cannot be drawn here: ValueError: render\(\) returned pixels from"):
        next(find_kind(settings.env).render(settings, 1, []))


def test_missing_spaces_are_named() -> None:
    with pytest.raises(ConfigError, match="has no observation_space; its constructor sets"):
        make_envs(settings_of("Bare"), 1)


def test_render_mode_is_no_keyword_argument() -> None:
    with pytest.raises(ConfigError, match=r"^--data.env_kwargs: .*'render_mode', which this program decides"):
        make_envs(settings_of("Short", env_kwargs={"render_mode": "human"}), 1)
