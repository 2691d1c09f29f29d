"""Fit of a sweep: one run of `bayes-rl fit` with its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from bayes_rl.errors import RunError
from bayes_rl.utils.files import write_atomic
from bayes_rl.utils.settings import nested

METRIC = "return_counted"
"""Column of `metrics.npy` that is the score of a validation. Checkpoints are chosen by the same column."""

Command = Callable[[list[str]], dict[str, float]]
"""Function that runs `bayes-rl WORDS` and returns the metrics of the test games, for example `test/return_mean`."""


class Fit:
    """Files of one fit.

    `fit.yaml` holds its configuration, `fit.log` its output, `version_0` its run, and `finished.json` the metrics of
    its test games.

    Args:
        directory: of the fit. Its name is the name of the run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "version_0"

    @property
    def finished(self) -> bool:
        """True once the fit has ended."""
        return (self.directory / "finished.json").is_file()

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Write the configuration that the fit begins with."""
        text = yaml.safe_dump(nested(options), sort_keys=False)
        write_atomic(self.directory / "fit.yaml", lambda file: file.write(text.encode()))

    def _validations(self) -> NDArray[np.void]:
        """Return a row of metrics for each validation so far."""
        try:
            rows = np.load(self.run / "metrics.npy", allow_pickle=False)
        except FileNotFoundError:
            return np.zeros(0, [("frames", np.float64)])
        return rows[rows["frames"] > 0]  # a run over several tasks is validated before training, too

    def scores(self) -> list[float]:
        """Return the scores of the validations so far: raw score of whole games, mean over the tasks."""
        rows = self._validations()
        if not len(rows):
            return []
        columns = [name for name in rows.dtype.names or () if name.split("/")[-1] == METRIC]
        scores: list[float] = np.mean([rows[name] for name in columns], axis=0).tolist()
        return scores

    def frames(self) -> list[float]:
        """Return the environment frames of the validations so far."""
        frames: list[float] = self._validations()["frames"].tolist()
        return frames

    def test_scores(self) -> dict[str, float]:
        """Return the metrics of the test games, empty before the end of the fit."""
        try:
            scores: dict[str, float] = json.loads((self.directory / "finished.json").read_text())
        except FileNotFoundError:
            return {}
        return scores

    def complete(self, command: Command) -> None:
        """Begin the fit, or continue it from its last checkpoint, until it has ended.

        A fit without a checkpoint begins again.

        Args:
            command: runs `bayes-rl fit` and `bayes-rl test` in this process.

        Raises:
            RunError: if the fit fails, or its test games have no scores.
        """
        if self.finished:
            return
        last, best = (self.run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
        if last.is_file():
            words = ["fit", f"--ckpt_path={last}"]
        else:
            shutil.rmtree(self.run, ignore_errors=True)
            place = [f"--trainer.default_root_dir={self.directory.parent}", f"--name={self.directory.name}"]
            words = ["fit", f"--config={self.directory / 'fit.yaml'}", *place, "--trainer.enable_progress_bar=false"]
        scores = _call(command, words)
        if not scores:  # the process of the fit ended after the last update, and before the end of the test games
            scores = _call(command, ["test", f"--ckpt_path={best if best.is_file() else last}"])
        if not scores:
            raise RunError(f"the test games of {self.directory} have no scores")
        text = json.dumps(scores, indent=1)
        write_atomic(self.directory / "finished.json", lambda file: file.write(text.encode()))


def _call(command: Command, words: list[str]) -> dict[str, float]:
    """Return the metrics of a command; a fit that has nothing left to train has none.

    Raises:
        SystemExit: if the command ends with another exit code than 0.
    """
    try:
        return command(words)
    except SystemExit as end:
        if end.code:
            raise
        return {}
