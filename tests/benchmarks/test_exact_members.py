"""Members that learn at once: values by brute force, and the way to the treasure."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bayes_rl.envs.deep_sea import DeepSea
from benchmarks.learning.exact_members import GAMMA, ExactMembers, first_success, table

SIZE, MEMBERS = 4, 3


def episode(actions: tuple[int, ...]) -> list[tuple[int, int, int, float, int]]:
    """Return row, column, action, reward and next column of each step of an episode."""
    env = DeepSea(SIZE, one_hot=False)
    cell, _ = env.reset()
    steps = []
    for row, action in enumerate(actions):
        column = int(cell) % SIZE
        cell, reward, *_ = env.step(np.int64(action))
        steps.append((row, column, action, reward, int(cell) % SIZE))
    return steps


@pytest.mark.parametrize("played", [0, 3, 7, 16])
def test_a_value_is_that_of_the_best_way_to_an_action_that_nobody_has_taken_or_to_the_end(played: int) -> None:
    """Brute force over all 2^4 sequences of actions, each followed until its first step that was not seen."""
    rng = np.random.default_rng(played)
    agent, ways = ExactMembers(SIZE, MEMBERS, 1.0, rng), [*product((0, 1), repeat=SIZE)]
    for way in rng.permutation(len(ways))[:played]:
        for step in episode(ways[way]):
            agent.see(*step)
    q_values = agent.values()
    for member, first in product(range(MEMBERS), (0, 1)):
        totals = []
        for way in ways:
            total, factor = 0.0, 1.0
            for row, column, action, reward, _ in episode(way):
                if not agent.seen[row, column, action]:
                    total += factor * agent.prior[row, member, column, action]
                    break
                total, factor = total + factor * reward, factor * GAMMA
            totals += [total] if way[0] == first else []
        assert q_values[0, member, 0, first] == pytest.approx(max(totals))


def test_the_treasure_is_found_sooner_than_by_chance_and_given_up_in_time() -> None:
    found = [first_success(10, 10, 1.0, seed, 1_000) for seed in range(3)]
    assert max(episodes or 1_000 for episodes in found) < 250  # random actions need about 2^10 episodes
    assert first_success(10, 10, 1.0, 0, (found[0] or 0) - 1) is None
    assert first_success(10, 10, 1.0, 0, found[0] or 0) == found[0]


def test_the_table_has_the_median_and_says_how_many_seeds_found_it() -> None:
    rows = [{"size": 3, "members": 5, "first_success": found} for found in (4, 9, None, 6)]
    rows += [{"size": 3, "members": 7, "first_success": None}]
    assert "| 3 | 6 (4 to 9), 3 of 4 runs | none, 0 of 1 runs |" in table(rows)
