"""Reliability of stopping: a run stopped at any moment must end like a run without interruptions.

    python -m benchmarks crash [--signals 200] [--kills 200] [--seed 1] [--keep]

Every moment is a short CartPole run of its own, in a process forked from one that has imported everything. The moment
names a phase of the run. The process waits until the run reports this phase, waits a random part of the phase's length,
and sends SIGINT, SIGTERM or SIGHUP (a second signal follows one of four), or SIGKILL. Some signals go to
`validate`, `test`, `predict` and `export` of a finished run.

After a signal the exit code must be 130, 143 or 129 within 5 seconds (10 with `--loaded`), and `last.ckpt` must hold
every update. After SIGKILL or two signals it must hold what was saved. Every checkpoint must verify by its manifest.
Then the run is resumed with `--ckpt_path last`, or started again if there is no checkpoint. At its end every tensor and
number of `last.ckpt`, and every point of every curve, must equal that of the undisturbed run. `--keep` continues an
interrupted benchmark.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import math
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bayes_rl.cli import app, main
from bayes_rl.errors import ConfigError
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO, load_verified
from bayes_rl.utils.files import TEMPORARY
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown

EPOCHS = 3
OPTIONS = [
    f"--config={ROOT / 'configs' / 'cartpole.yaml'}",
    f"--trainer.max_epochs={EPOCHS}",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.deterministic=true",
    "--trainer.log_every_n_steps=5",
    "--data.num_envs=4",
    "--data.frames_per_epoch=160",
    "--data.replay.min_size=160",
    "--data.replay.capacity=600",
    "--data.replay.batch_size=16",
    "--data.evaluation.games=2",
    "--model.network.hidden_dim=16",
]
UPDATES = 40
"""Updates of an epoch."""
PHASES = ("start", "prefill", "update", "first validation", "later validation", "end of an epoch", "test", "video")
"""Phases of a fit, in the order in which they are first reached, but for later validations."""
VERBS = {f"bayes-rl {verb}": verb for verb in ("validate", "test", "predict", "export")}
"""Phases that are another verb on the finished run."""
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
LIMIT, LIMIT_LOADED = 5.0, 10.0
"""Seconds from the first signal to the end of the process, and on a loaded machine."""
CHANGING = ("history", "dirpath", "best_model_path", "last_model_path", "kth_best_model_path", "best_k_models")
"""Keys of a checkpoint that name files and directories of its run, and so differ between runs."""
FORGOTTEN = ("current_score",)
"""Keys that Lightning saves and does not restore: the score of the latest best checkpoint of this process."""


class Report:
    """Numbers that a run reports to the benchmark in shared memory.

    They are `phase` (index of the latest phase, -1 before the first), `updates` (finished ones), `saved` (updates in
    the latest checkpoint that was saved whole) and `seconds` (length of every phase when it was last left).
    """

    FIELDS = np.dtype([("phase", "i8"), ("updates", "i8"), ("saved", "i8"), ("seconds", "f8", (len(PHASES),))])

    def __init__(self) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, self.FIELDS.itemsize), self.FIELDS)
        self._values["phase"] = -1
        self._began = 0.0

    def __getitem__(self, name: str) -> Any:
        return self._values[name][0].tolist()

    def __setitem__(self, name: str, value: int) -> None:
        self._values[name] = value

    def enter(self, name: str) -> None:
        """Report the beginning of a phase, and the length of the phase before."""
        now = time.monotonic()
        if self["phase"] >= 0:
            self._values["seconds"][0, self["phase"]] = now - self._began
        self._began = now
        self["phase"] = PHASES.index(name)


class Reporter(Callback):
    """Callback that reports phases and updates of a fit.

    Args:
        report: receives them.
    """

    def __init__(self, report: Report) -> None:
        self.report = report

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Report the start."""
        if stage == "fit":
            self.report.enter("start")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the prefill, which comes before the first update."""
        self.report.enter("prefill")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report updates, once until another phase."""
        if self.report["phase"] != PHASES.index("update"):
            self.report.enter("update")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count the update."""
        self.report["updates"] = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a validation of a fit."""
        if trainer.state.fn == "fit":
            self.report.enter("later validation" if trainer.current_epoch else "first validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the end of an epoch, before its checkpoints are saved."""
        self.report.enter("end of an epoch")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the test games."""
        self.report.enter("test")


def attach(report: Report) -> None:
    """Make every fit of this process report its phases, updates and saves."""
    make_callbacks, record_game, save = app.make_callbacks, app.record_game, AtomicCheckpointIO.save_checkpoint

    def with_reporter(*arguments: Any) -> list[Callback]:
        return [Reporter(report), *make_callbacks(*arguments)]

    def reported_game(*arguments: Any) -> str:
        report.enter("video")
        return record_game(*arguments)

    def counted_save(plugin: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: None) -> None:
        save(plugin, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            report["saved"] = checkpoint["global_step"]

    vars(app)["make_callbacks"], vars(app)["record_game"] = with_reporter, reported_game
    setattr(AtomicCheckpointIO, save.__name__, counted_save)


def start(folder: Path, words: list[str], report: Report | None = None) -> int:
    """Fork a silent `bayes-rl WORDS` that runs in `folder`, and return its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    atexit._clear()  # those of the parent would delete the folders
    for name in CODES:  # `nohup` and a shell's background ignore signals, and a child inherits that
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        if report is not None:
            attach(report)
        sys.argv = ["bayes-rl", *words]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """Return the exit code of a child, or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(process: int) -> int:
    """Return the exit code of a child when it ends."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the last checkpoints of all versions, in order of their times."""
    return sorted(folder.glob("runs/cartpole/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


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
    elif ours != theirs and not all(isinstance(value, float) and math.isnan(value) for value in (ours, theirs)):
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


def compare(disturbed: Path, straight: Path, without: str = "time/") -> list[str]:
    """Return the values and the points of curves in which two finished runs differ.

    Args:
        disturbed: folder of a run.
        straight: folder of the other run.
        without: prefix of the tags of points that are not compared.
    """
    ours, theirs = (checkpoints(folder)[-1] for folder in (disturbed, straight))
    different = [f"value {where}" for where in differences(load_verified(ours)[0], load_verified(theirs)[0])]
    a, b = (curves(path.parents[1]) for path in (ours, theirs))
    places = [(tag, step) for tag, step in a.keys() | b.keys() if not tag.startswith(without)]
    points = [f"point {tag} at {step}" for tag, step in places if a.get((tag, step)) != b.get((tag, step))]
    return [*different, *sorted(points)]


def faults_of_checkpoint(folder: Path, least: int) -> list[str]:
    """Return what is wrong with the newest `last.ckpt`.

    Args:
        folder: of the run.
        least: updates that the checkpoint must hold; 0 does not require a checkpoint.
    """
    paths = checkpoints(folder)
    if not paths:
        return [f"no last.ckpt after {least} updates"] if least else []
    try:
        checkpoint, versions = load_verified(paths[-1])
    except ConfigError as error:
        return [str(error)]
    held = checkpoint["global_step"]
    faults = [] if versions else [f"{paths[-1].name} has no manifest"]
    return faults + ([f"last.ckpt holds {held} updates, not {least}"] if held < least else [])


@functools.cache
def straight_run(seed: int) -> tuple[AbstractContextManager[str], Path, tuple[float, ...], dict[str, float]]:
    """Run without interruptions; return its folder, the seconds of its phases, and the seconds of each verb."""
    directory = tempfile.TemporaryDirectory()
    folder, report = Path(directory.name), Report()
    process, video_began = start(folder, ["fit", *OPTIONS, f"--seed_everything={seed}"], report), 0.0
    while (code := ended(process)) is None:
        if not video_began and report["phase"] == PHASES.index("video"):
            video_began = time.monotonic()
        time.sleep(0.001)
    video_seconds = time.monotonic() - video_began
    if code:
        sys.exit(f"the run without interruptions ended with code {code}: {tail(folder)}")
    seconds = {}
    for phase, verb in VERBS.items():
        began = time.monotonic()
        if code := wait(start(folder, words_of(verb))):
            sys.exit(f"{phase} ended with code {code}: {tail(folder)}")
        seconds[phase] = time.monotonic() - began
    lengths = report["seconds"]
    # Nothing reports the end of a video. The process needs some of the time until its end to close.
    lengths[PHASES.index("video")] = 0.5 * video_seconds
    return directory, folder, tuple(lengths), seconds


def words_of(verb: str) -> list[str]:
    """Return the command line of a verb for the finished run."""
    if verb == "export":
        return ["export", "runs/cartpole/version_0/checkpoints/last.ckpt", "agent.safetensors", "--overwrite"]
    return [verb, "--ckpt_path=runs/cartpole/version_0/checkpoints/last.ckpt"]


def tail(folder: Path) -> list[str]:
    """Return the last lines that the processes of a folder printed."""
    return (folder / "log.txt").read_text().splitlines()[-3:]


def stop(process: int, numbers: list[signal.Signals], limit: float) -> tuple[int, float]:
    """Send signals, and return the exit code of the process and the seconds until its end."""
    began = time.monotonic()
    for number in numbers:
        os.kill(process, number)
        time.sleep(0.02 if number is not numbers[-1] else 0)
    while (code := ended(process)) is None:
        if time.monotonic() - began > 10 * limit:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    return code, round(time.monotonic() - began, 3)


def stop_fit(cell: Cell, seed: int, rng: random.Random, limit: float) -> Row:
    """Stop a fit at one moment, resume it, and compare the end with that of the straight run."""
    _, straight, lengths, _ = straight_run(seed)
    fit, report = ["fit", *OPTIONS, f"--seed_everything={seed}"], Report()
    phase = PHASES.index(cell["phase"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, fit, report)
        if not wait_for(process, report, phase, rng.uniform(0, lengths[phase])):
            return {"faults": [f"the run ended before its {cell['phase']}: {tail(folder)}"]}
        numbers = [getattr(signal, word) for word in cell["signals"].split("+")]
        code, seconds = stop(process, numbers, limit)
        row: Row = {"code": code, "seconds": seconds, "reached": PHASES[report["phase"]], "updates": report["updates"]}
        killed, twice = cell["signals"] == "SIGKILL", len(numbers) > 1
        faults = [] if killed else faults_of_end(cell, code, seconds, limit)
        epoch = UPDATES * (report["updates"] // UPDATES)
        row["half_written"] = any(folder.rglob(f"*{TEMPORARY}"))
        least = report["saved"] if killed else max(report["saved"], epoch) if twice else report["updates"]
        faults += faults_of_checkpoint(folder, least)
        words = ["fit", "--ckpt_path=last"] if checkpoints(folder) else fit
        if resumed := wait(start(folder, words)):
            faults.append(f"the resumed run ended with code {resumed}: {tail(folder)}")
        else:
            # A run whose training is done is not tested again.
            without = "test/" if cell["phase"] in ("test", "video") else "time/"
            faults += faults_of_checkpoint(folder, 1) or compare(folder, straight, without)
        return {**row, "faults": faults[:5]}


def wait_for(process: int, report: Report, phase: int, delay: float) -> bool:
    """Wait until a run reports a phase, and `delay` seconds more, at most until the next phase.

    Returns:
        False if the run ended before the phase.
    """
    while report["phase"] != phase:
        if ended(process) is not None:
            return False
        time.sleep(0.0005)
    end = time.monotonic() + delay
    while report["phase"] == phase and time.monotonic() < end:
        time.sleep(0.0005)
    return True


def faults_of_end(cell: Cell, code: int, seconds: float, limit: float) -> list[str]:
    """Return what is wrong with the end of a process that was sent signals."""
    expected = [CODES[cell["signals"].split("+")[0]]]
    if cell["phase"] in ("video", *VERBS):
        expected.append(0)  # the process may have reached its end before
    faults = [] if code in expected else [f"exit code {code}, not {expected[0]}"]
    return faults + ([f"ended after {seconds} s"] if seconds > limit else [])


def stop_verb(cell: Cell, seed: int, rng: random.Random, limit: float) -> Row:
    """Stop another verb at one moment."""
    _, folder, _, lengths = straight_run(seed)
    last = checkpoints(folder)[-1]
    before = last.read_bytes()
    process = start(folder, words_of(VERBS[cell["phase"]]))
    time.sleep(rng.uniform(0.02, lengths[cell["phase"]]))
    code, seconds = stop(process, [getattr(signal, word) for word in cell["signals"].split("+")], limit)
    faults = faults_of_end(cell, code, seconds, limit)
    faults += [] if last.read_bytes() == before else ["last.ckpt was changed"]
    return {"code": code, "seconds": seconds, "reached": cell["phase"], "faults": faults}


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all moments: numbered, each with its phase and its signals."""
    names, moments = list(CODES), []
    for number in range(options.signals):
        verb = number % 5 == 4
        phase = list(VERBS)[number // 5 % len(VERBS)] if verb else PHASES[number % len(PHASES)]
        words = names[number % 3] + ("+SIGTERM" if number // len(PHASES) % 4 == 3 and not verb else "")
        moments.append({"number": number, "phase": phase, "signals": words})
    for number in range(options.kills):
        phase = PHASES[number % len(PHASES)]
        moments.append({"number": options.signals + number, "phase": phase, "signals": "SIGKILL"})
    return moments


def measure(cell: Cell, options: Options) -> Row:
    """Stop one process at its moment."""
    torch.set_num_threads(1)
    rng = random.Random(1000 * options.seed + cell["number"])
    measured = stop_verb if cell["phase"] in VERBS else stop_fit
    return measured(cell, options.seed, rng, LIMIT_LOADED if options.loaded else LIMIT)


def summarize(rows: list[Row]) -> list[Row]:
    """Return the number of moments, the longest time to the end, and the number of faults by phase and kind."""
    summary = []
    for killed in (False, True):
        kind = [row for row in rows if (row["signals"] == "SIGKILL") == killed]
        for phase in (*PHASES, *VERBS):
            part = [row for row in kind if row["phase"] == phase]
            if part:
                longest = max(row.get("seconds", 0) for row in part)
                faulty = sum(bool(row["faults"]) for row in part)
                counts = {"moments": len(part), "longest_s": longest, "faulty": faulty}
                summary.append({"by": "SIGKILL" if killed else "signals", "phase": phase, **counts})
    return summary


def table(rows: list[Row]) -> str:
    """Return the summary as Markdown."""
    return markdown(summarize(rows))


def verdict(rows: list[Row]) -> list[str]:
    """Return every fault with its moment."""
    return [f"{row['number']} ({row['signals']} in {row['phase']}): {fault}" for row in rows for fault in row["faults"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of moments, the seed, and whether the machine is loaded."""
    parser.add_argument("--signals", type=int, default=200, help="moments of SIGINT, SIGTERM or SIGHUP")
    parser.add_argument("--kills", type=int, default=200, help="moments of SIGKILL")
    parser.add_argument("--seed", type=int, default=1, help="seed of the run, and of the moments")
    parser.add_argument("--loaded", action="store_true", help="allow 10 seconds to the end of a process, not 5")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    summarize=summarize,
    verdict=verdict,
    add_arguments=add_arguments,
)
