"""Callback that draws the tests of uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from bayes_rl.training.run_directory import data_of, run_directory
from bayes_rl.utils.failures import warn_of_failure
from bayes_rl.utils.files import write_atomic

PICTURE = "uncertainty_{}.png"
"""Name of the file in the run's directory, with the verb that played the games: validate or test."""


class UncertaintyPicture(Callback):
    """Picture of the tests of uncertainty after `validate` and `test`, and after the test games at the end of a fit.

    It is a file in the run's directory; without one, as for an exported agent, there is no picture. TensorBoard shows
    that of a fit under `test/uncertainty`.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw after `validate`; the validations of a fit have their curves."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module, "validate")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw after the test games."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: pl.Trainer, agent: Any, verb: str) -> None:
        data = data_of(trainer)
        names = data.curriculum.names if data.num_tasks > 1 else [data.game]
        found = {name: part.evidence for name, part in zip(names, agent.scores, strict=True) if part.evidence}
        directory, quick = run_directory(trainer), getattr(trainer, "fast_dev_run", False)
        if not found or not trainer.is_global_zero or quick or not directory.is_dir():
            return
        # Scores do not depend on the picture: a full disk must not lose them.
        with warn_of_failure("drawing the tests of uncertainty"):
            from PIL import Image

            from bayes_rl.reporting.uncertainty_figure import draw_uncertainty  # drawing takes long to import

            title = f"{', '.join(found)}: uncertainty in the games of {verb}, after {agent.frames:,} frames"
            figure, path = draw_uncertainty(found, title), directory / PICTURE.format(verb)
            write_atomic(path, lambda file: figure.savefig(file, dpi=110, format="png"))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    with Image.open(path) as picture:  # reading it is faster than drawing it again
                        pixels = np.asarray(picture.convert("RGB"))
                    logger.experiment.add_image(f"{verb}/uncertainty", pixels, agent.frames, dataformats="HWC")
