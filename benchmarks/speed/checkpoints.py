"""Cost of a checkpoint with a small replay and with a large one: seconds, and bytes written to the disk.

    python -m benchmarks checkpoints [--rounds 15] [--capacities 10000 500000] [--screens minatar atari]

One agent, and replays of two capacities in files, both full. In turn each stores the same new steps and is then saved
as a run is: files of the replay, its positions and the agent, and the manifest, each brought to disk. Results are
medians over rounds, and the median of the ratio of both. Bytes are those that the kernel counts for this process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO
from benchmarks.runner import Benchmark, Cell, Options, Row
from benchmarks.speed.bayesian_heads import exclusive_quartiles, make_agent, round_to, updater

SCREENS = {"minatar": (4, 10, 10), "atari": (1, 84, 84)}
ENCODERS = {"minatar": "minatar", "atari": "nature"}
ENVS = 8


def written() -> int:
    """Return the bytes that this process wrote to a disk or scheduled to write; 0 where the kernel does not count."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])


def fill(replay: ReplayBuffer, steps: int, rng: np.random.Generator) -> None:
    """Store `steps` steps of every environment: random screens, no episode ends."""
    no = np.zeros(ENVS, bool)
    for _ in range(steps):
        screens = rng.integers(0, 256, (ENVS, *replay.screen_shape), np.uint8)
        replay.add(screens, np.zeros(ENVS, np.int64), np.zeros(ENVS, np.float32), no, no, no, screens)


def compare(screens: str, capacities: list[int], steps: int, rounds: int, directory: Path) -> Row:
    """Save with both capacities in turn and return medians, and those of the ratio in each round."""
    agent = make_agent(ENCODERS[screens])
    update = updater(agent, ENCODERS[screens])
    update()
    shape, plugin = SCREENS[screens], AtomicCheckpointIO()
    replays = {}
    for capacity in capacities:
        folder = directory / f"{screens}{capacity}"
        replays[capacity] = ReplayBuffer(
            capacity, ENVS, shape, np.dtype(np.uint8), slack=steps + steps // 4, directory=folder
        )
        fill(replays[capacity], replays[capacity].slots, np.random.default_rng(0))
        replays[capacity].state_dict()
    os.sync()
    seconds: dict[int, list[float]] = {capacity: [] for capacity in capacities}
    sizes: dict[int, list[int]] = {capacity: [] for capacity in capacities}
    for round in range(rounds):
        for capacity in sorted(capacities, reverse=round % 2 == 1):
            before = written()
            fill(replays[capacity], steps, np.random.default_rng(round))
            begin = time.perf_counter()
            state = {"replay": replays[capacity].state_dict(), "state_dict": agent.state_dict()}
            plugin.save_checkpoint(state, directory / f"{screens}{capacity}" / "last.ckpt")
            seconds[capacity].append(time.perf_counter() - begin)
            sizes[capacity].append(written() - before)
    small, large = capacities
    ratios = [b / a for a, b in zip(seconds[small], seconds[large], strict=True)]
    return {
        **{f"{capacity}_ms": round_to(1000 * statistics.median(seconds[capacity])) for capacity in capacities},
        **{f"{capacity}_mib_written": round_to(statistics.median(sizes[capacity]) / 2**20) for capacity in capacities},
        **{f"{capacity}_replay_mib": round_to(replays[capacity].nbytes / 2**20) for capacity in capacities},
        "new_mib": round_to(steps * ENVS * int(np.prod(shape)) / 2**20),
        "ratio_median": round_to(statistics.median(ratios)),
        "ratio_quartiles": exclusive_quartiles(ratios),
        "ratio_of_medians": round_to(statistics.median(seconds[large]) / statistics.median(seconds[small])),
    }


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return one cell for each size of screens."""
    return [{"screens": screens} for screens in options.screens]


def measure(cell: Cell, options: Options) -> Row:
    """Compare both capacities with screens of one size."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        return compare(cell["screens"], options.capacities, options.steps, options.rounds, Path(directory))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the replays and the disk to measure."""
    parser.add_argument("--steps", type=int, default=300, help="new steps of each of 8 environments before a save")
    parser.add_argument("--capacities", type=int, nargs=2, default=[10_000, 500_000], help="smaller one first")
    parser.add_argument("--screens", nargs="+", default=list(SCREENS), choices=list(SCREENS))
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: the temporary one")


BENCHMARK = Benchmark(
    description=__doc__, cells=cells, measure=measure, add_arguments=add_arguments, shared={"rounds": 15}
)
