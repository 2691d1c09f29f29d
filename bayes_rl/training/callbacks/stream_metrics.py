"""Callback that logs the counters of the stream."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.training.run_directory import data_of
from bayes_rl.utils.ranks import gather_from_ranks, sum_over_ranks


class StreamMetrics(Callback):
    """Log of the streams of all ranks: returns in training, epsilon, share of draws, frames per second and counters."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the measurement of frames per second."""
        self._mark = (time.monotonic(), data_of(trainer).stream.frames)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log every `log_every_n_steps` updates."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every:
            return
        stream = data_of(trainer).stream
        now, frames = time.monotonic(), stream.frames
        (episodes,) = sum_over_ranks(stream.finished_episodes)
        returns = [score for of_rank in gather_from_ranks([*stream.recent_returns]) for score in of_rank]
        values = {
            "time/fps": (frames - self._mark[1]) / max(now - self._mark[0], 1e-9),
            "train/epsilon": stream.epsilon,
            "train/draw_share": stream.draw_share,
            "train/episodes": float(episodes),
            "train/agent_steps": float(stream.agent_steps),
            "train/updates": float(stream.updates),
        }
        self._mark = (now, frames)
        if returns:
            values["train/return_mean"] = float(np.mean(returns))
        pl_module.log_dict(values)
