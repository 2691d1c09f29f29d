"""What a checkpoint costs with a small replay and with a large one: seconds, and bytes that go to the disk.

    python benchmarks/checkpoint_time.py [--rounds 15] [--capacities 10000 500000] [--screens minatar atari]

One agent, and replays of two capacities in files, both full. In turn each stores the same new steps, then is saved as a
run is: files of the replay, its positions and the agent, the manifest, each brought to disk. Medians over
rounds, and of the ratio of the two; bytes are those that the kernel counts for this process. Written to
`docs/results/checkpoints.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bayes_cost import make_agent, updater
from common import origin, write

from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO

SCREENS = {"minatar": (4, 10, 10), "atari": (1, 84, 84)}
ENCODERS = {"minatar": "minatar", "atari": "nature"}
ENVS = 8


def written() -> int:
    """Bytes that this process has sent, or made due to be sent, to a disk; 0 where the kernel does not count."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(dict(line.split(": ") for line in text.splitlines())["write_bytes"])


def fill(replay: ReplayBuffer, steps: int, rng: np.random.Generator) -> None:
    """Store so many steps of every environment: random screens, no episode ends."""
    no = np.zeros(ENVS, bool)
    for _ in range(steps):
        screens = rng.integers(0, 256, (ENVS, *replay.screen_shape), np.uint8)
        replay.add(screens, np.zeros(ENVS, np.int64), np.zeros(ENVS, np.float32), no, no, no, screens)


def measure(screens: str, capacities: list[int], steps: int, rounds: int, directory: Path) -> dict[str, Any]:
    """Medians for both capacities, and of their ratio in each round."""
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
        "ratio_quartiles": [round_to(q) for q in statistics.quantiles(ratios, n=4)],
        "ratio_of_medians": round_to(statistics.median(seconds[large]) / statistics.median(seconds[small])),
    }


def round_to(value: float) -> float:
    """Three decimals."""
    return round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each capacity")
    parser.add_argument("--steps", type=int, default=300, help="new steps of each of 8 environments before a save")
    parser.add_argument("--capacities", type=int, nargs=2, default=[10_000, 500_000], help="smaller one first")
    parser.add_argument("--screens", nargs="+", default=list(SCREENS), choices=list(SCREENS))
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: the temporary one")
    parser.add_argument("--output", type=Path, default=Path("docs/results/checkpoints.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {**origin(" ".join(["python", *sys.argv])), "rounds": options.rounds}
    for screens in options.screens:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            sizes = screens, options.capacities, options.steps, options.rounds
            result[screens] = measure(*sizes, Path(directory))
        print(screens, result[screens], flush=True)
    write(options.output, result)


if __name__ == "__main__":
    main()
