"""Sparse rewards: twelve tasks, our agent beside epsilon-greedy with a searched schedule, ablations, other libraries.

    python -m benchmarks sparse --list                              # tasks, budgets, expected minutes, what is left
    python -m benchmarks sparse --search --only deep_sea_10 epsilon default
    python -m benchmarks sparse --only mountain_car default --seeds 1 2 --most 1
    python -m benchmarks sparse --jobs 2                            # everything that has no result yet
    python -m benchmarks sparse --most 0                            # tables and figure from the files alone

`benchmarks/learning/sparse_suite/tasks.py` has the tasks, the arms and the searched settings. `--search` trains every
setting of an arm on seeds 100 and 101. The comparison takes the setting with the greatest mean area on its task, or on
a cheaper task that is like it.

The training curve of a run is the mean success (or return) of the last few training episodes, against environment
frames. It is read from the episodes as they end, exploration included, because what is compared is how an agent
collects its data. The area is the mean of the curve over the budget of frames. Random actions lower the training
curve of epsilon-greedy for ever, so that the score of greedy games after the training stands beside the area.

Each finished run is a file in `docs/results/sparse/`, of a search in its folder `search`. A run whose file has the same
options is not repeated. Unfinished runs live in `--runs`; after an interruption they continue from their checkpoints.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bayes_rl.errors import ConfigError
from bayes_rl.training.checkpoint_io import versions
from benchmarks.learning.silent_run import silence_lightning
from benchmarks.learning.sparse_suite import report
from benchmarks.learning.sparse_suite.other_libraries import is_installed
from benchmarks.learning.sparse_suite.tasks import ARMS, GRIDS, TASKS, find_task, grid_of, options_of
from benchmarks.learning.sparse_suite.training import train
from benchmarks.runner import Benchmark, Cell, Options, Row, markdown, read_rows

SEARCH_SEEDS = (100, 101)
FIRST_SEARCH_SEED = 100  # smaller seeds are those of the comparison


def selected(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the tasks and the arms among names; all of a kind that is not named.

    Raises:
        ConfigError: if a name is neither a task nor an arm.
    """
    tasks = [name for name in names if name not in ARMS]
    for name in tasks:
        find_task(name)
    return tasks or list(TASKS), [arm for arm in ARMS if arm in names] or list(ARMS)


def cell(task: str, arm: str, seed: int, setting: str, search: bool) -> Cell:
    """Return one run: its name, which is that of its file, and all that decides its result."""
    run = "_".join([task, arm, *([setting] if search else []), f"seed{seed}"])
    options = options_of(find_task(task), ARMS[arm], setting)
    return {"run": run, "task": task, "arm": arm, "setting": setting, "seed": seed, "options": options}


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, arm by arm. A search goes task by task, the shortest first, and seed by seed."""
    tasks, arms = selected(options.only)
    arms = [arm for arm in arms if is_installed(ARMS[arm].library)]
    if options.search:
        return [
            cell(task, arm, seed, setting, search=True)
            for task in sorted(tasks, key=lambda name: expected_minutes({"task": name}, []))
            for seed in options.seeds or SEARCH_SEEDS
            for arm in arms
            if arm in GRIDS and ARMS[arm].learns(task)
            for setting in grid_of(find_task(task), arm)
        ]
    chosen = report.chosen_settings(options.search_rows)
    found = []
    for arm in arms:
        for task in filter(ARMS[arm].learns, tasks):
            setting = ""
            if searched := ARMS[arm].searched:
                source = report.source_of_setting(task, searched, chosen)
                setting = chosen[source, searched] if source else next(iter(grid_of(find_task(task), searched)))
            found += [cell(task, arm, seed, setting, search=False) for seed in options.seeds or find_task(task).seeds]
    return found


def measure(cell: Cell, options: Options) -> Row:
    """Train one agent."""
    silence_lightning()
    return train(cell, options.runs.expanduser())


def expected_minutes(cell: Cell, rows: list[Row]) -> float:
    """Return the minutes of a run, by default of the default agent: those of finished runs, or an estimate."""
    task = find_task(cell["task"])
    of_task = [row for row in rows if row["task"] == cell["task"]]
    of_arm = [row for row in of_task if row["arm"] == cell.get("arm")]
    if of_arm:
        return statistics.mean(row["minutes"] for row in of_arm)
    # The minutes of the default agent, from the runs of other arms if there are some.
    known = [row["minutes"] / ARMS[row["arm"]].slowness for row in of_task]
    minutes = statistics.mean(known) if known else task.frames / task.frames_per_second / 60
    return minutes * ARMS[cell.get("arm", report.OURS)].slowness


def listing(options: Options, rows: list[Row]) -> str:
    """Return tasks, budgets, and the runs that are left with their expected minutes, as Markdown."""
    done = {row["run"]: row for row in rows}
    wanted = cells(options, rows)
    left = [cell for cell in wanted if any(done.get(cell["run"], {}).get(key) != cell[key] for key in cell)]
    lines: list[Row] = []
    for name in dict.fromkeys(cell["task"] for cell in wanted):
        task = find_task(name)
        runs = [expected_minutes(cell, rows) for cell in left if cell["task"] == name]
        lines.append(
            {
                "task": name,
                "frames": task.frames,
                "measure": task.measure,
                "solved at": task.solved_at,
                "window": task.window,
                "minutes of a run": round(expected_minutes({"task": name}, rows), 1),
                "runs": sum(cell["task"] == name for cell in wanted),
                "left": len(runs),
                "hours left": round(sum(runs) / 60, 2),
            }
        )
    hours = sum(expected_minutes(cell, rows) for cell in left) / 60
    return f"{markdown(lines)}\n{len(left)} of {len(wanted)} runs are left: about {hours:.1f} h, one at a time"


def prepare(options: Options) -> None:
    """Check the options, find the rows of the search, and print the list if it is asked for."""
    try:
        selected(options.only)
        for seed in options.seeds:
            if options.search != (seed >= FIRST_SEARCH_SEED):
                problem = "is a seed of the comparison; a search has seeds from 100 on"
                problem = problem if options.search else "is a seed of the search; the comparison has seeds below 100"
                raise ConfigError("seeds", seed, problem)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    options.search_rows = read_rows(options.output / "search")
    if options.search:
        options.output = options.output / "search"
    if options.list:
        print(listing(options, read_rows(options.output)))
        raise SystemExit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the selection of runs, the folder of unfinished runs, the search and the list."""
    names = f"tasks ({', '.join(TASKS)}, or deep_sea_N) and arms ({', '.join(ARMS)}) to measure; all by default"
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="by default those of the task")
    parser.add_argument("--search", action="store_true", help="train all settings of the searched arms")
    parser.add_argument("--list", action="store_true", help="print what would be measured, and how long it takes")
    runs = Path("~/bayes_rl_runs/sparse")
    parser.add_argument("--runs", type=Path, default=runs, help=f"folder of unfinished runs (default: {runs})")


def facts(options: Options) -> dict[str, Any]:
    """Return the versions of all packages that decide a result, and the tasks and arms whose search is complete."""
    return {"versions": versions(), "searched": [*report.chosen_settings(options.search_rows)]}


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=report.table,
    draw=report.draw,
    add_arguments=add_arguments,
    shared={"jobs": 2},
    prepare=prepare,
    facts=facts,
    files="{run}.json",
    child=True,
    show_output=True,
    expected_minutes=expected_minutes,
    finish=lambda options, results: results.draw(),
)
