"""Directory of a run."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from bayes_rl.data.datamodule import ReplayDataModule


def _data(trainer: pl.Trainer) -> ReplayDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ReplayDataModule)
    return data


def run_directory(trainer: pl.Trainer) -> Path:
    """Where the files of a run belong: beside its checkpoints, whatever the logger."""
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(checkpoints).parent if checkpoints else Path(trainer.log_dir or trainer.default_root_dir)
