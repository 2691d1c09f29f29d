"""Runs over one or several tasks, read from their directories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from bayes_rl.continual.settings import METHOD_OPTIONS
from bayes_rl.envs.shared_spaces import task_name
from bayes_rl.errors import did_you_mean
from bayes_rl.reporting.figures import Floats
from bayes_rl.types import AGENT_ARGUMENTS
from bayes_rl.utils.settings import leaves
from bayes_rl.utils.version_0_1 import in_present_groups

OPTIONS_OF_DATA = (
    "env_kwargs",
    "observation",
    "channels",
    "grey",
    "num_envs",
    "frame_stack",
    "updates_per_step",
    "rules",
    "replay",
    "epsilon",
    "draws",
)
"""Options and groups below `data` that change what an agent learns from, beside some of `data.curriculum`. Two runs
that differ in them are not two seeds of one agent."""
ALWAYS_DRAWS = {"start": 1.0, "end": 1.0, "decay_frames": 0}
"""`data.draws` of runs that are older than this group: the defaults."""


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
        method: of consolidation: `none`, `ewc`, `online_ewc` or `vcl`.
        settings: options by which two runs of one method may differ.
        frames, visit: environment frames and visit (-1 before training) at each validation, `[P]`.
        scores: raw score of each task at each validation, `[P, T]`.
        counted_scores: score of each task in which a stopped game may count as random play, `[P, T]`; None if the run
            has none, as runs of version 0.1.0.
        envs: ids of the tasks, as in `data.tasks`.
        spaces: ids of the games whose observations and actions a single-task run shares; empty if it has its own.
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
    counted_scores: Floats | None = None
    spaces: Sequence[str] = ()
    envs: Sequence[str] = ()

    @property
    def counted(self) -> Floats:
        """Scores that normalised numbers count, `[P, T]`: a stopped game may count as random play."""
        return self.scores if self.counted_scores is None else self.counted_scores

    def ends(self) -> list[int | None]:
        """Return the row of the validation before training and after each visit, `[V + 1]`; None if not finished."""
        found = [np.flatnonzero(self.visit == visit) for visit in range(-1, len(self.tasks) * self.cycles)]
        ends = [int(rows[-1]) if len(rows) else None for rows in found]
        latest = int(self.visit.max()) + 1
        if 0 < latest < len(found):  # no later visit shows that this visit is finished
            own = self.frames[found[latest]]
            # Frames between validations, which may be fewer than an epoch. The first validation comes one step after
            # the beginning of the visit. Half a step of tolerance, because epochs end at whole updates.
            steps = np.diff(own) if len(own) > 1 else np.median(np.diff(self.frames), keepdims=True)
            step = min(self.epoch_frames, float(steps.max(initial=0.0))) or self.epoch_frames
            ends[latest] = ends[latest] if float(np.ptp(own)) + step > self.frames_per_task - step / 2 else None
        return ends

    def matrix(self, scores: Floats | None = None) -> Tensor:
        """Return scores `[P, T]`, the raw ones by default, as `[V + 1, T]`, float64.

        Row 0 is before training, row v + 1 after visit v; NaN if missing.
        """
        scores = self.scores if scores is None else scores
        nothing = np.full(len(self.tasks), np.nan)
        return torch.from_numpy(np.stack([nothing if row is None else scores[row] for row in self.ends()]))

    def switches(self) -> list[float]:
        """Return frames at the start of training and after each visit, `[V + 1]`; as planned if not finished."""
        start, *ends = self.ends()
        frames = [0.0 if start is None else float(self.frames[start])]
        for row in ends:
            frames.append(frames[-1] + self.frames_per_task if row is None else float(self.frames[row]))
        return frames


def read_file(file: Path, read: Callable[[Path], Any]) -> Any:
    """Return `read(file)`.

    Raises:
        ReportError: if the file does not exist, or `read` refuses it.
    """
    try:
        return read(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ReportError(f"{file}: {text}") from error


def read_run(path: Path) -> Run:
    """Read `config.yaml` and `metrics.npy` of a run directory.

    Raises:
        ReportError: if they are not files that a run writes.
    """
    if not path.is_dir():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ReportError(f"{path} is no directory{did_you_mean(path.name, beside)}")
    config = read_file(path / "config.yaml", lambda file: yaml.safe_load(file.read_bytes()))
    config = in_present_groups(config)
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
            raise ReportError(
                f"{path / 'metrics.npy'} has no validations in a column {name!r}{did_you_mean(name, names)}"
            )
        return np.array(rows[name], np.float64)

    envs = setting("data.tasks", list, [])
    several = len(envs) > 1
    tasks = [task_name(str(env)) for env in envs or [setting("data.env", str)]]
    if len(set(tasks)) < len(tasks):
        raise ReportError(f"{path / 'config.yaml'}: data.tasks {tasks} names a task twice")
    method = setting("model.consolidation.method", str, "none")
    # All options that can make runs of one method differ, without those that follow from the tasks.
    decided = {*AGENT_ARGUMENTS, "consolidation.method"}
    options = leaves(setting("model", dict, {}))
    chosen: dict[str, object] = {key: str(value) for key, value in options.items() if key not in decided}
    if method == "none":
        chosen = {key: value for key, value in chosen.items() if key not in METHOD_OPTIONS}
    shared = {"task_conditioning": "none", "keep_replays": "none", "epsilon_at_switch": "restart"}
    chosen |= {f"curriculum.{key}": str(setting(f"data.curriculum.{key}", object, old)) for key, old in shared.items()}
    data = {"draws": ALWAYS_DRAWS, **setting("data", dict)}
    collected = leaves({key: value for key, value in data.items() if key in OPTIONS_OF_DATA})
    chosen |= {key: str(value) for key, value in collected.items() if key != "replay.device"}
    frames, visit = column("frames"), column("visit") if several else np.zeros(len(rows))
    if not ((np.diff(frames) > 0).all() and np.isfinite(visit).all()):
        raise ReportError(f"{path / 'metrics.npy'}: frames must increase, and visit be a number")
    prefixes = [f"{task}/" if several else "" for task in tasks]
    return Run(
        path=path,
        seed=setting("seed_everything", object, "unknown"),
        tasks=tasks,
        cycles=setting("data.curriculum.cycles", int) if several else 0,
        frames_per_task=setting("data.curriculum.frames_per_task", int) if several else 0,
        epoch_frames=setting("data.frames_per_epoch", int) * setting("trainer.check_val_every_n_epoch", int, 1),
        method=method,
        settings=chosen,
        frames=frames,
        visit=visit,
        scores=np.stack([column(f"{prefix}return_mean") for prefix in prefixes], axis=1),
        counted_scores=_counted_scores(column, prefixes),
        spaces=setting("data.spaces_of", list, []),
        envs=[*map(str, envs)],
    )


def _counted_scores(column: Callable[[str], Floats], prefixes: Sequence[str]) -> Floats | None:
    """Return the columns `return_counted`, `[P, T]`, or None in a run of version 0.1.0."""
    try:
        return np.stack([column(f"{prefix}return_counted") for prefix in prefixes], axis=1)
    except ReportError:
        return None
