"""Stack of the newest screens of each environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class ObservationStack:
    """The last `frame_stack` screens of E environments: `[E, frame_stack * C, ...]`, zeros before a start."""

    def __init__(self, num_envs: int, frame_stack: int, screen_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        # A window that slides through a longer array: one screen is written at a push, and seldom all of them moved.
        self._track = np.zeros((num_envs, 8 * frame_stack, *screen_shape), dtype)
        self._depth = self._end = frame_stack

    @property
    def array(self) -> NDArray[Any]:
        """`[E, frame_stack, *screen_shape]`, oldest first, sharing memory with the stack."""
        return self._track[:, self._end - self._depth : self._end]

    def begin(self, screens: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        """New episodes where `mask` `[E]` is set."""
        self.array[mask] = 0
        self.array[mask, -1] = screens[mask]

    def push(self, screens: NDArray[Any]) -> None:
        """One more screen for every environment."""
        if self._end == self._track.shape[1]:
            self._track[:, : self._depth] = self.array
            self._end = self._depth
        self._track[:, self._end] = screens
        self._end += 1

    def observations(self) -> torch.Tensor:
        """`[E, frame_stack * C, ...]`, sharing memory with the stack."""
        envs, depth, channels, *rest = self.array.shape
        return torch.from_numpy(self.array).view(envs, depth * channels, *rest)
