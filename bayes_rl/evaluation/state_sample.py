"""Random sample of the states of a game."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bayes_rl.utils.seeds import Domain, seed_sequence


class StateSample:
    """Uniform random sample of a stream of states, of bounded size (algorithm R of Vitter 1985).

    Args:
        size: number of states to keep; all are kept while there are fewer.
        seed: of the game. The sample is a function of the seed and of the number of states.

    Attributes:
        observations: by the number of the state, counted from 0 in the order of `add`.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.observations = size, dict[int, Tensor]()
        self._seen = 0
        self._slots: list[int] = []
        self._rng = np.random.default_rng(seed_sequence(Domain.SAMPLED_STATES, seed))

    def add(self, observation: Tensor) -> None:
        """Add the next state; keep a copy of its observation, or none."""
        slot = self._seen if self._seen < self.size else int(self._rng.integers(self._seen + 1))
        if slot < len(self._slots):
            del self.observations[self._slots[slot]]
            self._slots[slot] = self._seen
        elif slot < self.size:
            self._slots.append(self._seen)
        if slot < self.size:
            self.observations[self._seen] = observation.clone()
        self._seen += 1
