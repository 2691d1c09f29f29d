"""Stack of the newest screens of each environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class ObservationStack:
    """Stack of the last `frame_stack` screens of E environments, with zeros before the start of an episode.

    Args:
        num_envs: E.
        frame_stack: screens per observation.
        screen_shape: `(C, ...)`.
        dtype: of a screen.
    """

    def __init__(self, num_envs: int, frame_stack: int, screen_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        # A window slides through a longer array: a push writes one screen, and all screens are moved only at its end.
        self._track = np.zeros((num_envs, 8 * frame_stack, *screen_shape), dtype)
        self._depth = self._end = frame_stack

    @property
    def array(self) -> NDArray[Any]:
        """Screens `[E, frame_stack, *screen_shape]`, oldest first, sharing memory with the stack."""
        return self._track[:, self._end - self._depth : self._end]

    def begin(self, screens: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        """Start new episodes where `mask` `[E]` is set, from `screens` `[E, *screen_shape]`."""
        self.array[mask] = 0
        self.array[mask, -1] = screens[mask]

    def push(self, screens: NDArray[Any]) -> None:
        """Add the newest screens `[E, *screen_shape]`."""
        if self._end == self._track.shape[1]:
            self._track[:, : self._depth] = self.array
            self._end = self._depth
        self._track[:, self._end] = screens
        self._end += 1

    def observations(self) -> torch.Tensor:
        """Return `[E, frame_stack * C, ...]`, oldest screens first, sharing memory with the stack."""
        envs, depth, channels, *size = self.array.shape
        return torch.from_numpy(self.array).view(envs, depth * channels, *size)
