"""Screens of a game at equal distances in time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class ScreenRecord:
    """Screens of a game at equal distances in time, of bounded number.

    The length of a game is not known before its end. The record begins with every screen. When the record is full, it
    drops every second screen, and the distance doubles. A longer game keeps at least half of `size` screens.

    Args:
        size: greatest number of screens, at least 2.

    Attributes:
        every: agent steps between two screens.
        screens: by the number of the agent step that follows, each `[C, ...]`, ascending.
    """

    def __init__(self, size: int) -> None:
        self.size, self.every = size, 1
        self.screens: dict[int, NDArray[Any]] = {}

    def add(self, step: int, screen: NDArray[Any]) -> None:
        """Keep a copy of a screen if its step is due.

        Args:
            step: number of the agent step that follows the screen, one more than that of the call before.
            screen: `[C, ...]`.
        """
        if step % self.every:
            return
        if len(self.screens) == self.size:
            self.every *= 2
            self.screens = {kept: image for kept, image in self.screens.items() if kept % self.every == 0}
        if step % self.every == 0:
            self.screens[step] = np.array(screen)
