"""Gymnasium wrappers for episodes and observations as the agent expects them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.observations import Reading


class FrameSkip(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that repeats each action `frame_skip` times and sums the rewards."""

    def __init__(self, env: gym.Env[Any, Any], frame_skip: int) -> None:
        super().__init__(env)
        self.frame_skip = frame_skip

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Repeat `action` until the episode ends, at most `frame_skip` times."""
        total = 0.0
        for _ in range(self.frame_skip):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class ScreenObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Wrapper that makes a screen of an observation.

    Args:
        env: environment of any observations.
        reading: of its observations.
    """

    def __init__(self, env: gym.Env[Any, Any], reading: Reading) -> None:
        super().__init__(env)
        self.reading = reading
        self.observation_space = reading.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode; return its first screen.

        Raises:
            TypeError: if the environment does not return an observation and a dictionary.
        """
        result: Any = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise TypeError(f"reset() returned {type(result).__name__} instead of (observation, info)")
        return self.observation(result[0]), result[1]

    def observation(self, observation: Any) -> NDArray[Any]:
        """Return the screen of an observation.

        Raises:
            ValueError: if the observation does not have the shape of its space.
        """
        screen = self.reading.screen(observation)
        if screen.shape != self.observation_space.shape:
            raise ValueError(f"an observation does not fit its space {self.env.observation_space}")
        return screen


class PlainReset(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper of an environment whose `reset` takes no seed or no options.

    The seed still seeds `np_random`, the generator that Gymnasium gives to every environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._names = keywords_of(env.reset)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode with those of `seed` and `options` that the environment takes."""
        if seed is not None and "seed" not in self._names:
            self.env.unwrapped.np_random, _ = gym.utils.seeding.np_random(seed)
        given: dict[str, Any] = {"seed": seed, "options": options}
        reset: Any = self.env.reset
        result: tuple[Any, dict[str, Any]] = reset(**{k: value for k, value in given.items() if k in self._names})
        return result


def keywords_of(function: Callable[..., Any]) -> set[str]:
    """Return which of `seed`, `options` and `render_mode` can be given to a function by keyword."""
    names = {"seed", "options", "render_mode"}
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return names
    return names & {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}


def with_plain_reset(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return `env` with a `PlainReset` next to the innermost environment, if its `reset` needs one."""
    inner = env.unwrapped
    if {"seed", "options"} <= keywords_of(inner.reset):
        return env
    if env is inner:
        return PlainReset(env)
    layer: Any = env
    while layer.env is not inner:
        layer = layer.env
    layer.env = PlainReset(inner)
    return env


class SharedSpaces(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that gives a game the observations and actions that several games share.

    Args:
        env: environment whose observations are screens.
        screen_shape: of the shared screen.
        places: index along the first axis of the shared screen of each plane or number of the game; the others are 0.
        action_map: action of the game for each action of the agent.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        screen_shape: tuple[int, ...],
        places: tuple[int, ...],
        action_map: tuple[int, ...],
    ) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self.screen_shape, self.places, self.action_map = screen_shape, list(places), action_map
        # Planes that the game does not have are zero, so their range is [0, 0].
        low, high = (self._common(bound) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype.type)
        self.action_space = gym.spaces.Discrete(len(action_map))

    def _common(self, screen: NDArray[Any]) -> NDArray[Any]:
        common = np.zeros(self.screen_shape, screen.dtype)
        common[self.places] = screen
        return common

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode; return the shared screen."""
        screen, info = self.env.reset(seed=seed, options=options)
        return self._common(screen), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play the action of the game that belongs to `action`; return the shared screen."""
        screen, reward, terminated, truncated, info = self.env.step(self.action_map[int(action)])
        return self._common(screen), reward, terminated, truncated, info


class NumberedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper whose exceptions carry the number of the environment as the attribute `environment`.

    The wrapper returns an empty `info`: nothing reads it, and that of a user may be anything.
    """

    def __init__(self, env: gym.Env[Any, Any], number: int) -> None:
        super().__init__(env)
        self.number = number

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode."""
        try:
            return self.env.reset(seed=seed, options=options)[0], {}  # nothing reads what else is returned
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play one step. A reward may be an array of one number."""
        try:
            observation, returned, terminated, truncated, _ = self.env.step(action)
            reward: Any = returned
            if np.size(reward) != 1 or reward is None:
                raise TypeError(f"step() returned the reward {reward!r} instead of one number")
            return observation, np.asarray(reward).item(), terminated, truncated, {}
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise

    def close(self) -> None:
        """Close the environment. An error of its `close` harms nothing that was played."""
        with contextlib.suppress(Exception):
            self.env.close()
