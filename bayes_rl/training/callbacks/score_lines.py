"""Line of every validation of a fit."""

from __future__ import annotations

import sys

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from tqdm.auto import tqdm

from bayes_rl.evaluation.game_metrics import LABELS
from bayes_rl.training.run_directory import data_of


class ScoreLines(Callback):
    """Prints the scores of every validation of a fit as a line, above a progress bar if there is one."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a line with the scores."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        data = data_of(trainer)
        line = f"{data.stream.frames:>10,} frames: "
        if data.num_tasks > 1:
            played = [(name, scores.get(f"val/{name}/return_mean")) for name in data.curriculum.names]
            line += ", ".join(f"{name} {score:.1f}" for name, score in played if score is not None)
        else:
            others = (f"{LABELS[key]} {scores[f'val/{key}']:.1f}" for key in ("return_median", "return_iqm"))
            line += f"score {scores['val/return_mean']:.1f} over {scores['val/games']:.0f} games ({', '.join(others)})"
        tqdm.write(line, file=sys.stdout)
