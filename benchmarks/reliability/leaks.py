"""Growth of a long run: memory, open files and threads over 100 000 updates of CartPole.

    python -m benchmarks leaks [--updates 100000] [--every 10000]

A run of the real command line, with its logs, validations and checkpoints, records its own resources. Memory is what
lies in RAM (`VmRSS` of /proc/self/status): its own (`RssAnon`), and files mapped into it (`RssFile`: the libraries, and
the replay, whose pages the system reclaims when it needs them). The exit status is 1 if the own memory or all memory is
more than 5 % above that of the first row, or if there are more files or threads than in the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown

EPOCH = 20_000  # frames: 5 000 updates, so that the first row follows a validation and its picture


class Watch(Callback):
    """Callback that records memory, open files and threads of the process.

    Args:
        every: updates between two rows.
    """

    rows: list[dict[str, float]] = []  # noqa: RUF012  (rows of the only run in this process)

    def __init__(self, every: int = 10_000) -> None:
        self.every = every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Add a row after every `every` updates."""
        if trainer.global_step % self.every == 0:
            row = {"updates": trainer.global_step, "seconds": round(time.perf_counter() - self._began, 1)} | resources()
            Watch.rows.append(row)
            print(row, flush=True)


def resources() -> dict[str, float]:
    """Return the memory of this process in MiB, its open files and its threads."""
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    status = {key: value.split() for key, value in lines}
    memory = {"rss_mib": "VmRSS", "own_mib": "RssAnon", "mapped_mib": "RssFile", "shared_mib": "RssShmem"}
    sizes = {name: round(int(status[key][0]) / 1024, 1) for name, key in memory.items()}
    return sizes | {"files": len(os.listdir("/proc/self/fd")), "threads": int(status["Threads"][0])}


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the one run of this benchmark."""
    return [{"updates": options.updates, "every": options.every}]


def measure(cell: Cell, options: Options) -> Row:
    """Train in this process and return the growth from the first row to the last."""
    watch = {"class_path": "benchmarks.reliability.leaks.Watch", "init_args": {"every": cell["every"]}}
    settings = {
        "trainer.max_epochs": -(-cell["updates"] // (EPOCH // 4)),
        "trainer.max_steps": cell["updates"],
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks+": json.dumps(watch),
        "data.frames_per_epoch": EPOCH,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    from bayes_rl.cli import app as cli

    with tempfile.TemporaryDirectory() as folder:
        words.append(f"--trainer.default_root_dir={folder}")
        sys.argv = ["cli.py", "fit", "--config", str(ROOT / "configs/cartpole.yaml"), *words]
        cli.run()
    first, last = Watch.rows[0], Watch.rows[-1]
    growth = {key: round(last[key] / first[key], 4) for key in ("rss_mib", "own_mib", "mapped_mib")}
    more = {key: last[key] - first[key] for key in ("files", "threads")}
    return {"growth": growth, "more": more, "rows": Watch.rows}


def table(rows: list[Row]) -> str:
    """Return the resources over the updates as Markdown."""
    return markdown(rows[0]["rows"])


def verdict(rows: list[Row]) -> list[str]:
    """Return a failure for every resource that grew."""
    (row,) = rows
    failures = [
        f"{key} grew by the factor {row['growth'][key]}" for key in ("own_mib", "rss_mib") if row["growth"][key] > 1.05
    ]
    return failures + [f"{value:g} more {key}" for key, value in row["more"].items() if value > 0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the length of the run and the distance of rows."""
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000, help="updates between two rows")


BENCHMARK = Benchmark(
    description=__doc__, cells=cells, measure=measure, table=table, verdict=verdict, add_arguments=add_arguments
)
