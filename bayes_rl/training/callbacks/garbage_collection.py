"""Garbage collection of Python during training."""

from __future__ import annotations

import gc

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ALLOCATIONS = 10_000
"""Objects that are made and not freed before Python looks for cycles among the youngest; Python's own is 700."""


class GarbageCollection(Callback):
    """Lets Python look for garbage less often while an agent is trained.

    Python frees most objects at once, and only cycles of objects need a search. An update allocates thousands of small
    objects that form no cycles, and a search takes milliseconds. With several ranks, all ranks wait for the one that
    searches. Objects that exist before the training are never searched.
    """

    def __init__(self) -> None:
        self._thresholds: tuple[int, int, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search once, exclude what is left, and search less often from now on."""
        self._thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(max(ALLOCATIONS, self._thresholds[0]), *self._thresholds[1:])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search as before the training."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Search as before the training, which an error or a signal has ended."""
        self._restore()

    def _restore(self) -> None:
        if self._thresholds is not None:
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()
        self._thresholds = None
