"""Callback that locks the directory of a run."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.utils.files import DirectoryLock, remove_temporaries


class RunLock(Callback):
    """Lock of a run's directory until its fit ends; it removes temporary files that killed saves left.

    Args:
        directory: of the run.
        key: the option that chose the directory, for the error.

    Raises:
        ConfigError: if another fit writes to the directory.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._lock = DirectoryLock(directory, key)
        remove_temporaries(directory)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the lock after a fit."""
        if stage == "fit":
            self._lock.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Release the lock."""
        self._lock.release()
