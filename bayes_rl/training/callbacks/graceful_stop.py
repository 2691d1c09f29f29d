"""Callback that saves the agent before validations and at a signal, so that a signal loses no update."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.utils.ranks import max_over_ranks, num_ranks
from bayes_rl.utils.stop_signals import PATIENCE_WITH_RANKS, STOP, Stopped

MOST_UPDATES = 8
"""Greatest number of updates from one exchange of the ranks' signals to the next; by Gloo, one takes 1 ms."""
SECONDS = 2.0
"""Seconds between two exchanges, if `MOST_UPDATES` take longer."""


class Agreement:
    """Agreement of all ranks to stop by a signal that one of them has received. All of them must save together.

    The ranks exchange their signals every few updates: as many as take `SECONDS` on the slowest rank, and at most
    `MOST_UPDATES`.
    """

    def __init__(self) -> None:
        self._began, self._last, self._next = time.monotonic(), 0, MOST_UPDATES

    def begin(self, update: int) -> None:
        """Count updates and seconds from here."""
        self._began, self._last, self._next = time.monotonic(), update, update + MOST_UPDATES

    def is_due(self, update: int) -> bool:
        """Return whether the ranks exchange their signals after this update; one process always looks for a signal."""
        return num_ranks() == 1 or update >= self._next

    def exchange_signals(self, update: int | None = None) -> None:
        """Exchange the signals of all ranks; then each rank knows of a signal to any of them.

        Args:
            update: number of the update that has ended; None outside the loop of updates.
        """
        if num_ranks() == 1:
            return
        elapsed = int(1000 * (time.monotonic() - self._began))
        received, slowest = max_over_ranks(STOP.received or 0, elapsed)  # in milliseconds
        STOP.received = received or None
        if update is not None:
            seconds_per_update = max(1, slowest) / 1000 / max(1, update - self._last)
            self.begin(update)
            self._next = update + max(1, min(MOST_UPDATES, int(SECONDS / seconds_per_update)))


class GracefulStop(Callback):
    """Saver of `last.ckpt` before every validation, and after the current update if a signal asks the run to stop.

    Everything but updates follows a save: the prefill, validation, test and video. A signal ends these at once. In an
    epoch's updates, it ends the run after the current update, by a save; with several ranks, after at most
    `MOST_UPDATES` updates. A checkpoint from before a validation makes the resumed run begin with that validation.
    """

    def __init__(self) -> None:
        self._agreement = Agreement()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which answers it between two batches only, with exit code 0."""
        STOP.take_over()
        STOP.patience = None if trainer.world_size == 1 else PATIENCE_WITH_RANKS
        self._agreement.begin(trainer.global_step)
        if STOP.is_listening:
            # Before each update Lightning would exchange whether rank 0 has heard a SIGTERM, which now `STOP` hears.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning."""
        STOP.take_over()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning."""
        STOP.take_over()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Defer signals until this update, and those before it, are saved."""
        STOP.deferred = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave after a signal, unless a validation or the end of the epoch follows and saves."""
        loop = trainer.fit_loop.epoch_loop
        if loop._is_training_done:
            STOP.saving = True
            return
        assert trainer.fit_loop._data_fetcher is not None
        if not self._agreement.is_due(trainer.global_step):
            return
        self._agreement.exchange_signals(trainer.global_step)
        if STOP.received is None or loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            return
        # Lightning would log this update's metrics after this hook, and a resumed run does not repeat the update.
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()
        with STOP.save_in_progress():
            self._save(trainer)
        STOP.allow()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, and in a fit save the agent in a state that begins with this validation."""
        STOP.take_over()
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.save_before_validation(trainer)
        self._agreement.exchange_signals()
        STOP.allow()

    def save_before_validation(self, trainer: pl.Trainer) -> None:
        """Save the agent in a state that begins with the validation that has not played a game yet."""
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.total.reset_on_restart()  # a validation that is repeated has been counted
        progress.increment_ready()
        progress.increment_started()
        self._save(trainer)
        progress.reset_on_restart()
        progress.total.reset_on_restart()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave if a signal came at the end of the epoch before, which is saved."""
        self._agreement.exchange_signals()
        STOP.allow()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave after a signal at the end of the last epoch, which is saved."""
        self._agreement.exchange_signals()
        STOP.allow()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Defer no signals any more, and say how to go on after a signal."""
        STOP.deferred = STOP.saving = False
        last = self._last(trainer)
        saved = trainer.is_global_zero and last is not None and last.is_file()
        if isinstance(exception, Stopped) and trainer.state.fn == "fit" and saved:
            print(f"saved {last}; go on with --ckpt_path last", flush=True)

    def _save(self, trainer: pl.Trainer) -> None:
        last = self._last(trainer)
        if last is not None and not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(last)

    def _last(self, trainer: pl.Trainer) -> Path | None:
        directories = (c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, KeptCheckpoint))
        return next((Path(directory) / "last.ckpt" for directory in directories if directory), None)
