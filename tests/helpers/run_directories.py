"""Synthetic directories of runs, and tables of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bayes_rl.utils.version_0_1 import in_present_groups

Rows = Mapping[int, Sequence[tuple[float, ...]]]
EPOCH, VISIT = 50, 100
NAN = float("nan")
# Two tasks, once each, 100 frames in two epochs; (breakout, pong) normalised with random 0 and reference 10.
ROWS: Rows = {-1: [(0, 0)], 0: [(5, 2), (8, 1)], 1: [(9, 3), (2, 6)]}
REFERENCES = {"breakout": [0, 10], "pong": [0, 10]}


def save(path: Path, config: object, columns: dict[str, Sequence[float]]) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("# pytorch_lightning==2.6.6\n" + yaml.safe_dump(config))
    rows = np.array(list(zip(*columns.values(), strict=True)), np.float64)
    np.save(path / "metrics.npy", np.rec.fromarrays(rows.T, [(name, np.float64) for name in columns]).view(np.ndarray))
    return path


def sequence(
    path: Path,
    rows: Rows = ROWS,
    method: str = "none",
    seed: int = 1,
    tasks: Sequence[str] = ("breakout", "pong"),
    cycles: int = 1,
    **data: Any,
) -> Path:
    """A run directory; `rows` has the scores of all tasks, per epoch, by visit."""
    visit = [float(v) for v, scores in rows.items() for _ in scores]
    scores = [row for v in rows for row in rows[v]]
    columns: dict[str, Sequence[float]] = {
        "frames": [EPOCH * (i + (-1 not in rows)) for i in range(len(visit))],
        "games": [20.0] * len(visit),
        **{f"{t.replace('/', '-')}/return_mean": [row[i] for row in scores] for i, t in enumerate(tasks)},
        "visit": visit,
    }
    settings = {"env": tasks[0], "tasks": list(tasks), "cycles": cycles, "frames_per_task": VISIT}
    config = {
        "seed_everything": seed,
        "trainer": {"check_val_every_n_epoch": 1, "max_epochs": 4},
        "data": {**settings, "frames_per_epoch": EPOCH, "task_conditioning": "none", **data},
        "model": {"consolidation": method, "ewc_lambda": 0.0 if method == "none" else 400.0},
    }
    return save(path, in_present_groups(config), columns)


def single(
    path: Path,
    env: str,
    scores: Sequence[float],
    first: int = 0,
    seed: int = 1,
    spaces_of: Sequence[str] = ("breakout", "pong"),
) -> Path:
    """A single-task run with the spaces of a sequence, validated every epoch from frame `first` on."""
    frames = [first + EPOCH * i for i in range(len(scores))]
    data = {"env": env, "tasks": None, "spaces_of": list(spaces_of), "frames_per_epoch": EPOCH}
    config = {"seed_everything": seed, "data": data}
    return save(path, config, {"frames": frames, "return_mean": scores})


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text, each row by its column names."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        heading, _, *rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in block.splitlines()]
        found.append([dict(zip(heading, row, strict=True)) for row in rows])
    return found


# Runs that are not finished

HALF = {visit: rows[:1] if visit == 1 else rows for visit, rows in ROWS.items()}


# Bad input


def edit(path: Path, key: str, value: object) -> None:
    """Set a key of a run's configuration, or drop it where `value` is ..."""
    config = yaml.safe_load((path / "config.yaml").read_text())
    section = config
    *parts, last = key.split(".")
    for part in parts:
        section = section[part]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
