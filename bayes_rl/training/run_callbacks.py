"""Callbacks of every run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint, TaskEnds
from bayes_rl.training.callbacks.error_log import ErrorLog
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.callbacks.learning_curve import LearningCurve
from bayes_rl.training.callbacks.progress import FrameProgress
from bayes_rl.training.callbacks.resource_report import ResourceReport
from bayes_rl.training.callbacks.stream_metrics import StreamMetrics
from bayes_rl.training.callbacks.video_writer import VideoWriter


def make_callbacks(run: Path, epochs_per_task: int | None, progress_bar: bool) -> list[Callback]:
    """Return the callbacks of a run.

    Args:
        run: directory of the run.
        epochs_per_task: epochs of a visit if there are several tasks, else None. Which agent is the best one depends
            on the task, so a run over several tasks keeps the agent of each visit's end, not the best one.
        progress_bar: show a progress bar.
    """
    saving: dict[str, Any] = {
        "dirpath": run / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    selected: KeptCheckpoint
    if epochs_per_task is None:
        selected = KeptCheckpoint(filename="best", monitor="val/return_counted", mode="max", **saving)
    else:
        selected = TaskEnds(filename="end_of_task_{epoch}", save_top_k=-1, every_n_epochs=epochs_per_task, **saving)
    callbacks: list[Callback] = [
        selected,
        KeptCheckpoint(filename="last", **saving),  # `save_last` would follow the best checkpoint only
        StreamMetrics(),
        LearningCurve(),
        VideoWriter(),
        GracefulStop(),
        ResourceReport(),
        ErrorLog(Path(os.path.relpath(run))),
    ]
    return [*callbacks, FrameProgress()] if progress_bar else callbacks
