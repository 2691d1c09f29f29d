"""Comparison of agents that learned several tasks in turn: `bayes-rl report RUN... [--output DIR]`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bayes_rl.envs.shared_spaces import task_name
from bayes_rl.errors import did_you_mean
from bayes_rl.metrics import continual
from bayes_rl.metrics.atari_scores import RANDOM_AND_HUMAN
from bayes_rl.reporting.figures import INTERVALS, Measures, draw_curves, draw_matrices, score_table, summary_table
from bayes_rl.reporting.runs import ReportError, Run, read_file, read_run
from bayes_rl.utils.failures import warn_of_failure
from bayes_rl.utils.files import write_atomic

COMPARED = {
    "tasks": "data.tasks",
    "cycles": "data.curriculum.cycles",
    "frames_per_task": "data.curriculum.frames_per_task",
}
"""Attributes of a run that must be equal in all runs of a report, and their options."""


NOT_NORMALISED = {"isolated forgetting", "zero-shot transfer"}
"""Columns of the summary that no reference has a part in."""


def check_runs(runs: Sequence[Run], singles: Sequence[Run], allow_incomplete: bool) -> list[str]:
    """Return warnings about runs that are not finished, and about references of other spaces.

    Raises:
        ReportError: if the runs cannot be compared.
    """
    if not runs:
        raise ReportError("none of the runs has data.tasks: there is no sequence of tasks to report")
    first, warnings = runs[0], []
    for run in runs:
        for name, option in COMPARED.items():
            ours, theirs = getattr(run, name), getattr(first, name)
            if ours != theirs:
                raise ReportError(f"{run.path}: {option} {ours} differs from {theirs} of {first.path}")
        finished = [row is not None for row in run.ends()[1:]]
        if not all(finished):
            warnings.append(f"{run.path}: {sum(finished)} of {len(finished)} visits are finished")
            if not allow_incomplete:
                raise ReportError(f"{warnings[-1]}; finish training, or give --allow_incomplete")
    for run in singles:
        if run.tasks[0] not in first.tasks:
            known = f"{', '.join(first.tasks)}{did_you_mean(run.tasks[0], first.tasks)}"
            raise ReportError(f"{run.path}: data.env {run.tasks[0]!r} is none of the tasks {known}")
        if not run.frames[-1] > first.frames_per_task - first.epoch_frames / 2:
            raise ReportError(
                f"{run.path}: its {run.frames[-1]:,.0f} frames are fewer than a visit's {first.frames_per_task:,}"
            )
    return warnings + reference_warnings(singles, first)


def reference_warnings(singles: Sequence[Run], sequence: Run) -> list[str]:
    """Return warnings about references that may have other actions and observations than the sequence."""
    fix = f"learn it again with --data.spaces_of '{json.dumps(sequence.envs)}'"
    return [
        f"{run.path}: may have other actions and observations than the sequence, which biases the comparison; {fix}"
        for run in singles
        if [task_name(str(env)) for env in run.spaces] != sequence.tasks
    ]


def label_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by label: the method, and those settings in which runs of the method differ."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = [other for other in runs if other.method == run.method]
        told = [f"{k} {v}" for k, v in run.settings.items() if any(o.settings.get(k) != v for o in same)]
        groups.setdefault(", ".join(["fine-tuning" if run.method == "none" else run.method, *told]), []).append(run)
    return groups


def find_bounds(
    task: str, kind: str, references: Mapping[str, Any], singles: Sequence[Run], runs: Sequence[Run] = ()
) -> tuple[float, float]:
    """Return the raw scores of a task that count as 0 and as 1.

    Args:
        task: short name.
        kind: `human` for published scores of random play and of humans, or `reference`.
        references: `[random, reference]` by task; a reference of null is taken from the single-task runs.
        singles: single-task runs; without a reference score, their first and last scores are the bounds.
        runs: runs over all tasks, whose untrained scores count as 0 if no single-task run has one.

    Raises:
        ReportError: if there are no such scores.
    """
    give = f'give --references FILE.json with {{"{task}": [random, reference]}}'
    alone = [run for run in singles if run.tasks == [task]]
    pair = RANDOM_AND_HUMAN.get(task) if kind == "human" else references.get(task)
    if kind == "reference" and task not in references and alone:
        before = [run.counted[0, 0] for run in alone if run.frames[0] == 0]
        before = before or [run.counted[0, run.tasks.index(task)] for run in runs if run.frames[0] == 0]
        low = np.mean(before) if before else 0.0
        pair = [float(low), float(np.mean([run.counted[-1, 0] for run in alone]))]
    if isinstance(pair, list) and len(pair) == 2 and pair[1] is None and alone:
        pair = [pair[0], float(np.mean([run.counted[-1, 0] for run in alone]))]
    if pair is None:
        raise ReportError(f"{task}: no {kind} score is known; {give}, or a single-task run of it")
    numbers = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair)
    if not (numbers and -math.inf < pair[0] < pair[1] < math.inf):
        raise ReportError(f"{task}: {pair!r} is no random score and a higher {kind} score; {give}")
    return float(pair[0]), float(pair[1])


def transfer(run: Run, task: int, alone: Sequence[Run], low: float, high: float) -> Tensor:
    """Return the forward transfer of a task in its first visit, a scalar; NaN without the scores that it needs.

    Args:
        run: over all tasks.
        task: number of the task.
        alone: runs that learned the task alone.
        low: raw score that counts as 0.
        high: raw score that counts as 1.
    """
    start, end = run.switches()[task : task + 2]
    if None in run.ends()[max(task, 1) : task + 2] or not alone:
        return torch.tensor(math.nan, dtype=torch.float64)

    def area(of: Run, column: int, start: float, end: float) -> Tensor:
        frames, scores = of.frames, of.counted[:, column]
        if frames[0] > 0:  # no validation at frame 0: the score of random play
            frames, scores = np.append(0.0, frames), np.append(low, scores)
        normalised = continual.normalise(torch.from_numpy(scores), low, high)
        return continual.area_under_curve(torch.from_numpy(frames), normalised, start, end)

    reference = torch.stack([area(other, 0, 0.0, end - start) for other in alone]).mean()
    return continual.forward_transfer(area(run, task, start, end), reference)


def measure(runs: Sequence[Run], bounds: Tensor, alone: Sequence[Sequence[Run]]) -> dict[str, Tensor]:
    """Return the values that columns of the summary average: `[N, M]` by column, for N runs and M tasks or cells.

    Args:
        runs: of one method.
        bounds: raw scores that count as 0 and as 1, `[2, T]`.
        alone: single-task runs of each task.
    """
    visits = [*range(len(runs[0].tasks))] * runs[0].cycles
    since = continual.visits_since_own(visits)
    scale = torch.from_numpy(
        np.fmax.reduce(np.abs(np.concatenate([run.scores for run in runs])))
    )  # of all seeds, as in CORA
    columns: dict[str, list[Tensor]] = {}
    for run in runs:
        raw = run.matrix()
        scores = continual.normalise(run.matrix(run.counted), *bounds)
        values = {
            "average performance": scores[-1],
            "IQM": scores[-1],
            "new tasks": continual.own_scores(scores, visits, first=True),
            "forgetting": continual.forgetting(scores, visits),
            "backward transfer": continual.backward_transfer(scores, visits),
            "forward transfer": torch.stack([transfer(run, i, alone[i], *bounds[:, i].tolist()) for i in set(visits)]),
            "isolated forgetting": continual.isolated_forgetting(raw, visits, scale)[since > 0],
            "zero-shot transfer": continual.zero_shot_transfer(raw, visits, scale)[since < 0],
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in columns.items()}


def runs_of_tasks(singles: Sequence[Run], tasks: Sequence[str]) -> list[list[Run]]:
    """Return the single-task runs of each task."""
    return [[run for run in singles if run.tasks == [task]] for task in tasks]


def measure_method(
    runs: Sequence[Run], singles: Sequence[Run], bounds_of: Callable[[Sequence[Run]], Tensor]
) -> Measures:
    """Return the numbers of one method, and the same without each single-task run in turn.

    Scores that count as 0 and as 1 may depend on the single-task runs, and forward transfer does: they have a spread of
    their own, which belongs to the intervals.

    Args:
        runs: of one method.
        singles: single-task runs.
        bounds_of: returns the raw scores that count as 0 and as 1, `[2, T]`, by the single-task runs, or raises
            `ReportError`.
    """
    tasks = runs[0].tasks
    alone = runs_of_tasks(singles, tasks)
    whole = measure(runs, bounds_of(singles), alone)

    def values_without(left_out: Run) -> dict[str, Tensor]:
        others = [run for run in singles if run is not left_out]
        try:
            return measure(runs, bounds_of(others), runs_of_tasks(others, tasks))
        except ReportError:  # nothing is normalised without the only reference of a task
            return {name: value if name in NOT_NORMALISED else value * math.nan for name, value in whole.items()}

    return Measures(whole, [[values_without(run) for run in task] for task in alone])


def compare(
    runs: Sequence[Run], singles: Sequence[Run], bounds_of: Callable[[Sequence[Run]], Tensor], kind: str
) -> tuple[str, dict[str, Callable[[], Figure]]]:
    """Return the report in Markdown, and functions that draw its figures, by file name.

    Args:
        runs: over all tasks.
        singles: single-task runs.
        bounds_of: returns the raw scores that count as 0 and as 1, `[2, T]`, by the single-task runs, or raises
            `ReportError`.
        kind: name of the score that counts as 1.
    """
    groups, tasks, bounds = label_runs(runs), runs[0].tasks, bounds_of(singles)
    alone = runs_of_tasks(singles, tasks)
    raw, counted = (
        {label: torch.stack([run.matrix(of(run)) for run in group]) for label, group in groups.items()}
        for of in (operator.attrgetter("scores"), operator.attrgetter("counted"))
    )
    names = {run: label for label, group in groups.items() for run in group}
    names |= {run: f"{run.tasks[0]} alone" for run in singles}
    paragraphs = (
        f"# {len(tasks)} tasks in turn, {runs[0].cycles} x {runs[0].frames_per_task:,} frames each",
        summary_table({label: measure_method(group, singles, bounds_of) for label, group in groups.items()}),
        f"Normalised scores: 0 is random or untrained play, 1 the {kind} score. " + INTERVALS,
        score_table(raw, tasks, bounds),
        "\n".join(f"* `{r.path}`: {name}, seed {r.seed}, {r.frames[-1]:,.0f} frames" for r, name in names.items()),
    )
    curves = {label: [(run.frames, run.scores) for run in group] for label, group in groups.items()}
    references = [[(run.frames, run.scores) for run in group] for group in alone]
    schedule = max(runs, key=lambda run: float(run.frames[-1])).switches()
    means = {label: continual.normalise(scores, *bounds).nanmean(0).numpy() for label, scores in counted.items()}
    return "\n\n".join(paragraphs) + "\n", {
        "curves.png": partial(draw_curves, curves, references, tasks, schedule),
        "matrix.png": partial(draw_matrices, means, tasks),
    }


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        text: the report in Markdown.
        warnings: one line for each run that is not finished, or is no fair reference.
        files: `report.md`, and the figures that could be drawn.
    """

    text: str
    warnings: list[str]
    files: list[Path]


def write_report(
    runs: Sequence[Path],
    output: Path,
    references: Path | None = None,
    normalise: str | None = None,
    allow_incomplete: bool = False,
) -> Report:
    """Read runs, and write `report.md`, `curves.png` and `matrix.png`.

    Args:
        runs: directories of runs, those over several tasks and single-task references; a repeated one counts once.
        output: directory to write to.
        references: JSON file `{task: [random, reference]}` of raw scores.
        normalise: the raw score that counts as 1, `human` or `reference`; None takes `reference` where one is known.
        allow_incomplete: report runs that are not finished, with a warning.

    Raises:
        ReportError: if a file cannot be read or the runs cannot be compared.
        OSError: if a file cannot be written.
    """
    first: dict[Path, Path] = {}
    for path in runs:
        first.setdefault(path.resolve(), path)
    every = [read_run(path) for path in first.values()]
    sequences, singles = [run for run in every if run.cycles], [run for run in every if not run.cycles]
    warnings = check_runs(sequences, singles, allow_incomplete)
    scores = read_file(references, lambda file: json.loads(file.read_bytes())) if references else {}
    if not isinstance(scores, dict):
        raise ReportError(f"{references} must be {{task: [random, reference]}}, got {scores!r}")
    if scores and not set(scores) & set(sequences[0].tasks):
        raise ReportError(f"{references} names none of the tasks {', '.join(sequences[0].tasks)}")
    kind = normalise or ("reference" if scores or singles else "human")

    def bounds_of(singles: Sequence[Run]) -> Tensor:
        pairs = [find_bounds(task, kind, scores, singles, sequences) for task in sequences[0].tasks]
        return torch.tensor(pairs, dtype=torch.float64).T

    text, figures = compare(sequences, singles, bounds_of, kind)
    text += "".join(f"* warning: {warning}\n" for warning in warnings)
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / "report.md", lambda file: file.write(text.encode()))
    files = [output / "report.md"]
    for name, draw in figures.items():
        with warn_of_failure(f"drawing {output / name}"):
            figure = draw()
            write_atomic(output / name, partial(figure.savefig, dpi=120, format="png"))
            files.append(output / name)
    return Report(text, warnings, files)
