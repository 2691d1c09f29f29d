"""Gymnasium wrappers for episodes and observations as the agent expects them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

SIDE = 84  # height and width of image screens, in pixels


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

    Boolean planes `[H, W, C]` become uint8 `[C, H, W]`; images `[H, W, 3]` become grey uint8 `[1, 84, 84]`; a
    numbered state becomes one int32, counted from 0, shape `(1,)`; any other observation becomes a float32 vector.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        space = env.observation_space
        three_axes = isinstance(space, gym.spaces.Box) and len(space.shape) == 3
        self.planes = three_axes and space.dtype == np.bool_
        self.image = three_axes and space.dtype == np.uint8
        self.number = isinstance(space, gym.spaces.Discrete)
        ready = self.planes or self.image or self.number
        super().__init__(env if ready else gym.wrappers.FlattenObservation(env))
        if self.planes:
            rows, columns, channels = space.shape  # type: ignore[misc]
            self.observation_space = gym.spaces.Box(0, 1, (channels, rows, columns), np.uint8)
        elif self.image:
            self.observation_space = gym.spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        elif isinstance(space, gym.spaces.Discrete):
            self.start = int(space.start)
            self.observation_space = gym.spaces.Box(0, int(space.n) - 1, (1,), np.int32)
        else:
            flat = self.env.observation_space
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)

    def observation(self, observation: Any) -> NDArray[Any]:
        """Return the screen of an observation."""
        if self.planes:
            return observation.transpose(2, 0, 1).astype(np.uint8)
        if self.image:
            grey = torch.from_numpy(observation.astype(np.float32)).mean(-1)[None, None]
            return torch.nn.functional.interpolate(grey, (SIDE, SIDE), mode="area")[0].to(torch.uint8).numpy()
        if self.number:
            return np.array([int(observation) - self.start], np.int32)
        return observation.astype(np.float32)


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
    """Wrapper whose exceptions carry the number of the environment as the attribute `environment`."""

    def __init__(self, env: gym.Env[Any, Any], number: int) -> None:
        super().__init__(env)
        self.number = number

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode."""
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play one step."""
        try:
            return self.env.step(action)
        except Exception as error:
            error.environment = self.number  # type: ignore[attr-defined]
            raise
