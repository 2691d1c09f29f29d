"""Episodes of DeepSea that exploration needs if the values of all members are exact after every round of episodes.

    python -m benchmarks exact_members [--sizes 10 20 30 50 100] [--members 5 10 20]

A member has a value of its own for each action that nobody has taken, drawn from a Gaussian, as a prior function gives
it. All other values follow exactly from the transitions that any member has seen, by value iteration from the last row
up. In each round ten environments play one episode each, every one by a member that is drawn at random. Then all values
are computed again. There are no networks, no step sizes and no forgetting. An agent with as many members and the same
prior that needs more episodes needs them because its values are not exact.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.deep_sea import DeepSea
from benchmarks.runner import Benchmark, Cell, Options, Row, markdown

ENVIRONMENTS = 10
GAMMA = 0.99
SUCCESS_ABOVE = 0.5  # return; the treasure pays 1, and the moves to the right cost 0.01 in all


class ExactMembers:
    """Q-values of all members in DeepSea.

    The value of an action that has been taken is its reward plus the discounted best value of the next cell. That of
    another action is a random number of the member.

    Args:
        size: N, the rows and columns of the sea.
        members: K, the number of members.
        prior_scale: standard deviation of the value of an action that has not been taken, in return units.
        rng: generator of these values.

    Attributes:
        prior: random values of the members, `[N, K, N, 2]`, by row, member, column and action, in return units.
        seen: whether the action has been taken in the cell, `[N, N, 2]`, by row, column and action.
        reward: reward of the action where it has been taken, `[N, N, 2]`.
        next_column: column that the action leads to where it has been taken, `[N, N, 2]`.
    """

    def __init__(self, size: int, members: int, prior_scale: float, rng: np.random.Generator) -> None:
        self.size = size
        self.prior = rng.normal(0, prior_scale, (size, members, size, 2))
        self.seen = np.zeros((size, size, 2), bool)
        self.reward = np.zeros((size, size, 2))
        self.next_column = np.zeros((size, size, 2), np.int64)

    def see(self, row: int, column: int, action: int, reward: float, next_column: int) -> None:
        """Remember a transition."""
        self.seen[row, column, action] = True
        self.reward[row, column, action] = reward
        self.next_column[row, column, action] = next_column

    def values(self) -> NDArray[np.float64]:
        """Return the Q-values of all members, `[N, K, N, 2]`: by row, member, column and action."""
        q_values = self.prior.copy()
        following = np.zeros(q_values.shape[1:3])  # values of the cells of the next row; the last row ends the episode
        for row in reversed(range(self.size)):
            known = self.reward[row] + GAMMA * following[:, self.next_column[row]]
            q_values[row] = np.where(self.seen[row], known, self.prior[row])
            following = q_values[row].max(-1)
        return q_values


def first_success(size: int, members: int, prior_scale: float, seed: int, limit: int) -> int | None:
    """Return the number of the first episode that finds the treasure, or None if `limit` episodes do not."""
    rng = np.random.default_rng(seed)
    agent, env = ExactMembers(size, members, prior_scale, rng), DeepSea(size, one_hot=False)
    for episode in range(limit):
        if episode % ENVIRONMENTS == 0:
            q_values = agent.values()
        member, total, ended = rng.integers(members), 0.0, False
        cell, _ = env.reset()
        row = 0
        while not ended:
            column = int(cell) % size
            action = q_values[row, member, column].argmax()
            cell, reward, ended, _, _ = env.step(action)
            agent.see(row, column, int(action), reward, int(cell) % size)
            row, total = row + 1, total + reward
        if total > SUCCESS_ABOVE:
            return episode + 1
    return None


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, small seas first."""
    return [
        {"size": size, "members": members, "seed": seed}
        for size in sorted(options.sizes)
        for members in options.members
        for seed in options.seeds
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Play until the treasure is found."""
    found = first_success(cell["size"], cell["members"], options.prior_scale, cell["seed"], options.episodes)
    return {"first_success": found, "prior_scale": options.prior_scale, "episodes": options.episodes}


def table(rows: list[Row]) -> str:
    """Return median, least and greatest first success of the seeds that succeed, as Markdown, and how many do so."""
    lines = []
    for size in sorted({row["size"] for row in rows}):
        line: Row = {"N": size}
        for members in sorted({row["members"] for row in rows}):
            of_cell = [row for row in rows if (row["size"], row["members"]) == (size, members)]
            found = [row["first_success"] for row in of_cell if row["first_success"]]
            text = f"{statistics.median(found):g} ({min(found)} to {max(found)})" if found else "none"
            share = f", {len(found)} of {len(of_cell)} runs" if len(found) < len(of_cell) else ""
            line[f"{members} members"] = text + share
        lines.append(line)
    return markdown(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes, the numbers of members, the prior, the limit and the seeds."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 30, 50, 100], help="rows of the sea")
    parser.add_argument("--members", type=int, nargs="+", default=[5, 10, 20], help="numbers of members")
    parser.add_argument("--prior_scale", type=float, default=1, help="standard deviation of unknown values")
    parser.add_argument("--episodes", type=int, default=20_000, help="episodes after which a run is given up")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    add_arguments=add_arguments,
)
