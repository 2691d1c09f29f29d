"""Garbage collection of Python during training."""

from __future__ import annotations

import gc

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ALLOCATIONS = 10_000
"""Objects that are made and not freed before Python searches the youngest for cycles; Python 3.11 has 700."""


class GarbageCollection(Callback):
    """Callback that lets Python search for garbage less often while an agent is trained.

    Python frees most objects at once, and only cycles of objects need a search. An update makes thousands of small
    objects that form no cycles, and a search takes milliseconds. With several ranks, all ranks wait for the one that
    searches. Objects that exist before the training are not searched.
    """

    def __init__(self) -> None:
        self._thresholds: tuple[int, int, int] | None = None  # those from before the training, while it runs
        self._freezes = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search for garbage once. From now on, search new objects only, and search less often."""
        self._thresholds = youngest, *others = gc.get_threshold()
        self._freezes = not gc.get_freeze_count()  # otherwise `unfreeze` would undo what the user has frozen
        gc.collect()
        if self._freezes:
            gc.freeze()
        if youngest:  # 0 switches the search off
            gc.set_threshold(max(ALLOCATIONS, youngest), *others)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Search as before the training."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Search as before the training, which an error or a signal has ended."""
        self._restore()

    def _restore(self) -> None:
        if self._thresholds is not None:
            gc.set_threshold(*self._thresholds)
            if self._freezes:
                gc.unfreeze()
        self._thresholds = None
