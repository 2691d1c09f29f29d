"""Callback that reports the memory and time that a run takes."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm.auto import tqdm

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.training.preflight import SECONDS, UPDATES, describe, duration, frames_of, updates_of, wrapped


class ResourceReport(Callback):
    """Report of the memory and disk space of a run before its first update, and of its time once the speed is known."""

    def __init__(self) -> None:
        self._reported = False
        self._mark: tuple[float, int, int] | None = None  # start of the measurement: seconds, updates, frames

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the report."""
        report = describe(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined, arg-type]
        if sys.stdout.isatty():  # in a file, a line holds all of its numbers
            report = wrapped(report, shutil.get_terminal_size().columns)
        print(report, flush=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the measurement of speed, which must not include validation games."""
        self._mark = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Print the time left, once."""
        if self._reported:
            return
        data: ReplayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        now, updates, frames = time.monotonic(), data.stream.updates, data.stream.frames
        if self._mark is None:  # not before the first update, which takes longer, as does filling the replay
            self._mark = now, updates, frames
            return
        passed, played = now - self._mark[0], frames - self._mark[2]
        if passed < SECONDS or (updates - self._mark[1] < UPDATES and passed < 4 * SECONDS) or not played:
            return
        self._reported = True
        planned = updates_of(trainer, data)
        if planned is not None:
            left = frames_of(planned, trainer, data) - frames
            tqdm.write(
                f"time   {duration(left * passed / played)} more at {played / passed:.0f} frames/s, without games"
            )
