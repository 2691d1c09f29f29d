"""Callback that locks the directory of a run."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.utils.files import DirectoryLock, remove_temporaries


class RunLock(Callback):
    """Locks a run's directory until its fit ends, however it ends, and removes what killed saves left in it.

    Args:
        directory: of the run.
        key: the option that chose it, for the error.

    Raises:
        ConfigError: if another fit writes to it.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._lock = DirectoryLock(directory, key)
        remove_temporaries(directory)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._lock.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._lock.release()
