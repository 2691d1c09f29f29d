"""Deep Sea: an environment that measures deep exploration, with one rewarding path among 2^N."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

MOVE_COST, GOAL_REWARD = 0.01, 1.0


CELL = 8  # height and width of a drawn cell, in pixels


LINE, WATER, GOAL, BLOCK = (12, 30, 60), (24, 60, 120), (60, 170, 90), (250, 210, 60)  # RGB


class DeepSea(gym.Env[NDArray[np.float32] | int, np.int64]):
    """Deep Sea of bsuite (Osband et al. 2020): deterministic, with a grid that `mapping_seed` determines.

    A block falls from the top left of an N x N grid, one row a step, and moves left or right by one column as it
    falls; walls stop it. Which of the two actions means right differs from cell to cell. A move to the right costs
    0.01 / N; a move to the right in the bottom right cell is rewarded with 1. Only N moves to the right reach that
    cell, for a return of 0.99; all other episodes return 0 or less. An episode terminates after N steps.

    An observation is the block's cell, one-hot `[N, N]` float32, all zeros once the block left the grid. Without
    `one_hot` an observation is the number of the cell, row * N + column; a block that left the grid is counted in the
    last row. No value is learned from terminal observations, so this ambiguity does no harm.

    `info["bad_episode"]` is true once the block moved left: the return can no longer be the best one.

    Args:
        size: N, at least 2.
        mapping_seed: seeds the draw of the action that means right in each cell, 42 in bsuite's experiments; with
            None, action 1 means right everywhere (bsuite's `randomize_actions=False`).
        one_hot: observe the grid; otherwise the number of the cell.
        render_mode: `rgb_array` for images `[8 N, 8 N, 3]` uint8, or None.

    Raises:
        ValueError: naming the argument that cannot work.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self, size: int = 10, mapping_seed: int | None = 42, one_hot: bool = True, render_mode: str | None = None
    ) -> None:
        if not isinstance(size, int | np.integer) or size < 2:
            raise ValueError(f"size {size!r} is no whole number of at least 2")
        if mapping_seed is not None:
            if not isinstance(mapping_seed, int | np.integer) or not 0 <= mapping_seed < 2**32:
                raise ValueError(f"mapping_seed {mapping_seed!r} is neither None nor a whole number below 2**32")
            # This generator, in this order: the mapping of a seed is bsuite's.
            self._right = np.random.RandomState(mapping_seed).binomial(1, 0.5, (size, size))
        else:
            self._right = np.ones((size, size), np.int64)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r} is neither None nor 'rgb_array'")
        self.size, self.one_hot, self.render_mode = int(size), one_hot, render_mode
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space: gym.Space[Any] = (
            gym.spaces.Box(0, 1, (self.size, self.size), np.float32)
            if one_hot
            else gym.spaces.Discrete(self.size * self.size)
        )
        self._row, self._column, self._bad = self.size, 0, False  # below the grid: not yet reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32] | int, dict[str, Any]]:
        """Put the block to the top left; the episode does not depend on `seed`."""
        super().reset(seed=seed)
        self._row, self._column, self._bad = 0, 0, False
        return self._observe(), {"bad_episode": False}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32] | int, float, bool, bool, dict[str, Any]]:
        """Move the block by one row down and one column to the side.

        Raises:
            ResetNeeded: if the episode is over or none has begun.
            ValueError: if `action` is neither 0 nor 1.
        """
        if self._row == self.size:
            raise gym.error.ResetNeeded("the episode is over, or none has begun: call reset() first")
        if action not in (0, 1):
            raise ValueError(f"action {action!r} is neither 0 nor 1")
        last, reward = self.size - 1, 0.0
        if action == self._right[self._row, self._column]:
            reward = (GOAL_REWARD if self._column == last else 0.0) - MOVE_COST / self.size
            self._column = min(self._column + 1, last)
        else:
            self._column, self._bad = max(self._column - 1, 0), True
        self._row += 1
        return self._observe(), reward, self._row == self.size, False, {"bad_episode": self._bad}

    def _observe(self) -> NDArray[np.float32] | int:
        if not self.one_hot:
            return min(self._row, self.size - 1) * self.size + self._column
        grid = np.zeros((self.size, self.size), np.float32)
        if self._row < self.size:
            grid[self._row, self._column] = 1
        return grid

    def render(self) -> NDArray[np.uint8] | None:
        """Return an image of the grid, the goal and the block; at the end the block is drawn in the last row."""
        if self.render_mode is None:
            return None
        image = np.full((self.size, self.size, CELL, CELL, 3), LINE, np.uint8)
        image[:, :, 1:, 1:] = WATER
        image[-1, -1, 1:, 1:] = GOAL
        image[min(self._row, self.size - 1), self._column, 3:-2, 3:-2] = BLOCK
        return image.swapaxes(1, 2).reshape(self.size * CELL, self.size * CELL, 3)
