"""Callback that saves a fit which ends by an error of another part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.errors import RunError
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.checkpoint_io import FULL


class SaveOnError(Callback):
    """Save of `last.ckpt` after an error that a callback, a logger or a validation raises between two updates.

    Within an update, weights and stream do not belong together, and the previous checkpoint stays.

    Args:
        path: of the checkpoint.

    Attributes:
        remark: clause that names the checkpoint, for the line of the error; empty if nothing was saved.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.remark = path, ""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, unless the error is one of the agent or of an environment, or the disk is full.

        Several ranks save together or not at all, and an error may have come to one of them alone.
        """
        full = isinstance(exception, OSError) and exception.errno in FULL
        if not isinstance(exception, Exception) or isinstance(exception, RunError) or full or not _between(trainer):
            return
        if trainer.world_size > 1:
            return
        try:
            self._save(trainer)
        except Exception:  # a part that is broken may not be able to save its state either
            return
        self.remark = f"; what was learned is in {os.path.relpath(self.path)}"

    def _save(self, trainer: pl.Trainer) -> None:
        """Save, unless the beginning of this validation or the end of the epoch before has saved all updates."""
        loop: Any = trainer.fit_loop
        epoch = loop.epoch_progress.current
        if trainer.validating:
            if loop.epoch_loop.val_loop.batch_progress.current.ready == 0:
                stop = next(c for c in trainer.callbacks if isinstance(c, GracefulStop))  # type: ignore[attr-defined]
                stop.save_before_validation(trainer)
        elif epoch.ready == epoch.started:
            trainer.save_checkpoint(self.path)


def _between(trainer: pl.Trainer) -> bool:
    """Return whether a fit is between two updates, of which there was at least one."""
    loop: Any = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress.current
    return trainer.state.fn == "fit" and trainer.global_step > 0 and progress.ready == progress.processed
