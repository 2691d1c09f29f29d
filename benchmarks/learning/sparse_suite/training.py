"""One run of the sparse-reward suite, saved in parts so that an interrupted run continues."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO
from benchmarks.learning.episodes import (
    EpisodeLog,
    area_under_curve,
    curve_at,
    first_above,
    first_solved,
    moving_means,
)
from benchmarks.learning.silent_run import prepare_run
from benchmarks.learning.sparse_suite.tasks import ARMS, Task, configuration, find_task
from benchmarks.runner import Cell, Row, origin, write_json

SAVES = 10  # checkpoints of a run
POINTS = 100  # of a stored curve, without that of frame 0


def train(cell: Cell, runs: Path) -> Row:
    """Train the agent of a cell and play greedy games; continue from the checkpoint that an interrupted run left.

    Args:
        cell: task, arm, setting, seed, options and name of the run.
        runs: folder of unfinished runs.
    """
    task = find_task(cell["task"])
    if (library := ARMS[cell["arm"]].library) != "bayes_rl":
        from benchmarks.learning.sparse_suite import other_libraries

        return other_libraries.train(library, task, cell["options"], cell["seed"])
    config = configuration(task, cell["options"])
    config["data"]["frames_per_epoch"] = -(-task.frames // SAVES)
    log = EpisodeLog(lambda log: log.now >= task.frames, lambda log: progress_line(cell["run"], task, log))
    folder = runs / cell["run"]
    last = last_checkpoint(folder, cell)
    saver = KeptCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    data, agent, trainer = prepare_run(
        config,
        cell["seed"],
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[log, saver],
        enable_checkpointing=True,
        plugins=[AtomicCheckpointIO()],
    )
    data.directory = folder / "replay"
    if last is not None:
        print(f"{cell['run']}: continues from its checkpoint", flush=True)
    trainer.fit(agent, datamodule=data, ckpt_path=last)
    games = data.games("test").play(agent.act)
    result = summary(task, log.frames, log.returns, [game.score for game in games])
    shutil.rmtree(folder)
    return {**result, "updates": agent.global_step, "minutes": round(log.seconds / 60, 2)}


def last_checkpoint(folder: Path, cell: Cell) -> Path | None:
    """Return the checkpoint of an interrupted run of the same cell by the same commit, or None with an empty folder."""
    note, now = folder / "cell.json", {**cell, "commit": origin("")["commit"]}
    if not note.exists() or json.loads(note.read_text()) != now:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(note, now)
    last = folder / "last.ckpt"
    return last if last.exists() else None


def progress_line(run: str, task: Task, log: EpisodeLog) -> str:
    """Return how far a run is, its present curve, and an estimate of its remaining minutes."""
    done = log.now / task.frames
    scores = moving_means([task.score(score) for score in log.returns], task.window)
    lately = f"{task.measure} {scores[-1]:.2f} lately" if len(scores) else "no episode has ended"
    left = log.seconds / 60 * (1 / done - 1) if done else float("nan")
    return f"{run}: {done:.0%} of {task.frames:,} frames, {len(scores)} episodes, {lately}, about {left:.1f} min left"


def summary(task: Task, frames: Sequence[int], returns: Sequence[float], greedy: Sequence[float]) -> Row:
    """Return the results of a run.

    Args:
        task: what was learned.
        frames: environment frames at the end of each training episode.
        returns: of the training episodes, exploration included.
        greedy: returns of the greedy games after the training.
    """
    scores = [task.score(score) for score in returns]
    success, solved = first_above(returns, task.success_above), first_solved(scores, task.window, task.solved_at)
    times = [task.frames * point / POINTS for point in range(POINTS + 1)]
    curve = curve_at(times, frames, scores, task.window)
    result: dict[str, Any] = {"area": area_under_curve(frames, scores, task.window, task.frames)}
    for name, index in (("first_success", success), ("solved", solved)):
        result[f"{name}_episode"] = None if index is None else index + 1
        result[f"{name}_frames"] = None if index is None else frames[index]
    return {
        **result,
        "greedy_score": float(np.mean([task.score(score) for score in greedy])),
        "greedy_return": float(np.mean(greedy)),
        "greedy_games": len(greedy),
        "episodes": len(returns),
        "frames": task.frames,
        "curve": [round(float(height), 4) for height in curve],
    }
