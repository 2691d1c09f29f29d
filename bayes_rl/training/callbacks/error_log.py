"""Callback that writes the stack trace of an error that ends a run."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.envs.monitored import FailedEnvError
from bayes_rl.errors import RunError
from bayes_rl.training.run_directory import run_directory
from bayes_rl.utils.ranks import own_rank


def write_error_log(directory: Path, error: BaseException) -> Path:
    """Write the stack trace of an error to `error.log` in a run's directory, and return the path.

    Of the ranks of a run, all but the first have their number in the name of the file.
    """
    path = directory / (f"error_rank{own_rank()}.log" if own_rank() else "error.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return path


class ErrorLog(Callback):
    """Writer of `error.log`, the stack trace of the error that ended a run.

    The error's line names `error.log` and the latest checkpoint. If an environment fails in training, the callback
    saves the agent to `checkpoints/error.ckpt`. The run can be resumed from this checkpoint with new games. The old
    games would fail again.

    Args:
        directory: directory of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the stack trace of a `RunError`, and append the names of the files to the error's line.

        Args:
            trainer: trainer of the run; saves the agent if an environment has failed.
            pl_module: the agent, unused.
            exception: error that ended the run. An error that is no `RunError` is ignored.
        """
        if not isinstance(exception, RunError):
            return
        if trainer.world_size > 1:
            self.directory = Path(os.path.relpath(run_directory(trainer)))  # rank 0 has chosen it
        path = write_error_log(self.directory, exception)
        exception.remark = f"; {self._name_checkpoint(trainer, exception)}, the stack trace is in {path}"

    def _name_checkpoint(self, trainer: pl.Trainer, exception: RunError) -> str:
        """Return a clause that names the checkpoint to resume from. Save the agent if an environment has failed."""
        last, saved = (self.directory / "checkpoints" / f"{name}.ckpt" for name in ("last", "error"))
        alone = trainer.world_size == 1  # several ranks save together or not at all
        if isinstance(exception, FailedEnvError) and trainer.training and trainer.global_step and alone:
            trainer.save_checkpoint(saved)
            return f"continue with new games by --ckpt_path {saved} --data.refill_replay true"
        if trainer.state.fn == "fit" and trainer.validating and last.is_file():  # saved when the validation began
            return f"{last} holds every update, and begins with this validation"
        return f"{last} was saved before the error" if last.is_file() else "no checkpoint was saved yet"
