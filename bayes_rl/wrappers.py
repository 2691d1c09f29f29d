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


class FreshStart(gym.Wrapper[Any, Any, Any, Any]):
    """MinAtar keeps its last (sticky) action across resets; forget it, so that the seed alone names an episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


class Screen(gym.ObservationWrapper[Any, Any, Any]):
    """Planes and pictures to channels first uint8 (pictures grey, 84 x 84), everything else to a float32 vector."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        space = env.observation_space
        image = isinstance(space, gym.spaces.Box) and len(space.shape) == 3
        self.planes = image and space.dtype == np.bool_
        self.picture = image and space.dtype == np.uint8
        super().__init__(env if self.planes or self.picture else gym.wrappers.FlattenObservation(env))
        if self.planes:
            rows, columns, channels = space.shape  # type: ignore[misc]
            self.observation_space = gym.spaces.Box(0, 1, (channels, rows, columns), np.uint8)
        elif self.picture:
            self.observation_space = gym.spaces.Box(0, 255, (1, SIDE, SIDE), np.uint8)
        else:
            flat = self.env.observation_space
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)

    def observation(self, observation: Any) -> NDArray[Any]:
        if self.planes:
            return observation.transpose(2, 0, 1).astype(np.uint8)
        if self.picture:
            grey = torch.from_numpy(observation.astype(np.float32)).mean(-1)[None, None]
            return torch.nn.functional.interpolate(grey, (SIDE, SIDE), mode="area")[0].to(torch.uint8).numpy()
        return observation.astype(np.float32)
