"""Callback that writes TensorBoard's pages beside the curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.training.run_directory import data_of, run_directory
from bayes_rl.training.tensorboard_layout import as_summary, make_layout
from bayes_rl.training.tensorboard_log import TensorBoardLog, add_picture, picture_loggers
from bayes_rl.training.tensorboard_options import columns, row
from bayes_rl.utils.failures import warn_of_failure

CURVE = "learning_curve.png"


class TensorBoardPages(Callback):
    """Pages of TensorBoard: Custom Scalars, HParams, Text and Images.

    Custom Scalars begins with the curves that matter. HParams has the options that were given, so that runs can be
    compared by options and by `val/return_mean`. Text has the configuration, Images the learning curve.

    Args:
        options: options that were given, by their dotted names, for HParams; empty in a fit that resumes a run.
        chosen: names of the options that HParams begins with.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, chosen: Collection[str] = ()) -> None:
        self.options, self.chosen = dict(options or {}), chosen
        self.has_layout = False
        self._has_text = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether the run has its layout."""
        return {"has_layout": self.has_layout}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load whether the run has its layout, of which TensorBoard reads the first."""
        self.has_layout = bool(state_dict["has_layout"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write options and configuration, once a fit; before, the configuration is not on the disk."""
        if self._has_text:
            return
        self._has_text = True
        for logger in _loggers(trainer):
            with warn_of_failure("writing the configuration for TensorBoard"):
                self._write_options(logger, trainer)

    def _write_options(self, logger: TensorBoardLog, trainer: pl.Trainer) -> None:
        from torch.utils.tensorboard.summary import text

        data, config = data_of(trainer), run_directory(trainer) / "config.yaml"
        if config.is_file():
            lines = config.read_text(encoding="utf-8").splitlines()
            page = "\n".join(f"    {line}" for line in lines)  # a block of code in Markdown
            logger.add_summary(text("configuration", page), data.stream.frames)
        if self.options:
            tasks = data.curriculum.names if data.num_tasks > 1 else []
            tags = [f"val/{task}/return_mean" for task in tasks] or ["val/return_mean"]
            if not is_of_a_sweep(config.parent.absolute()):
                logger.add_summary(columns(self.options, self.chosen, tags), 0)
            logger.add_summary(row(self.options), 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout, at the first validation that follows logged updates, and the learning curve."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        frames, curve = data_of(trainer).stream.frames, run_directory(trainer) / CURVE
        for logger in _loggers(trainer):
            with warn_of_failure("writing pages of TensorBoard"):
                if not self.has_layout and "train/nll" in trainer.callback_metrics:
                    self._write_layout(logger, trainer)
                if curve.is_file():
                    add_picture(logger, "val/learning_curve", curve.read_bytes(), frames)

    def _write_layout(self, logger: TensorBoardLog, trainer: pl.Trainer) -> None:
        logger.add_summary(as_summary(make_layout(trainer.callback_metrics.keys())), 0)
        self.has_layout = True


def is_of_a_sweep(run: Path) -> bool:
    """Return whether a run lies in a sweep that has its own columns, of which TensorBoard would not take both."""
    sweep = run.parents[3] if len(run.parents) > 3 else run  # SWEEP/trials/TRIAL/SEED/RUN
    return (sweep / "sweep.json").is_file() and any(sweep.glob("events.out.tfevents.*"))


def _loggers(trainer: pl.Trainer) -> list[TensorBoardLog]:
    """Return the loggers that write pages: the default logger of a fit, in the first process."""
    return [logger for logger in picture_loggers(trainer) if isinstance(logger, TensorBoardLog)]
