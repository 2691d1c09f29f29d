"""Progress of a sweep, as a table in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.trial import RUNNING, Trial, running_means

REFRESH_SECONDS = 2.0
"""Time between two tables."""

MOST_ROWS = 20
"""Trials in the table: those that run, and the best of the others."""


class Progress:
    """Table that is renewed in a terminal; elsewhere, a line for each trial that ends.

    Args:
        sweep: whose files are read.
        console: to print on.
    """

    def __init__(self, sweep: Sweep, console: Console | None = None) -> None:
        self.sweep = sweep
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._last, self._ended = 0.0, 0

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def refresh(self) -> None:
        """Renew the table if `REFRESH_SECONDS` have passed."""
        if time.monotonic() - self._last < REFRESH_SECONDS:
            return
        self._last, trials = time.monotonic(), self.sweep.known_trials()
        ended = sum(trial.state != RUNNING for trial in trials)
        if self.console.is_terminal:
            self._live.update(progress_table(self.sweep, trials), refresh=True)
        elif ended > self._ended:
            self.console.print(f"{ended} of {self.sweep.num_trials} trials have ended")
        self._ended = ended


def progress_table(sweep: Sweep, trials: Sequence[Trial]) -> Table:
    """Return the table of the trials that run, and of the best others.

    Args:
        sweep: the sweep.
        trials: that have begun.
    """
    ended = sum(trial.state != RUNNING for trial in trials)
    table = Table(title=f"{ended} of {sweep.num_trials} trials have ended", title_justify="left")
    for name in ("trial", "state", "options", "seeds", "mean score so far"):
        table.add_column(name, justify="right" if name == "mean score so far" else "left", overflow="fold")
    means = {trial.directory: mean_so_far(sweep, trial) for trial in trials}

    def order(trial: Trial) -> tuple[bool, float]:
        mean = means[trial.directory]
        return trial.state != RUNNING, float("inf") if mean is None else -mean

    for trial in sorted(trials, key=order)[:MOST_ROWS]:
        mean, done = means[trial.directory], sum(fit.finished for fit in trial.fits)
        score = "" if mean is None else f"{mean:.4g}"
        seeds = f"{done} of {len(trial.fits)}"
        table.add_row(trial.directory.name, trial.state, options_line(trial.options), seeds, score)
    return table


def mean_so_far(sweep: Sweep, trial: Trial) -> float | None:
    """Return the newest running mean of a trial over its seeds, or None before its first validation."""
    means = running_means(trial.curves(sweep.validations), sweep.validations or 1)
    return means[-1] if means else None


def options_line(options: Mapping[str, Any]) -> str:
    """Return options in one line, with the last parts of their names: `critic_lr 0.0003, n_step 5`."""
    return ", ".join(f"{name.rpartition('.')[2]} {short(value)}" for name, value in options.items())


def short(value: object) -> str:
    """Return a value as a short text: a fraction has four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
