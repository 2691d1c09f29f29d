"""Frames per second, learning included, and memory of this library as it grows: environments, batch, replay.

    python benchmarks/scaling.py                     # all of it: six minutes on two cores
    python benchmarks/scaling.py --axes batch_size --seconds 20
    python benchmarks/scaling.py --keep --most 4     # in pieces: the next four processes

One thing grows at a time, from 8 environments, a batch of 32 and a replay of 100 000 transitions: Breakout by
`configs/breakout.yaml`, one update per four agent steps, measured as in `end_to_end.py`, a process for each. The replay
is in memory-mapped files and full from the start, with copies of one screen: the system may take its pages back when it
needs them, so memory is given without them (own) and with them (peak). Written to `docs/results/scaling.json` and
`.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from arms import SKIP, WARM_UP, Cell, Clock, Watch, run_bayes_rl
from common import RESULTS, origin, write
from end_to_end import measure_apart

AXES = {
    "num_envs": (1, 2, 4, 8, 16, 32, 64),
    "batch_size": (8, 16, 32, 64, 128, 256),
    "replay_capacity": (10_000, 30_000, 100_000, 300_000, 1_000_000),
}
FROM = {"num_envs": 8, "batch_size": 32, "replay_capacity": 100_000}


class Filled(Watch):
    """Fills the replay before the first step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        replay: Any = trainer.datamodule.stream.replay  # type: ignore[attr-defined]
        count = replay.num_envs
        screens = np.random.default_rng(0).integers(0, 256, (count, *replay.screen_shape), np.uint8)
        actions, rewards, no = np.zeros(count, np.int64), np.zeros(count, np.float32), np.zeros(count, bool)
        for step in range(replay.ring):
            over = np.full(count, step % 1000 == 999 or step == replay.ring - 1)  # what follows is another episode
            replay.add(screens, actions, rewards, no, over, no, screens)


def cells(axes: list[str], threads: int, precision: str) -> list[tuple[str, int, Cell]]:
    """Axis, its value, and what to measure."""
    settings = [(axis, value, FROM | {axis: value}) for axis in axes for value in AXES[axis]]
    return [(axis, value, cell_of(point, threads, precision)) for axis, value, point in settings]


def cell_of(point: dict[str, int], threads: int, precision: str) -> Cell:
    """What a point of the grid is on the command line."""
    words = {f"data.{key}": value for key, value in point.items() if key != "num_envs"}
    return Cell("bayes_rl", point["num_envs"], threads, words | {"trainer.precision": precision}, "scaling")


def own_mib() -> float:
    """Memory of this process now, without files mapped into it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["RssAnon"].split()[0]) / 1024, 1)


def measure(cell: Cell, seconds: float, folder: str) -> dict[str, Any]:
    """Measure one cell in this process."""
    clock = Clock(seconds, begin=WARM_UP)  # a full replay needs no steps at random
    known = run_bayes_rl(cell, clock, folder, "scaling.Filled")
    return asdict(cell) | clock.result() | known | {"own_mib": own_mib()}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Rates and memory along each axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure, panels = plt.subplots(1, len(axes), figsize=(4.4 * len(axes), 3.4), layout="constrained", squeeze=False)
    for axis, panel in zip(axes, panels[0], strict=True):
        points = sorted((row["value"], row) for row in rows if row["axis"] == axis)
        values = [value for value, _ in points]
        panel.plot(values, [row["frames_per_second"] for _, row in points], "o-", color="tab:blue")
        top = 1.1 * max(row["frames_per_second"] for _, row in points)
        panel.set(xscale="log", ylim=(0, top), xlabel=axis.replace("_", " "), title=f"along {axis.replace('_', ' ')}")
        panel.set_xticks(values, [f"{value:,}" for value in values], fontsize=7)
        panel.minorticks_off()
        memory = panel.twinx()
        memory.plot(values, [row["own_mib"] / 1024 for _, row in points], "s--", color="tab:gray", label="own")
        memory.plot(values, [row["peak_mib"] / 1024 for _, row in points], "^:", color="tab:gray", label="with files")
        memory.set_ylim(0, None)
    panels[0][0].set_ylabel("frames per second, learning", color="tab:blue")
    memory.set_ylabel("memory in GiB", color="tab:gray")
    memory.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--precision", default="32-true", help="of the trainer")
    parser.add_argument("--seconds", type=float, default=6, help="measured of each process")
    parser.add_argument("--keep", action="store_true", help="go on with the measurements that the file has")
    parser.add_argument("--most", type=int, default=10**6, help="processes now; the others with --keep")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child:
        import scaling  # as the command line finds the callback: not this copy of it, which is called __main__

        with tempfile.TemporaryDirectory() as folder:
            write(options.output, scaling.measure(Cell(**json.loads(options.child)), options.seconds, folder))
        return
    before = json.loads(options.output.read_text()) if options.keep and options.output.exists() else {}
    rows = before.get("measurements", [])
    source = {**origin("python benchmarks/scaling.py"), "frame_skip": SKIP, "seconds": options.seconds}
    todo = cells(options.axes, options.threads, options.precision)
    todo = [point for point in todo if not any((row["axis"], row["value"]) == point[:2] for row in rows)]
    for axis, value, cell in todo[: options.most]:
        result = measure_apart(__file__, cell, options.seconds)
        if isinstance(result, str):
            print(f"{axis} {value} failed: {result}", file=sys.stderr, flush=True)
            continue
        rows.append({"axis": axis, "value": value} | result)
        print(f"{axis} {value}: {result['frames_per_second']:.0f} frames/s, {result['own_mib']:.0f} MiB", flush=True)
        write(options.output, {**source, "measurements": rows})
        draw(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
