"""Trial of a sweep: one combination of options, fitted once for each seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayes_rl.sweep.fit import Fit
from bayes_rl.sweep.space import SEED
from bayes_rl.utils.files import write_atomic

RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"
"""States of a trial."""


class Trial:
    """Options of one trial, and its fits.

    Args:
        trials: directory of all trials of the sweep. The trial's own directory in it has a name that depends on the
            options alone, so that a continued sweep finds the fits of the same options.
        options: of the space, by name.
        seeds: of the fits.
    """

    def __init__(self, trials: Path, options: Mapping[str, Any], seeds: Sequence[int]) -> None:
        self.options, self.seeds = dict(options), list(seeds)
        content = json.dumps(self.options, sort_keys=True)
        self.directory = trials / hashlib.sha256(content.encode()).hexdigest()[:10]
        self.fits = [Fit(self.directory / f"seed_{seed}") for seed in seeds]

    @property
    def state(self) -> str:
        """State of the trial, one of `running`, `finished`, `pruned` and `failed`."""
        return str(self._read().get("state", RUNNING))

    @property
    def problem(self) -> str:
        """Error that ended the trial, in one line, or an empty text."""
        return str(self._read().get("problem", ""))

    @property
    def number(self) -> int:
        """Position of the trial in the order in which the trials began; 0 is the first one."""
        return int(self._read().get("number", 0))

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.directory / "trial.json").read_text())
        except FileNotFoundError:
            return {}
        return content

    def write(self, state: str, problem: str = "") -> None:
        """Store the options and the state of the trial."""
        known = self._read()
        number = known["number"] if known else len([*self.directory.parent.glob("*/trial.json")])
        content = {"number": number, "options": self.options, "state": state, "problem": problem}
        text = json.dumps(content, indent=1)
        write_atomic(self.directory / "trial.json", lambda file: file.write(text.encode()))

    def write_configs(self, base: Mapping[str, Any]) -> None:
        """Write the configurations of all fits.

        Args:
            base: options of all trials, by name.
        """
        for seed, fit in zip(self.seeds, self.fits, strict=True):
            if not (fit.directory / "fit.yaml").is_file():
                fit.write_config({**base, **self.options, SEED: seed})

    def curves(self, validations: int | None) -> list[list[float]]:
        """Return the scores of each seed that count so far.

        Args:
            validations: number of validations of a fit, which are compared at equal frames. With None, fits have equal
                minutes, and the score of a fit is that of its last validation.
        """
        if validations is not None:  # the last score counts once the fit has ended
            return [fit.scores()[: validations - (not fit.finished)] for fit in self.fits]
        return [fit.scores()[-1:] if fit.finished else [] for fit in self.fits]

    def score(self, validations: int | None) -> float | None:
        """Return the interquartile mean over the seeds of the score at the end; None while scores are missing.

        Args:
            validations: as in `curves`.
        """
        # Their import takes seconds, and the processes of trials do not need them.
        import torch

        from bayes_rl.metrics.returns import interquartile_mean

        curves = self.curves(validations)
        if not all(len(curve) == (validations or 1) for curve in curves):
            return None
        return interquartile_mean(torch.tensor([curve[-1] for curve in curves], dtype=torch.float64)).item()


def running_means(curves: Sequence[Sequence[float]], validations: int) -> list[float]:
    """Return the means over the first seeds that are known so far, in the order in which trials are compared.

    The first `validations` numbers are the scores of the first seed, the next ones the means of the first two seeds at
    equal frames, and so on. The numbers do not depend on the order in which fits end.

    Args:
        curves: scores of each seed.
        validations: number of scores of a finished fit.
    """
    means: list[float] = []
    for seeds in range(1, len(curves) + 1):
        for position in range(validations):
            if len(curves[seeds - 1]) <= position:  # the seeds before have all their scores
                return means
            means.append(sum(curve[position] for curve in curves[:seeds]) / seeds)
    return means


def read_trials(directory: Path, seeds: Sequence[int]) -> list[Trial]:
    """Return the trials of a sweep in the order in which they began.

    Args:
        directory: of the sweep.
        seeds: of every trial.
    """
    paths = (directory / "trials").glob("*/trial.json")
    trials = [Trial(directory / "trials", json.loads(path.read_text())["options"], seeds) for path in paths]
    return sorted(trials, key=lambda trial: trial.number)
