"""Callback that draws the tests of uncertainty."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.training.run_directory import data_of, run_directory
from bayes_rl.training.tensorboard_log import add_picture, as_png, picture_loggers
from bayes_rl.utils.failures import warn_of_failure
from bayes_rl.utils.files import write_atomic

PICTURE = "uncertainty_{}.png"
"""Name of the file in the run's directory, with the verb that played the games: validate or test."""

SHARP, COARSE = 110, 70
"""Dots per inch of the file, and of the pictures of a fit's validations, of which there are many."""


class UncertaintyPicture(Callback):
    """Picture of the tests of uncertainty: in TensorBoard for a fit, as a file after `validate` and `test`.

    TensorBoard shows the validations of a fit under `val/uncertainty`, or `val/TASK/uncertainty` of several tasks, and
    the test games at the end of a fit under `test/uncertainty`. The file of `validate` and of test games lies in the
    run's directory; without a directory, as for an exported agent, there is no file.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the games of `validate` into a file, and those of a fit for TensorBoard."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")
        elif not trainer.sanity_checking:
            self._show(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the test games."""
        self._write(trainer, pl_module, "test")

    def _show(self, trainer: pl.Trainer, agent: Any) -> None:
        """Write a picture of each task for TensorBoard."""
        if not (loggers := picture_loggers(trainer)):
            return
        found = _evidence(trainer, agent)
        for name, evidence in found.items():
            with warn_of_failure("drawing the tests of uncertainty"):
                from bayes_rl.reporting.uncertainty_figure import draw_uncertainty

                tag = f"val/{name}/uncertainty" if data_of(trainer).num_tasks > 1 else "val/uncertainty"
                figure = draw_uncertainty({name: evidence}, _title(name, "the validation", agent))
                content = as_png(figure, COARSE)
                for logger in loggers:
                    add_picture(logger, tag, content, agent.frames)

    def _write(self, trainer: pl.Trainer, agent: Any, verb: str) -> None:
        """Write a picture of all tasks into the run's directory, and for TensorBoard."""
        found = _evidence(trainer, agent)
        directory, quick = run_directory(trainer), getattr(trainer, "fast_dev_run", False)
        if not found or not trainer.is_global_zero or quick or not directory.is_dir():
            return
        # Scores do not depend on the picture: a full disk must not lose them.
        with warn_of_failure("drawing the tests of uncertainty"):
            from bayes_rl.reporting.uncertainty_figure import draw_uncertainty  # drawing takes long to import

            content = as_png(draw_uncertainty(found, _title(", ".join(found), verb, agent)), SHARP)
            write_atomic(directory / PICTURE.format(verb), lambda file: file.write(content))
            for logger in picture_loggers(trainer):
                add_picture(logger, f"{verb}/uncertainty", content, agent.frames)


def _evidence(trainer: pl.Trainer, agent: Any) -> dict[str, Any]:
    """Return the evidence of the games before, by the name of the task."""
    data = data_of(trainer)
    names = data.curriculum.names if data.num_tasks > 1 else [data.game]
    return {name: part.evidence for name, part in zip(names, agent.scores, strict=True) if part.evidence}


def _title(names: str, verb: str, agent: Any) -> str:
    return f"{names}: uncertainty in the games of {verb}, after {agent.frames:,} frames"
