"""Callbacks that write checkpoints."""

from __future__ import annotations

import functools
import os
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint


class KeptCheckpoint(ModelCheckpoint):
    """Finds its files in its own directory, wherever a run was moved to and whatever paths a checkpoint holds."""

    @functools.cached_property
    def state_key(self) -> str:
        """Its name in checkpoints, which Lightning asks for at every hook of every update."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else ""

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class TaskEnds(KeptCheckpoint):
    """Keeps the agent of each task's end. A class of its own, as Lightning tells the states of callbacks by it."""
