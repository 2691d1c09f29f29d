"""When and how to depart from the greedy policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bayes_rl.errors import check

EXPLORE, DRAW = 0x45, 0x44  # domains of the generators below


BLOCK = 64  # steps whose random numbers are drawn at once: making a generator takes longer than using it


@dataclass(frozen=True)
class EpsilonSchedule:
    """Linear in frames from `start` to `end` over `decay_frames`, then constant; probabilities in [0, 1]."""

    start: float
    end: float
    decay_frames: int

    def __post_init__(self) -> None:
        for key, value in (("start", self.start), ("end", self.end)):
            check(0 <= value <= 1, f"data.epsilon_{key}", value, "must be a probability in [0, 1]")
        check(self.decay_frames >= 0, "data.epsilon_decay_frames", self.decay_frames, "must be zero or more frames")

    def __call__(self, frames: int) -> float:
        """Epsilon after `frames` environment frames of learning."""
        progress = min(1.0, frames / self.decay_frames) if self.decay_frames else 1.0
        return self.start + progress * (self.end - self.start)


class ExplorationNoise:
    """Random numbers of exploration as a function of (seed, rank, step): there is no state to save.

    Args:
        seed: of the run.
        rank: of this process.
        num_envs: E.
        num_actions: A.
    """

    def __init__(self, seed: int, rank: int, num_envs: int, num_actions: int) -> None:
        self._key, self._shape, self._num_actions = [seed, rank, EXPLORE], (BLOCK, num_envs), num_actions
        self._block = -1

    def __call__(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Random actions of `step`, and uniform numbers in [0, 1) that say whether to take them, `[E]` each."""
        block, row = divmod(step, BLOCK)
        if block != self._block:
            rng = np.random.default_rng([*self._key, block])
            self._actions, self._uniform = rng.integers(0, self._num_actions, self._shape), rng.random(self._shape)
            self._block = block
        return self._actions[row], self._uniform[row]


@lru_cache(maxsize=4096)
def draw_seed(seed: int, rank: int, env: int, episode: int) -> int:
    """The seed that names the posterior draw an environment explores by in one episode, 31 bits."""
    return int(np.random.SeedSequence([seed, rank, DRAW, env, episode]).generate_state(1)[0] >> 1)
