"""DeepSea of every size: episodes until solved, by Thompson sampling and by epsilon-greedy.

    python -m benchmarks deep_sea [--sizes 10 12 ... 50] [--agents thompson epsilon] [--jobs 2]

A size is solved at the first episode where the share of bad episodes so far falls below 0.9 (bsuite's criterion), and
given up after `--episodes` of them. Each finished run is a file in `docs/results/deep_sea/`. Runs whose file exists are
not repeated, so that a stopped sweep continues. The table and the plot show all files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from benchmarks.learning.episodes import EpisodeLog
from benchmarks.learning.silent_run import prepare_run, silence_lightning
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row

SIZES = list(range(10, 51, 2))
SOLVED_BELOW = 0.9  # share of bad episodes
GOOD_ABOVE = 0.5  # return; that of the treasure is 1 less the cost of the way
# The same networks without members and prior functions, with random actions instead.
EPSILON = {
    "model": {
        "network": {"bayesian": "heads", "prior_function_scale": 0.0},
        "posterior": {"family": "mean_field"},
        "exploration": "epsilon",
    },
    "data": {"epsilon": {"start": 1.0, "end": 0.1, "decay_frames": 20_000}},
}


def solved_after(returns: Sequence[float]) -> int | None:
    """Return the number of episodes after which the share of bad ones is below 0.9 for the first time, or None."""
    bad = np.cumsum(np.asarray(returns) <= GOOD_ABOVE)
    reached = np.flatnonzero(bad / np.arange(1, len(bad) + 1) < SOLVED_BELOW)
    return int(reached[0]) + 1 if len(reached) else None


def run(size: int, agent: str, seed: int, limit: int) -> Row:
    """Train one agent on one size; return its episodes, updates and minutes."""
    config = yaml.safe_load((ROOT / "configs" / "deep_sea.yaml").read_text())
    changes: dict[str, Any] = EPSILON if agent == "epsilon" else {"model": {}, "data": {}}
    env_kwargs = config["data"]["env_kwargs"] | {"size": size}
    for section, options in changes.items():
        for key, value in options.items():
            config[section][key] = config[section].get(key, {}) | value if isinstance(value, dict) else value
    # The run is one epoch, without evaluations in between.
    config["data"] |= {"env_kwargs": env_kwargs, "frames_per_epoch": size * limit}
    is_over = lambda log: len(log.returns) >= limit or solved_after(log.returns) is not None  # noqa: E731
    log = EpisodeLog(is_over, lambda log: f"{agent} {size}: {len(log.returns)} episodes, {log.seconds:.0f} s")
    data, module, trainer = prepare_run(config, seed, max_epochs=1, limit_val_batches=0, callbacks=[log])
    trainer.fit(module, datamodule=data)
    good = [i for i, score in enumerate(log.returns, 1) if score > GOOD_ABOVE]
    return {
        "agent": agent,
        "size": size,
        "seed": seed,
        "solved_after_episodes": solved_after(log.returns),
        "first_good_episode": good[0] if good else None,
        "good_episodes": len(good),
        "episodes": len(log.returns),
        "updates": module.global_step,
        "minutes": round(log.seconds / 60, 2),
    }


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, the shortest first."""
    return [
        {"agent": agent, "size": size, "seed": options.seed}
        for size in sorted(options.sizes)
        for agent in options.agents
        if agent == "thompson" or size in options.epsilon_sizes
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Train one agent on one size."""
    silence_lightning()
    return run(cell["size"], cell["agent"], cell["seed"], options.episodes)


def table(rows: list[Row]) -> str:
    """Return all finished runs as Markdown."""
    lines = [
        "| agent | N | seed | solved after episodes | first success | episodes played | updates | minutes | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["agent"], row["size"], row["seed"])):
        solved = row["solved_after_episodes"] or f"not in {row['episodes']}"
        columns = [row["agent"], row["size"], row["seed"], solved, row["first_good_episode"] or "-", row["episodes"]]
        columns += [row["updates"], row["minutes"], f"`{row['commit'][:7]}`"]
        lines.append("| " + " | ".join(str(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row]) -> Figure:
    """Draw the episodes until solved against the size."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for agent, marker in (("thompson", "o"), ("epsilon", "s")):
        for solved in (True, False):
            found = [row for row in rows if row["agent"] == agent and bool(row["solved_after_episodes"]) == solved]
            if found:
                x, y = zip(
                    *((row["size"], row["solved_after_episodes"] or row["episodes"]) for row in found), strict=True
                )
                axes.plot(x, y, marker if solved else "x", label=agent if solved else f"{agent}: not solved")
    axes.plot(range(5, 20), [2**n for n in range(5, 20)], "--", color="grey", label="2^N: dithering")
    axes.axhline(10_000, color="grey", linewidth=0.5)
    axes.set(yscale="log", xlabel="size N", ylabel="episodes until solved", title="DeepSea", ylim=(20, 20_000))
    axes.legend()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes, the agents, the limit and the seed."""
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sizes of the sweep")
    parser.add_argument("--agents", nargs="+", default=["thompson", "epsilon"], choices=("thompson", "epsilon"))
    parser.add_argument("--epsilon_sizes", type=int, nargs="+", default=[10, 14, 20], help="sizes for epsilon-greedy")
    parser.add_argument("--episodes", type=int, default=10_000, help="episodes after which a size is given up")
    parser.add_argument("--seed", type=int, default=1)


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    add_arguments=add_arguments,
    shared={"jobs": 2},
    files="{agent}_size{size}_seed{seed}.json",
    child=True,
    show_output=True,
)
