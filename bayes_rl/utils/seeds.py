"""Seeds of random numbers, each with its purpose in front, so that no two purposes share their numbers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Domain(IntEnum):
    """Purpose of random numbers. A value is part of every seed: changing one changes the results of all runs."""

    EPISODE = 1
    EXPLORATION = 2
    EPISODE_DRAW = 3
    CRITIC_OF_DRAW = 4
    MINIBATCH = 5
    SAMPLED_TRANSITIONS = 6
    FISHER_OUTPUTS = 7
    VALUE_DRAW = 8
    VALIDATE_GAME = 9
    TEST_GAME = 10
    PREDICT_GAME = 11
    SAMPLED_STATES = 12
    NOVEL_STATES = 13
    RESAMPLED_GAMES = 14
    NOISE_OF_RANK = 15
    PLAYED_BY_DRAW = 16


def seed_sequence(domain: Domain, *name: int) -> np.random.SeedSequence:
    """Return the seed of a generator that is a function of its purpose and its name.

    The purpose comes first. At any other place it could be mistaken for a part of another purpose's name, such as the
    number of an environment.

    Args:
        domain: purpose of the random numbers.
        name: whole numbers >= 0, such as the run's seed, the rank and a counter; as many for every name of a purpose.
    """
    return np.random.SeedSequence([domain, *name])


def derived_seed(domain: Domain, *name: int) -> int:
    """Return a seed of 31 bits that is a function of its purpose and its name, for generators that take one number.

    Args:
        domain: purpose of the random numbers.
        name: as in `seed_sequence`.
    """
    return int(seed_sequence(domain, *name).generate_state(1)[0] >> 1)
