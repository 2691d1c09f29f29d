"""Reliability of resuming: a run killed at random moments must end like a run without interruptions.

    python -m benchmarks crash [--kills 30] [--seed 1]

A short CartPole run on one thread saves every few updates. Every other kill (SIGKILL) waits for a half written file of
a checkpoint; of the others one half falls into the start and the prefill, one half between two later checkpoints. Each
time the run is resumed with `--ckpt_path last`, or started again if there is no checkpoint yet. At the end every tensor
and number of `last.ckpt`, and every point of every curve, must equal that of the undisturbed run. Every attempt is a
process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bayes_rl.cli import app as cli
from bayes_rl.errors import ConfigError
from bayes_rl.training.checkpoint_io import load_verified
from bayes_rl.utils.files import TEMPORARY
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row

EPOCHS_PER_KILL = 4
OPTIONS = [
    f"--config={ROOT / 'configs' / 'cartpole.yaml'}",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.deterministic=true",
    "--trainer.log_every_n_steps=5",
    "--data.num_envs=4",
    "--data.frames_per_epoch=80",
    "--data.replay.min_size=80",
    "--data.replay.capacity=600",
    "--data.replay.batch_size=16",
    "--data.evaluation.games=1",
    "--model.network.hidden_dim=16",
]
CHANGING = ("history", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
"""Keys of a checkpoint that name files and directories of its run, and so differ between runs."""
FORGOTTEN = ("current_score",)
"""Keys that Lightning saves and does not restore: the score of the latest best checkpoint of this process."""


def start(folder: Path, epochs: int, seed: int, words: list[str]) -> int:
    """Fork a silent `cli.py fit` that runs in `folder`, and return its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = ["cli.py", "fit", *OPTIONS, f"--trainer.max_epochs={epochs}", f"--seed_everything={seed}", *words]
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """Return the exit code of a child, or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def saving(folder: Path) -> bool:
    """Return whether a file of a checkpoint is half written."""
    return any(folder.glob(f"runs/*/*/checkpoints/*{TEMPORARY}"))


def checkpoints(folder: Path) -> list[Path]:
    """Return the last checkpoints of all versions, in order of their times."""
    return sorted(folder.glob("runs/cartpole/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def newest(folder: Path) -> int:
    """Return the time of the newest checkpoint in nanoseconds; 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in checkpoints(folder)), default=0)


def kill(process: int, folder: Path, learning: bool, while_saving: bool, delay: float) -> int | None:
    """Kill a run at a chosen moment.

    Args:
        process: its process id.
        folder: its directory.
        learning: whether to wait for a first checkpoint of this process.
        while_saving: whether to wait, at last, for a half written file of a checkpoint.
        delay: seconds to wait in between.

    Returns:
        The exit code of a run that ended before, else None.
    """
    before, begin = newest(folder), time.monotonic()
    waiting = learning
    while waiting or time.monotonic() - begin < delay or (while_saving and not saving(folder)):
        if (code := ended(process)) is not None:
            return code
        if waiting and newest(folder) != before:
            waiting, begin = False, time.monotonic()
        time.sleep(0 if while_saving and not waiting else 0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Yield the paths of all values in which two checkpoints differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            if str(key) in CHANGING + FORGOTTEN:
                continue
            if key not in ours or key not in theirs:
                yield f"{where}/{key}"
            else:
                yield from differences(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield where
    elif ours != theirs and not (ours is not ours and theirs is not theirs):
        yield where


def curves(run: Path) -> dict[tuple[str, int], set[float]]:
    """Return all values logged at a tag and step, without those of a clock."""
    values: dict[tuple[str, int], set[float]] = {}
    for file in sorted(run.glob("events*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("time/"):
                for event in events.Scalars(tag):
                    values.setdefault((tag, event.step), set()).add(event.value)
    return values


def disturb(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume the run `kills` times, let it finish, and return counts and the end of its log."""
    rng, epochs = random.Random(seed), EPOCHS_PER_KILL * kills
    counts = {"kills": 0, "kills_during_a_save": 0, "kills_before_the_first_save": 0, "losses": 0}
    words: list[str] = []
    while True:
        last = counts["kills"] == kills
        process = start(folder, epochs, seed, words)
        if last:
            _, status = os.waitpid(process, 0)
            code: int | None = os.waitstatus_to_exitcode(status)
        else:
            learning, while_saving = counts["kills"] % 4 > 0, counts["kills"] % 2 == 1
            code = kill(process, folder, learning, while_saving, rng.uniform(0, 0.3 if learning else 3))
        if code is not None:
            tail = (folder / "log.txt").read_text().splitlines()[-3:]
            return {**counts, "finished": code == 0, "log": [] if code == 0 else tail}
        counts["kills"] += 1
        counts["kills_during_a_save"] += saving(folder)
        found = checkpoints(folder)
        counts["kills_before_the_first_save"] += not found
        words = ["--ckpt_path=last"] if found else []
        if found:
            try:
                load_verified(found[-1])
            except ConfigError as error:
                counts["losses"] += 1
                print(error, flush=True)
        print(counts, flush=True)


def compare(disturbed: Path, straight: Path) -> dict[str, Any]:
    """Return the values and the points of curves in which two finished runs differ."""
    ours, theirs = (checkpoints(folder)[-1] for folder in (disturbed, straight))
    found = list(differences(load_verified(ours)[0], load_verified(theirs)[0]))
    a, b = (curves(path.parents[1]) for path in (ours, theirs))
    points = [f"{tag} at {step}" for tag, step in a.keys() | b.keys() if a.get((tag, step)) != b.get((tag, step))]
    return {
        "different_values": found,
        "points_compared": len(b),
        "different_points": sorted(points),
        "not_compared": [*CHANGING, *FORGOTTEN],
    }


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the one pair of runs of this benchmark."""
    return [{"kills": options.kills, "seed": options.seed}]


def measure(cell: Cell, options: Options) -> Row:
    """Run with kills and without, and compare the ends."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        folders = disturbed, straight = Path(directory, "disturbed"), Path(directory, "straight")
        for folder in folders:
            folder.mkdir()
        result = disturb(disturbed, cell["kills"], cell["seed"])
        process = start(straight, EPOCHS_PER_KILL * cell["kills"], cell["seed"], [])
        _, status = os.waitpid(process, 0)
        if result["finished"] and status == 0:
            result |= compare(disturbed, straight)
    return result


def verdict(rows: list[Row]) -> list[str]:
    """Return a failure for runs that did not finish, lost checkpoints, and every kind of difference."""
    (row,) = rows
    failures = [] if row["finished"] and "points_compared" in row else [f"a run did not finish: {row['log']}"]
    return failures + [
        f"{key}: {row[key]}" for key in ("losses", "different_values", "different_points") if row.get(key)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of kills and the seed."""
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="seed of the run, and of the moments")


BENCHMARK = Benchmark(description=__doc__, cells=cells, measure=measure, verdict=verdict, add_arguments=add_arguments)
