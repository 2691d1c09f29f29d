"""Settings of a sweep, stored in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_rl.errors import ConfigError
from bayes_rl.sweep.space import Space
from bayes_rl.sweep.trial import FINISHED, PRUNED, Trial, read_trials
from bayes_rl.utils.files import write_atomic

GAMES = ("data.env", "data.tasks")
"""Options that choose the game. Raw scores of different games cannot be compared."""


@dataclass(frozen=True)
class Sweep:
    """Sweep: its trials and the resources of their fits.

    Attributes:
        directory: of the sweep, on a disk that all machines see.
        space: options that differ between trials.
        options: options of all trials, by name.
        seeds: of every trial.
        draws: number of trials; with grids, number of draws for each combination.
        validations: number of validations of a fit; None if fits have equal minutes.
        threads: CPU threads of a fit.
        gpus: GPUs of a fit; a fraction shares one GPU.
        pruning: whether trials with low scores are stopped early.
        folder: in which fits run, for relative paths and for a user's own modules.
    """

    directory: Path
    space: Space
    options: Mapping[str, Any]
    seeds: tuple[int, ...]
    draws: int
    validations: int | None
    threads: int
    gpus: float
    pruning: bool
    folder: Path

    @property
    def num_trials(self) -> int:
        """Number of trials."""
        draws = 1 if len(self.space.grids) == len(self.space.options) else self.draws
        return draws * self.space.cells

    @property
    def comparable(self) -> bool:
        """True if all trials play the same games, so that one of them is the best."""
        return not any(name in self.space.options for name in GAMES)

    def trial(self, options: Mapping[str, Any]) -> Trial:
        """Return the trial of a combination of options."""
        return Trial(self.directory / "trials", options, self.seeds)

    def known_trials(self) -> list[Trial]:
        """Return the trials that have begun, in their order."""
        return read_trials(self.directory, self.seeds)

    @property
    def complete(self) -> bool:
        """True if all trials have ended without an error."""
        try:
            ended = int(json.loads((self.directory / "complete.json").read_text())["trials"])
        except FileNotFoundError:
            return False
        return ended >= self.num_trials and all(trial.state in (FINISHED, PRUNED) for trial in self.known_trials())

    def write_complete(self) -> None:
        """Store that all trials have ended. A search may draw some options twice: counting files is not enough."""
        text = json.dumps({"trials": self.num_trials})
        write_atomic(self.directory / "complete.json", lambda file: file.write(text.encode()))

    def check(self) -> None:
        """Check that the directory holds no other sweep. The number of draws may change.

        Raises:
            ConfigError: if it does.
        """
        try:
            stored: dict[str, Any] = json.loads((self.directory / "sweep.json").read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigError("output", str(self.directory), f"has a sweep.json that cannot be read: {error}") from None
        now = json.loads(json.dumps(self._identity()))
        for name in [*now, *stored]:
            if stored.get(name) != now.get(name):
                problem = f"differs from {stored.get(name)!r} of the sweep in {self.directory}; for another sweep, type"
                raise ConfigError(name, now.get(name), f"{problem} another --output")

    def write(self) -> None:
        """Store the settings."""
        text = json.dumps(self._identity(), indent=1)
        write_atomic(self.directory / "sweep.json", lambda file: file.write(text.encode()))

    def _identity(self) -> dict[str, Any]:
        """Return what makes two sweeps the same, by name."""
        space = {name: {values.kind: list(values.values)} for name, values in self.space.options.items()}
        resources = {"threads": self.threads, "gpus": self.gpus, "pruning": self.pruning}
        return {**self.options, **space, "seeds": list(self.seeds), "validations": self.validations, **resources}
