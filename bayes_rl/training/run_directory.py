"""Directory of a run, `runs/NAME/version_K`, and what a trainer knows of it."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint


def run_of(checkpoint: str | Path) -> Path | None:
    """Return the absolute path of the run that wrote a checkpoint, or None if the file lies elsewhere."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def next_version(directory: Path) -> Path:
    """Return the first unused `version_K` in `directory`, K one higher than the highest that exists."""
    versions = [int(path.name[8:]) for path in directory.glob("version_*") if path.name[8:].isdigit()]
    return directory / f"version_{max(versions, default=-1) + 1}"


def run_directory(trainer: pl.Trainer) -> Path:
    """Return the directory for the files of a run: the parent of its checkpoints, whatever the logger.

    A user's own checkpoint callback may write elsewhere.
    """
    directories = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, KeptCheckpoint)]
    checkpoints = next((path for path in directories if path), None)
    return Path(checkpoints).parent if checkpoints else Path(trainer.log_dir or trainer.default_root_dir)


def data_of(trainer: pl.Trainer) -> ReplayDataModule:
    """Return the data module of a trainer."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ReplayDataModule)
    return data
