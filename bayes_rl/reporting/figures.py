"""Numbers with intervals, tables, learning curves, and heat maps of scores after each visit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.metrics.intervals import FEWEST_RUNS, jackknife_interval, leave_one_out
from bayes_rl.metrics.returns import interquartile_mean

Floats = NDArray[np.float64]


Curve = tuple[Floats, Floats]  # increasing environment frames `[P]`, and scores there, `[P]` or, of all tasks, `[P, T]`


NOTHING = "-"  # a missing number


SUMMARY = {  # columns and their definitions: all but the IQM are means, as in their papers
    "average performance": "mean over tasks of the normalised score at the end (Wolczyk et al. 2021)",
    "IQM": "interquartile mean of the same scores, over tasks and seeds (Agarwal et al. 2021)",
    "new tasks": "mean over tasks of the normalised score right after the first visit",
    "forgetting": "mean over tasks of the score after the last visit less that at the end (Wolczyk et al. 2021)",
    "backward transfer": "mean of the opposite, without the task trained last (Lopez-Paz and Ranzato 2017)",
    "forward transfer": "mean over tasks of (AUC - AUC alone) / (1 - AUC alone), first visit (Wolczyk et al. 2021)",
    "isolated forgetting": "mean loss of an earlier task in one visit / its greatest |return| (Powers et al. 2021)",
    "zero-shot transfer": "mean gain of a later task in one visit / its greatest |return| (Powers et al. 2021)",
}


class Band(NamedTuple):
    """A learning curve over seeds.

    Attributes:
        frames: environment frames, increasing, `[P]`.
        mean, low, high: of the score over the seeds that have one at these frames, `[P]`; NaN without one.
    """

    frames: Floats
    mean: Floats
    low: Floats
    high: Floats


class Measures(NamedTuple):
    """Numbers of the runs of one method.

    Attributes:
        values: of N runs on M tasks (or cells), `[N, M]`, by column.
        without_reference: the same values without one single-task run, for each task and each of its runs.
    """

    values: Mapping[str, Tensor]
    without_reference: Sequence[Sequence[Mapping[str, Tensor]]] = ()


INTERVALS = (
    f"[a, b] is a 95 % interval over {FEWEST_RUNS} or more seeds (Student's t, jackknife over runs and references), "
    "(a to b) is min to max of single seeds where there are fewer."
)
"""Legend of the ranges that `estimate` writes."""


def estimate(
    values: Tensor, statistic: Callable[[Tensor], Tensor], without_reference: Sequence[Sequence[Tensor]] = ()
) -> str:
    """Return a statistic over runs and tasks as `0.50 [0.40, 0.60]`, with its 95 % interval.

    Below `FEWEST_RUNS` runs, or references that the statistic depends on, the range is `(0.40 to 0.60)`: the least and
    the greatest statistic of a single run. Runs with a value that is not finite are left out, and the text counts them.
    One run has no range.

    Args:
        values: of N runs on M tasks, `[N, M]`.
        statistic: mean or interquartile mean: a vector `[N * M]` to a scalar.
        without_reference: `[N, M]` without one reference, for each task and each of its references.
    """
    finite = values.isfinite().all(1)
    known = values[finite]
    if not known.numel():
        return NOTHING
    whole = statistic(known.flatten())
    text = _number(whole.item(), 2)
    if len(known) > 1:
        references = [
            torch.stack([statistic(other[finite].flatten()) for other in task]) for task in without_reference if task
        ]
        matter = [estimates for estimates in references if not (estimates == whole).all()]
        if len(known) < FEWEST_RUNS or any(len(e) < FEWEST_RUNS or not e.isfinite().all() for e in matter):
            ends = torch.stack([statistic(run) for run in known])
            text += f" ({_number(ends.min().item(), 2)} to {_number(ends.max().item(), 2)})"
        else:
            averaged = known.numel() - (2 * (known.numel() // 4) if statistic is interquartile_mean else 0)
            low, high = jackknife_interval(whole.item(), [leave_one_out(known, statistic), *matter], averaged)
            text += f" [{_number(low, 2)}, {_number(high, 2)}]"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} runs)"


def spread(values: Tensor) -> str:
    """Return raw scores `[N]` as `12.3 [10.0, 14.6]`: mean, minimum and maximum over the finite ones."""
    known = values[values.isfinite()]
    if not len(known):
        return NOTHING
    ends = f" [{_number(known.min().item(), 1)}, {_number(known.max().item(), 1)}]" if len(known) > 1 else ""
    return _number(known.mean().item(), 1) + ends


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.00"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned as plain text too."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [heading, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def summary_table(measured: Mapping[str, Measures]) -> str:
    """Return the columns of `SUMMARY` that have numbers, a row per method, and their definitions.

    Args:
        measured: numbers by method.
    """
    cells = {
        name: [
            estimate(
                values[name],
                interquartile_mean if name == "IQM" else torch.mean,
                [[other[name] for other in task] for task in without_reference],
            )
            for values, without_reference in measured.values()
        ]
        for name in SUMMARY
    }
    columns = [name for name in SUMMARY if set(cells[name]) != {NOTHING}]
    seeds = [str(len(measures.values["IQM"])) for measures in measured.values()]
    rows = [*zip(measured, seeds, *(cells[name] for name in columns), strict=True)]
    legend = [f"* {name}: {SUMMARY[name]}" for name in columns]
    return "\n".join([table(["method", "seeds", *columns], rows), "", *legend])


def score_table(raw: Mapping[str, Tensor], tasks: Sequence[str], bounds: Tensor) -> str:
    """Return raw scores of every task after its visits and at the end, over seeds.

    Args:
        raw: matrices of scores of N runs, `[N, V + 1, T]`, by method.
        tasks: names, `[T]`; visit v trains task v modulo T.
        bounds: scores that count as 0 and as 1, `[2, T]`.
    """
    visits = next(iter(raw.values())).shape[1] - 1
    again = visits > len(tasks)
    rows = []
    for number, task in enumerate(tasks):
        ends = [f"{bound:g}" for bound in bounds[:, number].tolist()]
        after = [number + 1, *([visits - len(tasks) + number + 1] if again else []), -1]
        rows += [[task, *ends, name, *(spread(scores[:, r, number]) for r in after)] for name, scores in raw.items()]
    own = ["after its first visit", "after its last visit"] if again else ["after its visit"]
    lines = table(["task", "as 0", "as 1", "method", *own, "at the end"], rows)
    return f"{lines}\n\nRaw scores of whole games: mean [min, max] over seeds."


def band(curves: Sequence[Curve]) -> Band:
    """Return mean, minimum and maximum over the curves `[P]` of several seeds, each linear between its points.

    Points of all seeds that are a few frames apart count as one, at their mean.
    """
    grid = np.unique(np.concatenate([frames for frames, _ in curves]))
    if len({len(frames) for frames, _ in curves}) == 1:
        every = np.stack([frames for frames, _ in curves])
        if np.ptp(every, 0).max() < 0.1 * np.diff(every).min(initial=np.inf):
            grid, curves = every.mean(0), [(every.mean(0), scores) for _, scores in curves]
    lines = np.stack([np.interp(grid, frames, scores, left=np.nan, right=np.nan) for frames, scores in curves])
    known = np.ma.masked_invalid(lines)
    mean, low, high = (np.ma.filled(line, np.nan) for line in (known.mean(0), known.min(0), known.max(0)))
    return Band(grid, mean, low, high)


def draw_curves(
    curves: Mapping[str, Sequence[Curve]],
    references: Sequence[Sequence[Curve]],
    tasks: Sequence[str],
    switches: Sequence[float],
) -> Figure:
    """Draw one panel per task: raw score against frames for each method, mean and minimum to maximum over seeds.

    Args:
        curves: method to the curves of its seeds, of all tasks.
        references: for each task the curves, `[P, 1]`, of agents that learned it alone; drawn from its first visit on.
        tasks: names in the order of training, `[T]`.
        switches: frames at which visits begin, and at which the last ends, `[V + 1]`.
    """
    figure = Figure(figsize=(9, 0.8 + 2.2 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
    for number, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
        for visit, (start, end) in enumerate(pairwise(switches)):
            if visit % len(tasks) == number:
                axes.axvspan(start, end, color="0.9", zorder=0)
        for switch in switches[1:-1]:
            axes.axvline(switch, color="0.6", linewidth=0.8, linestyle=":")
        for colour, (method, seeds) in enumerate(curves.items()):
            line = band([(frames, scores[:, number]) for frames, scores in seeds])
            axes.fill_between(line.frames, line.low, line.high, color=f"C{colour}", alpha=0.2, linewidth=0)
            axes.plot(line.frames, line.mean, color=f"C{colour}", marker=".", label=method)
        if references[number]:
            line = band([(frames, scores[:, 0]) for frames, scores in references[number]])
            axes.plot(line.frames + switches[number], line.mean, color="black", linestyle="--", label="learned alone")
        axes.set(title=task, ylabel="score")
    margin = 0.01 * (switches[-1] - switches[0])  # an agent that learned alone may have learned for longer
    panels[-1].set(xlabel="environment frames", xlim=(switches[0] - margin, switches[-1] + margin))
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=min(4, len(labelled)))
    return figure


def draw_matrices(matrices: Mapping[str, Floats], tasks: Sequence[str]) -> Figure:
    """Draw one heat map per method: normalised score of each task (row) before training and after visits (columns).

    Args:
        matrices: method to its scores `[V + 1, T]`; NaN has no color. The cell of the task just trained is framed.
        tasks: names, `[T]`; visit v trains task v modulo T.
    """
    columns = min(2, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    shape = next(iter(matrices.values())).shape
    size = (columns * (2.0 + 0.6 * shape[0]), rows * (1.3 + 0.5 * shape[1]))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    known = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices.values()] + [np.array([0.0, 1.0])])
    for (method, matrix), axes in zip(matrices.items(), panels, strict=False):
        image = axes.imshow(matrix.T, vmin=known.min(), vmax=known.max(), cmap="viridis", aspect="auto")
        for (visit, task), score in np.ndenumerate(matrix):
            dark = image.norm(score) < 0.6 and math.isfinite(score)
            text = _number(score, 2) if math.isfinite(score) else NOTHING
            axes.text(visit, task, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            if visit > 0 and (visit - 1) % len(tasks) == task:
                axes.add_patch(Rectangle((visit - 0.5, task - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
        axes.set_xticks(range(len(matrix)), ["start", *(str(visit) for visit in range(1, len(matrix)))])
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set(title=method, xlabel="after visit")
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=panels, label="normalised score")
    return figure
