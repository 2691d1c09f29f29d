"""Exploration: schedules of random actions and of draws, random numbers, and seeds of posterior draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bayes_rl.errors import check
from bayes_rl.utils.seeds import Domain, derived_seed, seed_sequence

BLOCK = 64
"""Steps whose random numbers are drawn at once, because making a generator takes longer than drawing from it."""


@dataclass(frozen=True)
class LinearSchedule:
    """Probability that is linear in frames from `start` to `end`, then constant.

    Args:
        start: probability before the first frame of learning, after the random prefill, in [0, 1].
        end: probability after the decay, in [0, 1].
        decay_frames: environment frames of the decay; 0 means `end` from the start.

    Attributes:
        option: name of the group of options, for errors.

    Raises:
        ConfigError: a probability outside [0, 1], or a negative number of frames.
    """

    option = "data"  # without a type, and so no field of the dataclass
    start: float
    end: float
    decay_frames: int

    def __post_init__(self) -> None:
        for key, value in (("start", self.start), ("end", self.end)):
            check(0 <= value <= 1, f"{self.option}.{key}", value, "must be a probability in [0, 1]")
        frames = self.decay_frames
        check(frames >= 0, f"{self.option}.decay_frames", frames, "must be zero or more frames")

    def __call__(self, frames: int) -> float:
        """Return the probability after `frames` environment frames of learning."""
        progress = min(1.0, frames / self.decay_frames) if self.decay_frames else 1.0
        return self.start + progress * (self.end - self.start)


@dataclass(frozen=True)
class EpsilonSchedule(LinearSchedule):
    """Probability of a random action: linear in frames from `start` to `end`, then constant.

    Args:
        start: probability before the first frame of learning, after the random prefill, in [0, 1].
        end: probability after the decay, in [0, 1].
        decay_frames: environment frames of the decay; 0 means `end` from the start.

    Raises:
        ConfigError: a probability outside [0, 1], or a negative number of frames.
    """

    option = "data.epsilon"
    start: float = 1.0
    end: float = 0.01
    decay_frames: int = 100_000


@dataclass(frozen=True)
class DrawSchedule(LinearSchedule):
    """Probability that an episode is played by a posterior draw: linear in frames, then constant.

    The other episodes play the greedy actions of the actors, as validations do. Each episode has a fixed uniform number
    u in [0, 1). At every step, the draw acts if u is below the present probability. No state has to be saved. An
    episode changes its policy if the probability passes u while the episode runs.

    Args:
        start: probability before the first frame of learning, after the random prefill, in [0, 1].
        end: probability after the decay, in [0, 1].
        decay_frames: environment frames of the decay; 0 means `end` from the start.

    Raises:
        ConfigError: a probability outside [0, 1], or a negative number of frames.
    """

    option = "data.draws"
    start: float = 1.0
    end: float = 1.0
    decay_frames: int = 0


class ExplorationNoise:
    """Random numbers of exploration, as a function of (seed, step). There is no state to save.

    Args:
        seed: seed of the run.
        total_envs: number of environments of all ranks.
        num_actions: A, number of actions.
        envs: numbers of this rank's E environments among those of all ranks; None if there is one rank.
    """

    def __init__(self, seed: int, total_envs: int, num_actions: int, envs: range | None = None) -> None:
        self._seed, self._shape, self._num_actions = seed, (BLOCK, total_envs), num_actions
        self._envs = slice(None) if envs is None else slice(envs.start, envs.stop)
        self._block = -1

    def __call__(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return random actions for `step` and uniform numbers in [0, 1), to be compared with epsilon, `[E]` each."""
        block, row = divmod(step, BLOCK)
        if block != self._block:
            rng = np.random.default_rng(seed_sequence(Domain.EXPLORATION, self._seed, 0, block))
            actions, uniform = rng.integers(0, self._num_actions, self._shape), rng.random(self._shape)
            self._actions, self._uniform, self._block = actions[:, self._envs], uniform[:, self._envs], block
        return self._actions[row], self._uniform[row]


@lru_cache(maxsize=4096)
def draw_seed(seed: int, env: int, episode: int) -> int:
    """Return the seed, of 31 bits, of the posterior draw for one episode of an environment.

    Args:
        seed: of the run.
        env: number of the environment among those of all ranks.
        episode: number of the episode.
    """
    return derived_seed(Domain.EPISODE_DRAW, seed, 0, env, episode)


@lru_cache(maxsize=4096)
def episode_uniform(seed_of_draw: int) -> float:
    """Return the uniform number u in [0, 1) of an episode (see `DrawSchedule`).

    Args:
        seed_of_draw: result of `draw_seed` for the episode.
    """
    return derived_seed(Domain.PLAYED_BY_DRAW, seed_of_draw) / 2**31
