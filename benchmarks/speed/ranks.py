"""Frames per second of two ranks against one, learning included.

    python -m benchmarks ranks                               # MinAtar and Nature, five turns: 15 minutes on two cores
    python -m benchmarks ranks --tasks minatar --rounds 3

Two ranks have twice the environments and twice the batch of one, and half the updates per frame. Torch has one thread
in every rank. One rank alone keeps two cores busy in part, with the learner's second thread and the emulators. One rank
is therefore measured on one core and on two. The three take turns, and each turn gives two ratios. A measurement is a
fit by the command line, between two updates: the first updates, the prefill and the games are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown, quartiles

TASKS = {
    "minatar": ["--config=minatar", "--data.num_envs={envs}"],
    "nature": ["--config=breakout", "--data.num_envs={envs}", "--trainer.precision=32-true"],
}
"""Words of a fit. `{envs}` becomes the number of environments."""

ARMS = (1, 1), (1, 2), (2, 2)
"""Ranks, and the cores that they have together."""

ENVS, BATCH, RATE = 8, 32, 0.25  # of one rank
WARM_UP = 50  # updates before the measured time


class Stopwatch(Callback):
    """Writer of frames and seconds between two updates to a file, on rank 0.

    Args:
        path: of the file.
        updates: measured updates.
    """

    def __init__(self, path: str, updates: int) -> None:
        self.path, self.updates = Path(path), updates
        self._began = (0.0, 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Note the first moment, and write what has passed at the last one."""
        now, frames = time.perf_counter(), trainer.datamodule.stream.frames  # type: ignore[attr-defined]
        if trainer.global_step == WARM_UP:
            self._began = now, frames
        if trainer.global_step == WARM_UP + self.updates and trainer.is_global_zero:
            gradients = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
            passed = {"seconds": now - self._began[0], "frames": frames - self._began[1], "gradients": gradients}
            self.path.write_text(json.dumps(passed))


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the turns, every second one in the opposite order."""
    return [
        {"task": task, "turn": turn, "ranks": ranks, "cores": cores}
        for task in options.tasks
        for turn in range(options.rounds)
        for ranks, cores in (ARMS if turn % 2 == 0 else ARMS[::-1])
    ]


def words_of(cell: Cell, updates: int, folder: str) -> list[str]:
    """Return the words of the fit of a cell."""
    ranks = cell["ranks"]
    stopwatch = {"class_path": f"{__name__}.Stopwatch", "init_args": {"path": f"{folder}/passed", "updates": updates}}
    return [
        *("fit", *(word.format(envs=ENVS * ranks) for word in TASKS[cell["task"]])),
        *("--trainer.accelerator=cpu", f"--trainer.devices={ranks}", f"--trainer.default_root_dir={folder}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.max_steps={WARM_UP + updates}", "--trainer.limit_val_batches=0"),
        f"--trainer.callbacks+={json.dumps(stopwatch)}",
        *(f"--data.replay.batch_size={BATCH * ranks}", f"--data.updates_per_step={RATE / ranks}"),
        *("--data.replay.capacity=50000", "--data.replay.min_size=1000"),
        *("--data.evaluation.games=2", "--data.rules.max_episode_frames=400"),
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Run the fit of one cell."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "cli.py"), *words_of(cell, options.updates // cell["ranks"], folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with on_cores(cell["cores"]):
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        path = Path(folder, "passed")
        if not path.is_file():
            raise RuntimeError(f"the fit ended with code {done.returncode}: {done.stderr[-2000:]}")
        passed = json.loads(path.read_text())
    return {
        "frames_per_second": round(passed["frames"] / passed["seconds"], 1),
        "frames": passed["frames"],
        "seconds": round(passed["seconds"], 2),
        "updates": options.updates // cell["ranks"],
        "gradients": passed["gradients"],
    }


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Limit this process, and the processes that it starts, to `count` cores within this block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def summarize(rows: list[Row]) -> list[Row]:
    """Return the rates of each arm, and the quartiles over turns of two ranks relative to one, for each task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        rates = {(row["turn"], row["ranks"], row["cores"]): row["frames_per_second"] for row in of_task}
        turns = [t for t in dict.fromkeys(turn for turn, *_ in rates) if all((t, *arm) in rates for arm in ARMS)]
        if turns:
            one, one_of_two, two = ([rates[turn, *arm] for turn in turns] for arm in ARMS)
            found.append(
                {
                    "task": task,
                    "turns": len(turns),
                    "one_rank_one_core": quartiles(one),
                    "one_rank_two_cores": quartiles(one_of_two),
                    "two_ranks": quartiles(two),
                    "to_one_core": quartiles([b / a for a, b in zip(one, two, strict=True)]),
                    "to_two_cores": quartiles([b / a for a, b in zip(one_of_two, two, strict=True)]),
                }
            )
    return found


def table(rows: list[Row]) -> str:
    """Return the rates and ratios as Markdown."""
    return markdown(summarize(rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and the length of a measurement."""
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--updates", type=int, default=400, help="measured updates of one rank; two ranks take half")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    summarize=summarize,
    add_arguments=add_arguments,
    shared={"rounds": 5},
)
