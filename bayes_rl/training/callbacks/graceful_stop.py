"""Callback that stops a fit on a signal, after a save."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class GracefulStop(Callback):
    """Handler of Ctrl+C and SIGTERM: finish the update, save `last.ckpt`, print its path, and exit with 130 or 143.

    A second signal ends the process immediately, with the previous checkpoint intact.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        print("\nstopping after this step; once more to leave at once", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and exit after a signal."""
        # The last update of an epoch is followed by a validation and a checkpoint, which come first.
        if self._signal is None or batch_idx + 1 >= trainer.num_training_batches:
            return
        directory = getattr(trainer.checkpoint_callback, "dirpath", None)
        if directory is not None:
            path = Path(directory) / "last.ckpt"
            trainer.save_checkpoint(path)
            if getattr(trainer.strategy.checkpoint_io, "saved", True):
                print(f"saved {path}; go on with --ckpt_path last", flush=True)
        raise SystemExit(128 + self._signal)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exit after a signal in the last update."""
        if self._signal is not None:
            raise SystemExit(128 + self._signal)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
