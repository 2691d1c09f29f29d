"""Callback that writes the learning curve."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.reporting.learning_curve import write_curve
from bayes_rl.training.run_directory import data_of, run_directory
from bayes_rl.utils.failures import warn_of_failure


class LearningCurve(Callback):
    """Learning curve: `metrics.npy` and `learning_curve.png` in the run's directory, with every validation.

    With several tasks, rows have a column `visit`, the visit that was trained; -1 before training. The history is part
    of the checkpoint, so that a resumed run draws the whole curve.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the history."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the history."""
        self.history = list(state_dict["history"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row, and write the files."""
        data = data_of(trainer)
        several = data.num_tasks > 1
        before = trainer.sanity_checking
        if trainer.state.fn != "fit" or (before and (not several or data.stream.frames)):
            return
        row = {k[4:]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        row["frames"] = float(data.stream.frames)
        if several:
            row["visit"] = -1.0 if before else float(data.visit)
        self.history = [r for r in self.history if r["frames"] < row["frames"]] + [row]
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            # The next validation draws the curve again; on a full disk, a failed checkpoint decides about the run.
            with warn_of_failure("writing the learning curve"):
                write_curve(self.history, data.game, run_directory(trainer), data.curriculum.names if several else ())
