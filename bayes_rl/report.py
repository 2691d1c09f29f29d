"""Compares agents that learned several tasks in turn: `python -m bayes_rl.report RUN... [--output DIR]`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from bayes_rl import continual
from bayes_rl.figures import Floats, draw_curves, draw_matrices, score_table, summary_table
from bayes_rl.metrics import RANDOM_AND_HUMAN
from bayes_rl.tasks import task_name
from bayes_rl.types import nearest


class ReportError(ValueError):
    """Input that cannot be reported. Its text is one line that names the file, the key or the value."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        path, seed: the directory, and its `seed_everything`.
        tasks: short names of the tasks, `[T]`; a single-task run has one.
        cycles: how often the tasks are visited in turn; 0 for a single-task run.
        frames_per_task, epoch_frames: frames planned for a visit, 0 if `cycles` is, and between two validations.
        method: what protects old tasks: `none`, `ewc`, `online_ewc` or `vcl`.
        settings: what may tell two runs of one method apart.
        frames, visit: environment frames and visit (-1 before training) at each validation, `[P]`.
        scores: raw score of each task at each validation, `[P, T]`.
    """

    path: Path
    seed: object
    tasks: list[str]
    cycles: int
    frames_per_task: int
    epoch_frames: int
    method: str
    settings: dict[str, object]
    frames: Floats
    visit: Floats
    scores: Floats

    def ends(self) -> list[int | None]:
        """Row of the validation before training and after each visit, `[V + 1]`; None where a visit is not finished."""
        found = [np.flatnonzero(self.visit == visit) for visit in range(-1, len(self.tasks) * self.cycles)]
        ends = [int(rows[-1]) if len(rows) else None for rows in found]
        latest = int(self.visit.max()) + 1
        if 0 < latest < len(found):  # no later visit shows that this one went to its end
            trained = float(np.ptp(self.frames[found[latest]])) + self.epoch_frames
            ends[latest] = ends[latest] if trained > self.frames_per_task - self.epoch_frames / 2 else None
        return ends

    def matrix(self) -> Tensor:
        """Raw scores `[V + 1, T]` float64: row 0 before training, row v + 1 after visit v; NaN where there is none."""
        nothing = np.full(len(self.tasks), np.nan)
        return torch.from_numpy(np.stack([nothing if row is None else self.scores[row] for row in self.ends()]))

    def switches(self) -> list[float]:
        """Frames at the start of training and after each visit, `[V + 1]`; as planned where one is not finished."""
        start, *ends = self.ends()
        frames = [0.0 if start is None else float(self.frames[start])]
        for row in ends:
            frames.append(frames[-1] + self.frames_per_task if row is None else float(self.frames[row]))
        return frames


def read_file(file: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file; ReportError if it is not there or not of its kind."""
    try:
        return read(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ReportError(f"{file}: {text}") from error


def read_run(path: Path) -> Run:
    """Read `config.yaml` and `metrics.npy` of a run directory; ReportError if they are not what a run writes."""
    if not path.is_dir():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ReportError(f"{path} is no directory{nearest(path.name, beside)}")
    config = read_file(path / "config.yaml", lambda file: yaml.safe_load(file.read_bytes()))
    rows = read_file(path / "metrics.npy", lambda file: np.lib.format.open_memmap(file, mode="r"))  # no pickle

    def setting(key: str, kind: type, default: object = None) -> Any:
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        value = default if value is None else value
        if not isinstance(value, kind) or (kind is int and isinstance(value, int) and value < 1):
            wanted = "a positive int" if kind is int else f"a {kind.__name__}"
            raise ReportError(f"{path / 'config.yaml'}: {key} must be {wanted}, got {value!r}")
        return value

    def column(name: str) -> Floats:
        names = rows.dtype.names or ()
        if name not in names or rows.ndim != 1 or len(rows) == 0:
            raise ReportError(f"{path / 'metrics.npy'} has no validations in a column {name!r}{nearest(name, names)}")
        return np.array(rows[name], np.float64)

    envs = setting("data.tasks", list, [])
    several = len(envs) > 1
    tasks = [task_name(str(env)) for env in envs or [setting("data.env", str)]]
    if len(set(tasks)) < len(tasks):
        raise ReportError(f"{path / 'config.yaml'}: data.tasks {tasks} names a task twice")
    method = setting("model.consolidation", str, "none")
    protects = {"ewc_lambda": setting("model.ewc_lambda", object, 0.0)} if "ewc" in method else {}
    frames, visit = column("frames"), column("visit") if several else np.zeros(len(rows))
    if not ((np.diff(frames) > 0).all() and np.isfinite(visit).all()):
        raise ReportError(f"{path / 'metrics.npy'}: frames must increase, and visit be a number")
    return Run(
        path=path,
        seed=setting("seed_everything", object, "unknown"),
        tasks=tasks,
        cycles=setting("data.cycles", int) if several else 0,
        frames_per_task=setting("data.frames_per_task", int) if several else 0,
        epoch_frames=setting("data.frames_per_epoch", int) * setting("trainer.check_val_every_n_epoch", int, 1),
        method=method,
        settings=protects | {"task_conditioning": setting("data.task_conditioning", object, "none")},
        frames=frames,
        visit=visit,
        scores=np.stack([column(f"{task}/return_mean" if several else "return_mean") for task in tasks], axis=1),
    )


def check_runs(runs: Sequence[Run], singles: Sequence[Run], allow_incomplete: bool) -> list[str]:
    """Warnings about runs that are not finished; ReportError unless the runs can be compared."""
    if not runs:
        raise ReportError("none of the runs has data.tasks: there is no sequence of tasks to report")
    first, warnings = runs[0], []
    for run in runs:
        for name in ("tasks", "cycles", "frames_per_task"):
            ours, theirs = getattr(run, name), getattr(first, name)
            if ours != theirs:
                raise ReportError(f"{run.path}: data.{name} {ours} differs from {theirs} of {first.path}")
        finished = [row is not None for row in run.ends()[1:]]
        if not all(finished):
            warnings.append(f"{run.path}: {sum(finished)} of {len(finished)} visits are finished")
            if not allow_incomplete:
                raise ReportError(f"{warnings[-1]}; train on, or give --allow_incomplete")
    for run in singles:
        if run.tasks[0] not in first.tasks:
            known = f"{', '.join(first.tasks)}{nearest(run.tasks[0], first.tasks)}"
            raise ReportError(f"{run.path}: data.env {run.tasks[0]!r} is none of the tasks {known}")
        if not run.frames[-1] > first.frames_per_task - first.epoch_frames / 2:
            raise ReportError(
                f"{run.path}: its {run.frames[-1]:,.0f} frames are fewer than a visit's {first.frames_per_task:,}"
            )
    return warnings


def label_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by method, the label naming those settings in which runs of one method differ."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = [other for other in runs if other.method == run.method]
        told = [f"{key} {value}" for key, value in run.settings.items() if any(o.settings[key] != value for o in same)]
        groups.setdefault(", ".join(["fine-tuning" if run.method == "none" else run.method, *told]), []).append(run)
    return groups


def find_bounds(task: str, kind: str, references: Mapping[str, Any], singles: Sequence[Run]) -> tuple[float, float]:
    """The raw scores of a task that count as 0 and as 1; ReportError if there are none."""
    give = f'give --references FILE.json with {{"{task}": [random, reference]}}'
    alone = [run for run in singles if run.tasks == [task]]
    pair = RANDOM_AND_HUMAN.get(task) if kind == "human" else references.get(task)
    if kind == "reference" and task not in references and alone:
        low = np.mean([run.scores[0, 0] if run.frames[0] == 0 else 0.0 for run in alone])
        pair = [float(low), float(np.mean([run.scores[-1, 0] for run in alone]))]
    if pair is None:
        raise ReportError(f"{task}: no {kind} score is known; {give}, or a single-task run of it")
    numbers = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair)
    if not (numbers and -math.inf < pair[0] < pair[1] < math.inf):
        raise ReportError(f"{task}: {pair!r} is no random score and a higher {kind} score; {give}")
    return float(pair[0]), float(pair[1])


def transfer(run: Run, task: int, alone: Sequence[Run], low: float, high: float) -> Tensor:
    """Forward transfer of a task in its first visit, given the runs that learned it `alone`; NaN if it is not known."""
    start, end = run.switches()[task : task + 2]
    if None in run.ends()[max(task, 1) : task + 2] or not alone:
        return torch.tensor(math.nan, dtype=torch.float64)

    def area(of: Run, column: int, start: float, end: float) -> Tensor:
        frames, scores = of.frames, of.scores[:, column]
        if frames[0] > 0:  # frame 0 was not validated: random play
            frames, scores = np.append(0.0, frames), np.append(low, scores)
        normalised = continual.normalise(torch.from_numpy(scores), low, high)
        return continual.area_under_curve(torch.from_numpy(frames), normalised, start, end)

    reference = torch.stack([area(other, 0, 0.0, end - start) for other in alone]).mean()
    return continual.forward_transfer(area(run, task, start, end), reference)


def measure(runs: Sequence[Run], bounds: Tensor, alone: Sequence[Sequence[Run]]) -> dict[str, Tensor]:
    """What the columns of the summary average: `[N, M]` by column, for N runs of one method and M tasks or cells.

    `bounds` `[2, T]` holds the raw scores that count as 0 and as 1, `alone` the single-task runs of each task.
    """
    visits = [*range(len(runs[0].tasks))] * runs[0].cycles
    since = continual.visits_since_own(visits)
    scale = torch.from_numpy(
        np.fmax.reduce(np.abs(np.concatenate([run.scores for run in runs])))
    )  # of all seeds, as in CORA
    columns: dict[str, list[Tensor]] = {}
    for run in runs:
        raw = run.matrix()
        scores = continual.normalise(raw, *bounds)
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


def compare(runs: Sequence[Run], singles: Sequence[Run], bounds: Tensor, kind: str) -> tuple[str, dict[str, Figure]]:
    """The report in Markdown and its figures by file name; `kind` says what `bounds` `[2, T]`, scores 0 and 1, are."""
    groups, tasks = label_runs(runs), runs[0].tasks
    alone = [[run for run in singles if run.tasks == [task]] for task in tasks]
    raw = {label: torch.stack([run.matrix() for run in group]) for label, group in groups.items()}
    names = {run: label for label, group in groups.items() for run in group}
    names |= {run: f"{run.tasks[0]} alone" for run in singles}
    paragraphs = (
        f"# {len(tasks)} tasks in turn, {runs[0].cycles} x {runs[0].frames_per_task:,} frames each",
        summary_table({label: measure(group, bounds, alone) for label, group in groups.items()}),
        f"Normalised scores: 0 is random play, 1 the {kind} score. Intervals: 95 %, stratified bootstrap over seeds.",
        score_table(raw, tasks, bounds),
        "\n".join(f"* `{r.path}`: {name}, seed {r.seed}, {r.frames[-1]:,.0f} frames" for r, name in names.items()),
    )
    curves = {label: [(run.frames, run.scores) for run in group] for label, group in groups.items()}
    references = [[(run.frames, run.scores) for run in group] for group in alone]
    schedule = max(runs, key=lambda run: float(run.frames[-1])).switches()
    means = {label: continual.normalise(scores, *bounds).nanmean(0).numpy() for label, scores in raw.items()}
    return "\n\n".join(paragraphs) + "\n", {
        "curves.png": draw_curves(curves, references, tasks, schedule),
        "matrix.png": draw_matrices(means, tasks),
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"report: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs on the command line, and write `report.md`, `curves.png` and `matrix.png`."""
    parser = _Parser("report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="directory with config.yaml and metrics.npy")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("report"))
    parser.add_argument("--references", metavar="FILE", type=Path, help="JSON: {task: [random, reference]}")
    parser.add_argument("--normalise", choices=("human", "reference"), help="what counts as 1")
    parser.add_argument("--allow_incomplete", action="store_true", help="report runs that are not finished")
    options = parser.parse_args(arguments)
    try:
        every = [read_run(path) for path in dict.fromkeys(options.runs)]
        runs, singles = [run for run in every if run.cycles], [run for run in every if not run.cycles]
        warnings = check_runs(runs, singles, options.allow_incomplete)
        file = options.references
        references = read_file(file, lambda file: json.loads(file.read_bytes())) if file else {}
        if not isinstance(references, dict):
            raise ReportError(f"{file} must be {{task: [random, reference]}}, got {references!r}")
        kind = options.normalise or ("reference" if references or singles else "human")
        bounds = [find_bounds(task, kind, references, singles) for task in runs[0].tasks]
        text, figures = compare(runs, singles, torch.tensor(bounds, dtype=torch.float64).T, kind)
        text += "".join(f"* warning: {warning}\n" for warning in warnings)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.md").write_text(text, encoding="utf-8")
        for name, figure in figures.items():
            figure.savefig(options.output / name, dpi=120)
    except (ReportError, OSError) as error:
        parser.error(str(error))
    for warning in warnings:
        print(f"report: warning: {warning}", file=sys.stderr)
    print(text, *(options.output / name for name in ("report.md", *figures)), sep="\n")


if __name__ == "__main__":
    main()
