"""Gymnasium wrappers that make one environment's episodes and observations what the agent expects."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 84  # height and width of pictures, in pixels


class FrameSkip(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat each action `frame_skip` times and sum the rewards."""

    def __init__(self, env: gym.Env[Any, Any], frame_skip: int) -> None:
        super().__init__(env)
        self.frame_skip = frame_skip

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.frame_skip):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class ScreenObservation(gym.ObservationWrapper[Any, Any, Any]):
    """What is observed, as a screen: planes and pictures channels first uint8 (pictures grey, 84 x 84), numbered states
    one int32 counted from 0, shape `(1,)`, everything else a float32 vector.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        space = env.observation_space
        image = isinstance(space, gym.spaces.Box) and len(space.shape) == 3
        self.planes = image and space.dtype == np.bool_
        self.picture = image and space.dtype == np.uint8
        self.number = isinstance(space, gym.spaces.Discrete)
        plain = self.planes or self.picture or self.number
        super().__init__(env if plain else gym.wrappers.FlattenObservation(env))
        if self.planes:
            rows, columns, channels = space.shape  # type: ignore[misc]
            self.observation_space = gym.spaces.Box(0, 1, (channels, rows, columns), np.uint8)
        elif self.picture:
            self.observation_space = gym.spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        elif isinstance(space, gym.spaces.Discrete):
            self.start = int(space.start)
            self.observation_space = gym.spaces.Box(0, int(space.n) - 1, (1,), np.int32)
        else:
            flat = self.env.observation_space
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)

    def observation(self, observation: Any) -> NDArray[Any]:
        if self.planes:
            return observation.transpose(2, 0, 1).astype(np.uint8)
        if self.picture:
            grey = torch.from_numpy(observation.astype(np.float32)).mean(-1)[None, None]
            return torch.nn.functional.interpolate(grey, (SIDE, SIDE), mode="area")[0].to(torch.uint8).numpy()
        if self.number:
            return np.array([int(observation) - self.start], np.int32)
        return observation.astype(np.float32)


class SharedSpaces(gym.Wrapper[Any, Any, Any, Any]):
    """One of several games as all of them look: planes in their places among zeros, actions looked up.

    Args:
        env: whose screens are arrays.
        screen_shape: of the common screen.
        places: of the game's own planes or numbers along the first axis of that.
        action_map: the game's action for each action of the agent.
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
        # Where the game has nothing of its own a zero stands, which no game's range leaves out.
        low, high = (self._common(bound) for bound in (space.low, space.high))
        self.observation_space = gym.spaces.Box(low, high, dtype=space.dtype.type)
        self.action_space = gym.spaces.Discrete(len(action_map))

    def _common(self, screen: NDArray[Any]) -> NDArray[Any]:
        common = np.zeros(self.screen_shape, screen.dtype)
        common[self.places] = screen
        return common

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        screen, info = self.env.reset(seed=seed, options=options)
        return self._common(screen), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        screen, reward, terminated, truncated, info = self.env.step(self.action_map[int(action)])
        return self._common(screen), reward, terminated, truncated, info


class NumberedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """One of several environments: what it raises has its number as the attribute `environment`."""

    def __init__(self, env: gym.Env[Any, Any], number: int) -> None:
        super().__init__(env)
        self.number = number

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise
