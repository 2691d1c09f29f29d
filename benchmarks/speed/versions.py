"""Frames per second of the quickstart, learning included, of this version and of an earlier one, in turns.

    git worktree add --detach ../earlier 852c601
    python -m benchmarks versions ../earlier [--rounds 20] [--updates 25] [--warm-up 60]

Each arm is a fit in a process of its own that learns for a few updates and waits while the others do. All start
with epsilon 0.05, so that 95 % of the actions come from the policy. The arms:

- `earlier`: the quickstart of the other checkout, with that checkout's code;
- `same`: this version with the options of 0.1.0's quickstart: all channels, mean-field heads, random actions;
- `quickstart`: this version's quickstart, with half the channels, a Gaussian process and learned noise of returns.

The first row is measured beside no other process of this benchmark, the second one beside a process that keeps one core
busy. A row holds the milliseconds of a cycle, which is one update and the agent steps before it: by the wall clock, by
the processor time of all threads, and by that of the main thread. A speed is the time of `earlier` divided by the time
of the arm in the same round, so that above 1 is faster. All numbers are medians over rounds. On a machine that does
other work the wall clock depends on that work; the load is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row

SCRIPT = Path(__file__).with_name("fit_in_turns.py")
CLOCKS = ("wall", "cpu", "main")
SAME = {
    "model.network.width": "1",
    "model.network.bayesian": "heads",
    "model.network.prior_function_scale": "0",
    "model.exploration": "epsilon",
    "model.likelihood.family": "gaussian",
    "model.optimizer.schedule": "constant",
}
"""Options of 0.1.0's quickstart that take other time than those of this version's quickstart."""


def arms(earlier: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return the checkout and the options of each arm."""
    same = [word for name, value in SAME.items() for word in (f"--{name}", value)]
    old = not (earlier / "bayes_rl" / "data").is_dir()  # the names of 0.1.0
    return {
        "earlier": (earlier, ["--data.epsilon_start" if old else "--data.epsilon.start", "0.05"]),
        "same": (ROOT, ["--data.epsilon.start", "0.05", *same]),
        "quickstart": (ROOT, ["--data.epsilon.start", "0.05"]),
    }


@contextmanager
def fit(checkout: Path, options: list[str], warm_up: int, updates: int) -> Iterator[subprocess.Popen[str]]:
    """Yield a fit that has ended its warm-up.

    Raises:
        RuntimeError: if the fit ended.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, str(SCRIPT), str(checkout), str(warm_up), str(updates)]
    words += ["--config", str(checkout / "configs" / "quickstart.yaml"), *options]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            if read(process) != "ready":
                raise RuntimeError(f"{checkout}: {Path(folder, 'log').read_text()[-500:]}")
            yield process
        finally:
            process.kill()
            process.wait()


def read(process: subprocess.Popen[str]) -> str:
    """Return the next line of a fit."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def turn(process: subprocess.Popen[str]) -> dict[str, float]:
    """Let a fit learn for a turn, and return the milliseconds of a frame by each clock."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    found = json.loads(read(process))
    return {clock: 1000 * found[clock] / found["frames"] for clock in CLOCKS}


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep as many cores busy as `number` says, each by a process of its own, inside the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the numbers of busy processes beside which the arms take turns."""
    return [{"benchmark": "versions", "busy": busy} for busy in (0, 1)]


def measure(cell: Cell, options: Options) -> Row:
    """Measure all arms in turns, in another order every second round."""
    chosen = arms(options.earlier.resolve())
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with ExitStack() as stack:
        stack.enter_context(busy_processes(cell["busy"]))
        fits = {
            name: stack.enter_context(fit(checkout, words, options.warm_up, options.updates))
            for name, (checkout, words) in chosen.items()
        }
        for number in range(options.rounds):
            for name in list(fits)[:: 1 if number % 2 == 0 else -1]:
                turns[name].append(turn(fits[name]))
    row: Row = {"load": round(os.getloadavg()[1], 1)}
    for name, measured in turns.items():
        for clock in CLOCKS:
            values = [found[clock] for found in measured]
            # A cycle is 16 agent steps of 4 frames, and an update.
            row[f"{name}_{clock}_ms"] = round(64 * statistics.median(values), 2)
            ratios = [before[clock] / value for before, value in zip(turns["earlier"], values, strict=True)]
            row[f"{name}_{clock}_speed"] = round(statistics.median(ratios), 3)
        row[f"{name}_frames_per_second"] = round(1000 / statistics.median(found["wall"] for found in measured))
    return row


def table(rows: list[Row]) -> str:
    """Return a line for each arm, as Markdown."""
    lines = [
        "| busy cores | arm | frames/s | wall, ms | all threads | main thread | speed | by main thread |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        for name in ("earlier", "same", "quickstart"):
            times = " | ".join(f"{row[f'{name}_{clock}_ms']:.1f}" for clock in CLOCKS)
            speeds = f"{row[f'{name}_wall_speed']:.2f} | {row[f'{name}_main_speed']:.2f}"
            lines.append(f"| {row['busy']} | {name} | {row[f'{name}_frames_per_second']} | {times} | {speeds} |")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the other checkout and the lengths of warm-up and turns."""
    parser.add_argument("earlier", type=Path, help="checkout of the earlier version")
    parser.add_argument("--updates", type=int, default=25, help="updates of a turn")
    parser.add_argument("--warm-up", type=int, default=60, help="updates before the first turn")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    add_arguments=add_arguments,
    shared={"rounds": 20},
)
