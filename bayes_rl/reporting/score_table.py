"""Closing table of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayes_rl.evaluation.game_metrics import SCORES

FILE_COLUMN = 16
"""Column of the closing table in which the files begin."""


def score_table(
    game: str, tasks: Sequence[str], sticky_actions: float, scores: dict[str, float], files: dict[str, str]
) -> str:
    """Return the closing table of a run: scores of whole games, then the files of the run, one per line.

    Args:
        game: name of the game.
        tasks: names of the tasks, empty unless there are several.
        sticky_actions: probability that an action is repeated.
        scores: metrics of whole games by name, each with the prefix `TASK/` if there are several tasks.
        files: label to path.
    """
    prefixes = [f"{task}/" for task in tasks] or [""]
    width = min(22, max(10, 60 // len(tasks))) if tasks else 10  # a terminal has 80 columns
    title = f"{'tasks' if tasks else game}: raw scores of whole greedy games"
    lines = [f"{title}, sticky actions {sticky_actions:g}"]
    if tasks:
        lines.append(f"  {'':<18}" + "".join(f"{task[1 - width :]:>{width}}" for task in tasks))
    for key, name in SCORES:
        values = [scores.get(f"{prefix}{key}", np.nan) for prefix in prefixes]
        if not all(np.isnan(values)):  # a row without a number is left out
            cells = ["-" if np.isnan(value) else f"{value:.2f}" for value in values]
            lines.append(f"  {name:<18}" + "".join(f" {cell:>{width - 1}}" for cell in cells))
    return "\n".join([*lines, *(f"{name:<{FILE_COLUMN}}{path}" for name, path in files.items())])


def as_scores(metrics: Any, stage: str) -> dict[str, float]:
    """Return the metrics of a stage (`val`, `test`) as floats, by name without the prefix of the stage."""
    return {k.removeprefix(f"{stage}/"): float(v) for k, v in metrics.items() if k.startswith(f"{stage}/")}
