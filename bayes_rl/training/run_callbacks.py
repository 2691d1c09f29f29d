"""Callbacks of every run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint, TaskEnds
from bayes_rl.training.callbacks.error_log import ErrorLog
from bayes_rl.training.callbacks.game_picture import GamePicture
from bayes_rl.training.callbacks.garbage_collection import GarbageCollection
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.callbacks.learning_curve import LearningCurve
from bayes_rl.training.callbacks.progress import FrameProgress
from bayes_rl.training.callbacks.resource_report import ResourceReport
from bayes_rl.training.callbacks.score_lines import ScoreLines
from bayes_rl.training.callbacks.stream_metrics import StreamMetrics
from bayes_rl.training.callbacks.tensorboard_pages import TensorBoardPages
from bayes_rl.training.callbacks.uncertainty_picture import UncertaintyPicture
from bayes_rl.training.callbacks.video_writer import VideoWriter

OF_ONE_RANK = (ResourceReport, ScoreLines, FrameProgress)
"""Callbacks that print, which the other ranks of a run do without."""


def make_callbacks(
    run: Path, epochs_per_task: int | None, progress_bar: bool, pages: TensorBoardPages | None = None
) -> list[Callback]:
    """Return the callbacks of a run.

    Args:
        run: directory of the run.
        epochs_per_task: epochs of a visit if there are several tasks, else None. Which agent is the best one depends
            on the task, so a run over several tasks keeps the agent of each visit's end, not the best one.
        progress_bar: show a progress bar.
        pages: writer of TensorBoard's pages, or None for pages without options.
    """
    saving: dict[str, Any] = {
        "dirpath": run / "checkpoints",
        "enable_version_counter": False,
    }
    at_epoch_end = {**saving, "save_on_train_epoch_end": True}
    selected: KeptCheckpoint
    if epochs_per_task is None:
        # Saved by the validation itself: later in the epoch, the weights are no longer those that were validated.
        scored = {**saving, "save_on_train_epoch_end": False}
        selected = KeptCheckpoint(filename="best", monitor="val/return_counted", mode="max", **scored)
    else:
        ends = {**at_epoch_end, "every_n_epochs": epochs_per_task}
        selected = TaskEnds(filename="end_of_task_{epoch}", save_top_k=-1, **ends)
    callbacks: list[Callback] = [
        selected,
        KeptCheckpoint(filename="last", **at_epoch_end),  # `save_last` would follow the best checkpoint only
        StreamMetrics(),
        LearningCurve(),
        pages or TensorBoardPages(),  # shows the learning curve
        UncertaintyPicture(),
        GamePicture(),
        VideoWriter(),
        GracefulStop(),
        GarbageCollection(),
        ResourceReport(),
        ScoreLines(),
        ErrorLog(Path(os.path.relpath(run))),
    ]
    return [*callbacks, FrameProgress()] if progress_bar else callbacks
