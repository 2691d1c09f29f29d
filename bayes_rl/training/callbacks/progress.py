"""Progress bar in environment frames."""

from __future__ import annotations

import shutil
import sys
import time
from itertools import accumulate
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm.auto import tqdm

from bayes_rl.training.run_directory import data_of

REST = 54
"""Characters of a bar beside its description and its status: share, frames, times and rate."""


def fitting(status: dict[str, str], description: str, columns: int) -> dict[str, str]:
    """Return the first parts of a status that fit beside the bar: a number that is cut off is another number.

    Args:
        status: names and values, the most important first.
        description: before the bar.
        columns: width of the terminal in characters.
    """
    left = columns - REST - len(description)
    ends = accumulate(len(f", {name}={value}") for name, value in status.items())
    return {name: status[name] for name, end in zip(status, ends, strict=True) if end <= left}


class FrameProgress(ProgressBar):
    """Progress bar of the whole run in environment frames: rate, time left, epsilon, latest return and score.

    A log file, or another program that reads the output, gets no bar.

    Args:
        refresh_seconds: least time between two redraws, in seconds.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Hide the bar, before training starts."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar, before training starts."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the bar."""
        data = data_of(trainer)
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        visits = 1 + data.curriculum.visit(epochs - 1) if epochs else 1
        prefill = visits * data.replay_settings.min_size * data.settings.frame_skip
        total = prefill + epochs * data.frames_per_epoch if epochs else None
        self._bar = tqdm(
            total=total,
            initial=min(data.stream.frames, total or data.stream.frames),
            unit="frame",
            unit_scale=True,
            mininterval=self.refresh_seconds,
            disable=not self._enabled or not sys.stdout.isatty(),
            dynamic_ncols=True,
            file=sys.stdout,
            desc=data.game,
        )
        self._drawn = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Redraw the bar, at most every `refresh_seconds`."""
        if time.monotonic() - self._drawn < self.refresh_seconds:
            return
        self._drawn = time.monotonic()
        stream = data_of(trainer).stream
        data = data_of(trainer)
        description = data.game
        if data.num_tasks > 1:
            description = f"{data.game} ({data.visit + 1} of {data.curriculum.visits})"
            self._bar.set_description(description, refresh=False)
        status = {}
        if stream.recent_returns:
            status["return"] = f"{np.mean(stream.recent_returns):.1f}"
        score = trainer.callback_metrics.get("val/return_mean")
        if score is not None:
            status["score"] = f"{float(score):.1f}"
        status["epsilon"] = f"{stream.epsilon:.2f}"
        self._bar.set_postfix(fitting(status, description, shutil.get_terminal_size().columns), refresh=False)
        self._bar.update(max(0, min(stream.frames, self._bar.total or stream.frames) - self._bar.n))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
