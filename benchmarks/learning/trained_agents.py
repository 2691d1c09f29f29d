"""Play test games with the trained agents that come with the program.

    python -m benchmarks trained_agents                    # 100 games with each agent
    python -m benchmarks trained_agents --agents minatar --test_games 20
    python -m benchmarks trained_agents --most 0           # the table from the files alone

Each agent is the best checkpoint of `bayes-rl fit --config NAME`, seed 1 (`quickstart`: seed 4), exported by

    bayes-rl export runs/NAME/version_0/checkpoints/best.ckpt bayes_rl/trained_agents/NAME.safetensors

with `--half` for `quickstart`.

Test games have seeds that no training and no validation has. Each agent is a file in `docs/results/trained_agents/`.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from dataclasses import replace

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.training.export import bundled_agents, load_agent, read_export
from benchmarks.learning.silent_run import silence_lightning
from benchmarks.runner import Benchmark, Cell, Options, Row, markdown


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the agents. The digest of its file belongs to an agent, so that a new file is played again."""
    return [
        {"agent": name, "sha256": digest(name), "test_games": options.test_games} for name in sorted(options.agents)
    ]


def digest(name: str) -> str:
    """Return the SHA-256 of the file of an agent, in hexadecimal numbers."""
    return hashlib.sha256(bundled_agents()[name].read_bytes()).hexdigest()


def measure(cell: Cell, options: Options) -> Row:
    """Play whole greedy games by the rules of the agent's training."""
    silence_lightning()
    path = bundled_agents()[cell["agent"]]
    export = read_export(path)
    data = ReplayDataModule(**export["datamodule_hyper_parameters"])
    data.evaluation = replace(data.evaluation, games=cell["test_games"])
    scores = [float(game.score) for game in data.games("test").play(load_agent(path).act)]
    return {
        "env": data.settings.env,
        "frames": export["frames"],
        "bytes": path.stat().st_size,
        "mean": round(statistics.mean(scores), 2),
        "median": statistics.median(scores),
        "min": min(scores),
        "max": max(scores),
        "scores": scores,
    }


def table(rows: list[Row]) -> str:
    """Return the scores as Markdown."""
    lines = [
        {
            "agent": f"`{row['agent']}`",
            "plays": row["env"],
            "trained for frames": f"{row['frames']:,}",
            "size in MB": round(row["bytes"] / 1e6, 2),
            "test games": row["test_games"],
            "mean score": row["mean"],
            "median": row["median"],
            "range": f"{row['min']:g} to {row['max']:g}",
            "commit": f"`{row['commit'][:7]}`",
        }
        for row in sorted(rows, key=lambda row: row["agent"])
    ]
    return markdown(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the agents and the number of games."""
    names = list(bundled_agents())
    parser.add_argument("--agents", nargs="+", default=names, choices=names, help="agents to play; all by default")
    parser.add_argument("--test_games", type=int, default=100, help="games of each agent")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    add_arguments=add_arguments,
    shared={"jobs": 2},
    files="{agent}.json",
    child=True,
)
