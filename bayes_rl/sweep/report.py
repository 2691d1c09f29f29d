"""Report of a sweep: tables, pictures, and the configuration of the best trial, made from the files of the sweep."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from bayes_rl.metrics.returns import interquartile_mean
from bayes_rl.reporting.figures import INTERVALS, NOTHING, estimate, table
from bayes_rl.sweep.figures import draw_curves, draw_importance, draw_parallel_coordinates
from bayes_rl.sweep.fit import METRIC
from bayes_rl.sweep.progress import mean_so_far, short
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.trial import FAILED, FINISHED, PRUNED, Trial
from bayes_rl.utils.files import write_atomic
from bayes_rl.utils.settings import nested

FEWEST_TRIALS = 4
"""Finished trials below which importances are not stated."""


class Report(NamedTuple):
    """Report on disk.

    Attributes:
        text: content of `report.md`.
        files: that were written, with paths relative to the current folder.
    """

    text: str
    files: list[str]


def write_report(sweep: Sweep) -> Report:
    """Write `report.md`, the pictures and, if trials can be compared, `best.yaml` to the sweep's directory."""
    trials = sweep.known_trials()
    ended = [(trial.score(sweep.validations), trial) for trial in trials if trial.state == FINISHED]
    scored = [(score, trial) for score, trial in ended if score is not None]
    if sweep.comparable:
        scored = sorted((pair for pair in scored if math.isfinite(pair[0])), key=lambda pair: -pair[0])
    finished = [trial for _, trial in scored]
    files = []
    if finished:
        files += [_save(sweep, "curves", draw_curves(sweep, finished))]
    if sweep.comparable and len(finished) >= FEWEST_TRIALS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
            files += [_save(sweep, "parallel_coordinates", draw_parallel_coordinates(sweep, finished))]
            files += [_save(sweep, "importance", draw_importance(sweep, finished))]
    if sweep.comparable and finished:
        files.append(_write_best(sweep, finished[0]))
    text = _text(sweep, trials, finished, files)
    path = sweep.directory / "report.md"
    write_atomic(path, lambda file: file.write(text.encode()))
    return Report(text, [os.path.relpath(file) for file in [path, *files]])


def _save(sweep: Sweep, name: str, figure: object) -> Path:
    path = sweep.directory / f"{name}.png"
    write_atomic(path, lambda file: figure.savefig(file, dpi=120, format="png"))  # type: ignore[attr-defined]
    return path


def _write_best(sweep: Sweep, trial: Trial) -> Path:
    """Write the configuration of a trial without its seed."""
    path, head = sweep.directory / "best.yaml", f"# Best trial of {sweep.directory.name}: {trial.directory.name}.\n"
    text = head + yaml.safe_dump(nested({**sweep.options, **trial.options}), sort_keys=False)
    write_atomic(path, lambda file: file.write(text.encode()))
    return path


def _text(sweep: Sweep, trials: Sequence[Trial], finished: Sequence[Trial], files: Sequence[Path]) -> str:
    """Return the content of `report.md`."""
    count = {state: sum(trial.state == state for trial in trials) for state in (FINISHED, PRUNED, FAILED)}
    seeds = ", ".join(map(str, sweep.seeds))
    equal = f"after {sweep.validations} validations" if sweep.validations else "at equal minutes of training"
    lines = [
        f"# Sweep {sweep.directory.name}",
        "",
        f"{len(trials)} trials: {count[FINISHED]} finished, {count[PRUNED]} pruned, {count[FAILED]} failed. "
        f"Each finished trial has {len(sweep.seeds)} fits, with seeds {seeds}.",
        "",
        f"Validation score: interquartile mean over seeds of `val/{METRIC}` {equal}. "
        f"Test score: that of `test/{METRIC}`, in games that no choice has seen. {INTERVALS}",
        "",
        _results(sweep, finished),
    ]
    if pruned := [trial for trial in trials if trial.state == PRUNED]:
        lines += ["", "## Pruned", "", _pruned(sweep, pruned)]
    if failed := [trial for trial in trials if trial.state == FAILED]:
        lines += ["", "## Failed", "", *(f"* `{trial.directory.name}`: {trial.problem}" for trial in failed)]
    for path in files:
        if path.suffix == ".png":
            lines += ["", f"![{path.stem.replace('_', ' ')}]({path.name})"]
        else:
            command = f"bayes-rl fit --config {os.path.relpath(path, sweep.folder)}"
            lines += ["", f"The best trial with another seed: `{command}`"]
    return "\n".join(lines) + "\n"


def _results(sweep: Sweep, finished: Sequence[Trial]) -> str:
    """Return the table of finished trials."""
    names = [*sweep.space.options]
    rows = []
    for trial in finished:
        curves = trial.curves(sweep.validations)
        validated = torch.tensor([curve[-1] for curve in curves], dtype=torch.float64)
        options = [short(trial.options[name]) for name in names]
        rows.append([f"`{trial.directory.name}`", *options, _estimate(validated), _estimate(tested(trial))])
    return table(["trial", *names, "validation score", "test score"], rows) if rows else "No trial has finished."


def _pruned(sweep: Sweep, pruned: Sequence[Trial]) -> str:
    """Return the table of pruned trials, with the mean over seeds at which each was stopped."""
    names = [*sweep.space.options]
    rows = []
    for trial in pruned:
        mean = mean_so_far(sweep, trial)
        options = [short(trial.options[name]) for name in names]
        rows.append([f"`{trial.directory.name}`", *options, NOTHING if mean is None else f"{mean:.4g}"])
    return table(["trial", *names, "mean score when stopped"], rows)


def tested(trial: Trial) -> Tensor:
    """Return the test score of each seed, raw score of whole games, mean over the tasks, `[S]`; NaN without one."""
    scores = [[v for name, v in fit.test_scores().items() if name.split("/")[-1] == METRIC] for fit in trial.fits]
    return torch.tensor([sum(s) / len(s) if s else float("nan") for s in scores], dtype=torch.float64)


def _estimate(scores: Tensor) -> str:
    """Return the interquartile mean of scores `[S]` with its interval."""
    return estimate(scores[:, None], interquartile_mean)
