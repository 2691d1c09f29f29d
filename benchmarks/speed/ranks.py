"""Frames per second of two ranks against one, learning included.

    python -m benchmarks ranks                               # MinAtar and Nature, five turns: 20 minutes on two cores
    python -m benchmarks ranks --tasks minatar --rounds 3

Two ranks have twice the environments and twice the batch of one, and half the updates per frame. Torch has one thread
in every rank. One rank alone keeps two cores busy in part, with the learner's second thread and the emulators. One rank
is therefore measured on one core and on two. Two runs that exchange nothing, a core for each, show what two ranks could
reach without an exchange. The four take turns, and each turn gives ratios. A measurement is a fit by the command line,
between two updates: the first updates, the prefill and the games are not measured. All arms measure as many updates,
because some updates cost more than others.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown, quartiles

TASKS = {
    "minatar": ["--config=minatar", "--data.num_envs={envs}"],
    "nature": ["--config=breakout", "--data.num_envs={envs}", "--trainer.precision=32-true"],
}
"""Words of a fit. `{envs}` becomes the number of environments."""

ARMS = {"one_rank_one_core": (1, 1, 1), "one_rank_two_cores": (1, 1, 2), "two_ranks": (1, 2, 2), "two_runs": (2, 1, 1)}
"""Arms: number of runs at a time, ranks of a run, and cores of a run."""

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
        {"task": task, "turn": turn, "arm": arm}
        for task in options.tasks
        for turn in range(options.rounds)
        for arm in (ARMS if turn % 2 == 0 else reversed(ARMS))
    ]


def words_of(task: str, ranks: int, updates: int, folder: str) -> list[str]:
    """Return the words of a fit."""
    stopwatch = {"class_path": f"{__name__}.Stopwatch", "init_args": {"path": f"{folder}/passed", "updates": updates}}
    return [
        *("fit", *(word.format(envs=ENVS * ranks) for word in TASKS[task])),
        *("--trainer.accelerator=cpu", f"--trainer.devices={ranks}", f"--trainer.default_root_dir={folder}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.max_steps={WARM_UP + updates}", "--trainer.limit_val_batches=0"),
        f"--trainer.callbacks+={json.dumps(stopwatch)}",
        *(f"--data.replay.batch_size={BATCH * ranks}", f"--data.updates_per_step={RATE / ranks}"),
        *("--data.replay.capacity=50000", "--data.replay.min_size=1000"),
        *("--data.evaluation.games=2", "--data.rules.max_episode_frames=400"),
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Run the fits of one cell."""
    runs, ranks, cores = ARMS[cell["arm"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with ExitStack() as started:
        passed = []
        for run in range(runs):
            folder = started.enter_context(tempfile.TemporaryDirectory())
            command = [sys.executable, str(ROOT / "cli.py"), *words_of(cell["task"], ranks, options.updates, folder)]
            with on_cores(cores, first=run), open(Path(folder, "errors"), "w") as errors:
                process = subprocess.Popen(command, cwd=folder, env=environment, stdout=errors, stderr=errors)
            started.callback(process.kill)
            passed.append((Path(folder), process))
        rows = [passed_of(folder, process) for folder, process in passed]
    return {
        "frames_per_second": round(sum(row["frames"] / row["seconds"] for row in rows), 1),
        "frames": sum(row["frames"] for row in rows),
        "seconds": round(max(row["seconds"] for row in rows), 2),
        "updates": options.updates,
        "gradients": rows[0]["gradients"],
    }


def passed_of(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return what the stopwatch of a fit has written, once the fit has ended.

    Raises:
        RuntimeError: if it has written nothing.
    """
    process.wait()
    path = folder / "passed"
    if not path.is_file():
        raise RuntimeError(f"the fit ended with code {process.returncode}: {(folder / 'errors').read_text()[-2000:]}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@contextmanager
def on_cores(count: int, first: int = 0) -> Iterator[None]:
    """Limit this process, and the processes that it starts, to `count` cores from number `first` on, in this block."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[number % len(cores)] for number in range(first, first + count)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def summarize(rows: list[Row]) -> list[Row]:
    """Return the rates of each arm, and the quartiles over turns of their ratios to one rank, for each task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        rates = {(row["turn"], row["arm"]): row["frames_per_second"] for row in rows if row["task"] == task}
        turns = [t for t in dict.fromkeys(turn for turn, _ in rates) if all((t, arm) in rates for arm in ARMS)]
        if turns:
            of_arm = {arm: [rates[turn, arm] for turn in turns] for arm in ARMS}

            def ratio(arm: str, base: str, of_arm: dict[str, list[float]] = of_arm) -> list[float]:
                return quartiles([b / a for a, b in zip(of_arm[base], of_arm[arm], strict=True)])

            found.append(
                {
                    "task": task,
                    "turns": len(turns),
                    **{arm: quartiles(of_turns) for arm, of_turns in of_arm.items()},
                    "to_one_core": ratio("two_ranks", "one_rank_one_core"),
                    "to_two_cores": ratio("two_ranks", "one_rank_two_cores"),
                    "runs_to_one_core": ratio("two_runs", "one_rank_one_core"),
                }
            )
    return found


def table(rows: list[Row]) -> str:
    """Return the rates and ratios as Markdown."""
    return markdown(summarize(rows))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tasks and the length of a measurement."""
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--updates", type=int, default=400, help="measured updates of each arm")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    summarize=summarize,
    add_arguments=add_arguments,
    shared={"rounds": 5},
)
