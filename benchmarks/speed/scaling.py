"""Frames per second, learning included, and memory of this library as it grows: environments, batch, replay.

    python -m benchmarks scaling                     # all of it: six minutes on two cores
    python -m benchmarks scaling --axes batch_size --seconds 20
    python -m benchmarks scaling --keep --most 4     # in pieces: the next four processes

One quantity grows at a time, from 8 environments, a batch of 32 and a replay of 100 000 transitions: Breakout by
`configs/breakout.yaml`, one update per four agent steps, measured as in `libraries`, a process for each. The replay
is in memory-mapped files and full from the start, with copies of one screen: the system may take its pages back when it
needs them, so memory is given without them (own) and with them (peak).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure

from benchmarks.runner import Benchmark, Cell, Options, Row, markdown
from benchmarks.speed.contenders import SKIP, WARM_UP, Clock, Setting, Watch, run_bayes_rl, setting_of

AXES = {
    "num_envs": (1, 2, 4, 8, 16, 32, 64),
    "replay.batch_size": (8, 16, 32, 64, 128, 256),
    "replay.capacity": (10_000, 30_000, 100_000, 300_000, 1_000_000),
}
FROM = {"num_envs": 8, "replay.batch_size": 32, "replay.capacity": 100_000}


class Filled(Watch):
    """Callback that fills the replay before the first step, and ends the fit when the measured time is over."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fill the replay with copies of one screen."""
        replay: Any = trainer.datamodule.stream.replay  # type: ignore[attr-defined]
        count = replay.num_envs
        screens = np.random.default_rng(0).integers(0, 256, (count, *replay.screen_shape), np.uint8)
        actions, rewards, no = np.zeros(count, np.int64), np.zeros(count, np.float32), np.zeros(count, bool)
        for step in range(replay.ring):
            over = np.full(count, step % 1000 == 999 or step == replay.ring - 1)  # the next step begins another episode
            replay.add(screens, actions, rewards, no, over, no, screens)


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return every value of every axis, with its setting."""
    return [
        {"axis": axis, "value": value, **asdict(setting_at(FROM | {axis: value}, options.threads, options.precision))}
        for axis in options.axes
        for value in AXES[axis]
    ]


def setting_at(point: dict[str, int], threads: int, precision: str) -> Setting:
    """Return the setting of a point of the grid."""
    words = {f"data.{key}": value for key, value in point.items() if key != "num_envs"}
    return Setting("bayes_rl", point["num_envs"], threads, words | {"trainer.precision": precision}, "scaling")


def own_mib() -> float:
    """Return the present memory of this process in MiB, without files mapped into it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["RssAnon"].split()[0]) / 1024, 1)


def measure(cell: Cell, options: Options) -> Row:
    """Measure the setting of one cell in this process."""
    clock = Clock(options.seconds, begin=WARM_UP)  # a full replay needs no random steps
    with tempfile.TemporaryDirectory() as folder:
        known = run_bayes_rl(setting_of(cell), clock, folder, "benchmarks.speed.scaling.Filled")
    return clock.result() | known | {"own_mib": own_mib()}


def table(rows: list[Row]) -> str:
    """Return rates and memory along each axis as Markdown."""
    return markdown(rows, ("axis", "value", "frames_per_second", "updates_per_second", "own_mib", "peak_mib"))


def draw(rows: list[Row]) -> Figure:
    """Draw rates and memory along each axis."""
    axes = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(4.4 * len(axes), 3.4), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)
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
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the axes and the precision."""
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--precision", default="32-true", help="precision of the trainer")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    add_arguments=add_arguments,
    shared={"threads": 2, "seconds": 6},
    facts=lambda options: {"frame_skip": SKIP},
    child=True,
)
