"""Learning curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bayes_rl.evaluation.game_metrics import LABELS
from bayes_rl.utils.files import write_atomic


def write_curve(history: list[dict[str, float]], game: str, directory: Path, tasks: Sequence[str] = ()) -> None:
    """Write `metrics.npy` and `learning_curve.png`.

    Args:
        history: metrics of each validation, with `frames`, and with `visit` if there are several tasks. They are the
            rows of `metrics.npy`, a structured float64 array.
        game: name of the game, for the title.
        directory: of the run.
        tasks: names of the tasks, each of which gets a panel; empty unless there are several.
    """
    from matplotlib.figure import Figure

    columns = sorted({column for row in history for column in row})
    rows = [
        tuple(row.get(c, np.nan) for c in columns) for row in history
    ]  # with a limit of batches, tasks can be missing
    table = np.array(rows, [(c, np.float64) for c in columns])
    write_atomic(directory / "metrics.npy", lambda file: np.save(file, table))
    prefixes = [f"{task}/" for task in tasks if f"{task}/return_mean" in columns] or [""]
    figure = Figure(figsize=(7, 1.5 + 2.5 * len(prefixes)), layout="constrained")
    panels = figure.subplots(len(prefixes), 1, sharex=True, squeeze=False)[:, 0]
    for prefix, axes in zip(prefixes, panels, strict=True):
        low, high = table[f"{prefix}return_min"], table[f"{prefix}return_max"]
        axes.fill_between(
            table["frames"], low, high, alpha=0.15, label=f"{LABELS['return_min']} to {LABELS['return_max']}"
        )
        axes.plot(table["frames"], table[f"{prefix}return_mean"], marker="o", label=LABELS["return_mean"])
        axes.plot(table["frames"], table[f"{prefix}return_iqm"], linestyle="--", label=LABELS["return_iqm"])
        for visit in range(int(table["visit"].max()) + 1 if tasks else 0):
            ends = table["frames"][table["visit"] <= visit]
            if f"{tasks[visit % len(tasks)]}/" == prefix and (table["visit"] == visit).any():
                begin = table["frames"][table["visit"] < visit].max(initial=0)
                axes.axvspan(begin, ends.max(), color="tab:orange", alpha=0.12)  # frames that train this task
        axes.set(title=f"{prefix[:-1] or game}: raw score of whole greedy games", ylabel="score")
        axes.grid(alpha=0.3)
    panels[-1].set(xlabel="environment frames")
    panels[0].legend()
    write_atomic(directory / "learning_curve.png", lambda file: figure.savefig(file, dpi=120, format="png"))
