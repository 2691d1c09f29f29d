"""What is left of a run for people to read: its curve and its closing table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayes_rl.datamodule import ReplayDataModule
from bayes_rl.files import write_whole


def write_curve(history: list[dict[str, float]], game: str, directory: Path, tasks: Sequence[str] = ()) -> None:
    """Write `metrics.npy` (a structured float64 array, a row per validation) and `learning_curve.png`, which has a
    panel for each of several tasks.
    """
    from matplotlib.figure import Figure

    columns = sorted({column for row in history for column in row})
    rows = [tuple(row.get(c, np.nan) for c in columns) for row in history]  # a limit of batches can leave tasks out
    table = np.array(rows, [(c, np.float64) for c in columns])
    write_whole(directory / "metrics.npy", lambda file: np.save(file, table))
    prefixes = [f"{task}/" for task in tasks if f"{task}/return_mean" in columns] or [""]
    figure = Figure(figsize=(7, 1.5 + 2.5 * len(prefixes)), layout="constrained")
    panels = figure.subplots(len(prefixes), 1, sharex=True, squeeze=False)[:, 0]
    for prefix, axes in zip(prefixes, panels, strict=True):
        low, high = table[f"{prefix}return_min"], table[f"{prefix}return_max"]
        axes.fill_between(table["frames"], low, high, alpha=0.15, label="min to max")
        axes.plot(table["frames"], table[f"{prefix}return_mean"], marker="o", label="mean")
        axes.plot(table["frames"], table[f"{prefix}return_iqm"], linestyle="--", label="IQM")
        for visit in range(int(table["visit"].max()) + 1 if tasks else 0):
            ends = table["frames"][table["visit"] <= visit]
            if f"{tasks[visit % len(tasks)]}/" == prefix and (table["visit"] == visit).any():
                begin = table["frames"][table["visit"] < visit].max(initial=0)
                axes.axvspan(begin, ends.max(), color="tab:orange", alpha=0.12)  # where it is trained
        axes.set(title=f"{prefix[:-1] or game}: raw score of whole greedy games", ylabel="score")
        axes.grid(alpha=0.3)
    panels[-1].set(xlabel="environment frames")
    panels[0].legend()
    write_whole(directory / "learning_curve.png", lambda file: figure.savefig(file, dpi=120, format="png"))


def report(data: ReplayDataModule, scores: dict[str, float], files: dict[str, str]) -> str:
    """The closing table: `scores` of whole games, then the files of the run, one per line."""
    keys = (
        "games",
        "games_cut",
        "return_mean",
        "return_median",
        "return_iqm",
        "return_min",
        "return_max",
        "human_normalised",
        "return_rmse",
        "coverage_50",
        "coverage_90",
        "calibration_error",
        "epistemic_std",
        "greedy_disagreement",
    )
    names = (
        *("games", "cut when idle", "mean", "median", "IQM", "min", "max", "human-normalised"),
        *("error of values", "in 50 % interval", "in 90 % interval", "calibration error"),
        *("std of Q", "draws disagree"),
    )
    tasks = data.curriculum.names if data.num_tasks > 1 else []
    prefixes = [f"{task}/" for task in tasks] or [""]
    title = f"{'tasks' if tasks else data.game}: raw scores of whole greedy games"
    lines = [f"{title}, sticky actions {data.settings.sticky_actions:g}"]
    if tasks:
        lines.append(f"  {'':<18}" + "".join(f"{task[-20:]:>22}" for task in tasks))
    for key, name in zip(keys, names, strict=True):
        values = [scores.get(f"{prefix}{key}", np.nan) for prefix in prefixes]
        if not all(np.isnan(values)):  # nothing to say: not a number
            cells = ["-" if np.isnan(value) else f"{value:.2f}" for value in values]
            lines.append(f"  {name:<18}" + "".join(f"{cell:>{22 if tasks else 10}}" for cell in cells))
    return "\n".join([*lines, *(f"{name:<16}{path}" for name, path in files.items())])


def as_scores(metrics: Any, stage: str) -> dict[str, float]:
    """The metrics of a stage (`val`, `test`) as plain floats, without its prefix."""
    return {k.removeprefix(f"{stage}/"): float(v) for k, v in metrics.items() if k.startswith(f"{stage}/")}
