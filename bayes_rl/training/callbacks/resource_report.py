"""Callback that reports the memory and time that a run takes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm.auto import tqdm

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.training.preflight import SECONDS, UPDATES, describe, duration, frames_of, updates_of


class ResourceReport(Callback):
    """Says what a run will take: before its first update, and how long, once its speed is known."""

    def __init__(self) -> None:
        self._told = False
        self._mark: tuple[float, int, int] | None = None  # when it was measured from, and the updates and frames then

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        print(describe(trainer, pl_module, trainer.datamodule), flush=True)  # type: ignore[attr-defined, arg-type]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = None  # games are no training

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self._told:
            return
        data: ReplayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        now, updates, frames = time.monotonic(), data.stream.updates, data.stream.frames
        if self._mark is None:  # not from the start: a first update takes longer, and what is before it even more
            self._mark = now, updates, frames
            return
        passed, played = now - self._mark[0], frames - self._mark[2]
        if passed < SECONDS or (updates - self._mark[1] < UPDATES and passed < 4 * SECONDS) or not played:
            return
        self._told = True
        planned = updates_of(trainer, data)
        if planned is not None:
            left = frames_of(planned, trainer, data) - frames
            tqdm.write(
                f"time   {duration(left * passed / played)} more at {played / passed:.0f} frames/s, without games"
            )
