"""Callbacks that write checkpoints."""

from __future__ import annotations

import functools
import os
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class KeptCheckpoint(ModelCheckpoint):
    """Checkpoint callback that looks for its files in its own directory, so that a run can be moved."""

    @functools.cached_property
    def state_key(self) -> str:
        """Key of the callback's state in checkpoints; cached, as Lightning reads it at every hook of every update.

        Version 0.1.0 chose by `val/return_mean`, whose unit is the same. The key keeps that name, so that a resumed run
        remembers its best score.
        """
        return super().state_key.replace("val/return_counted", "val/return_mean")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, with all paths in the present directory."""

        def moved(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else ""

        paths = {key: moved(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class TaskEnds(KeptCheckpoint):
    """Checkpoint of each task's end. It is a class of its own because Lightning names states of callbacks by class."""
