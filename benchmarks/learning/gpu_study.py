"""Use of a GPU, and scores learned on it, in short sittings that continue where the last one stopped.

    python -m benchmarks gpu_study --minutes 9                      # repeat until nothing is left
    python -m benchmarks gpu_study --part learning --jobs 4 --set model.compile=cudagraphs
    python -m benchmarks gpu_study --device cpu --study TINY.yaml   # the same without a GPU

`benchmarks/learning/study.yaml` describes the study. Throughput: a process for each number of environments, updates per
agent step and capture measures emulation alone (random actions, replay written), acting alone, the learner alone
(sampling included) and all together; the slowest of the parts is the bottleneck. Learning: runs of `cli.py fit`,
`--jobs` at a time. When the time is up they are stopped by a signal and save; the next sitting resumes them. No network
is needed.

State lives in `--work`. All results are written to `--output`: rows that it holds already stay, so that a machine whose
disk is lost between sittings loses its unfinished runs only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.stream import ReplayStream
from bayes_rl.types import Batch
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Results, Row, markdown, write_json

STOPPED = (130, 143, -signal.SIGTERM, -signal.SIGKILL)  # exit statuses of stopped processes
POLL = 0.5  # seconds between two queries of processes or of the GPU


# -------------------------------------------------------------------------------------------------- throughput
class Watch(threading.Thread):
    """Thread that queries `nvidia-smi` for the utilisation and the memory of the first GPU, until `finish`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[list[float]] = []
        self._stop_asking = threading.Event()

    def run(self) -> None:
        """Query until the end."""
        query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while shutil.which(query[0]) and not self._stop_asking.wait(POLL):
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                self.seen.append([float(number) for number in done.stdout.split(",")])

    def finish(self) -> dict[str, float | None]:
        """Return the median utilisation of the GPU in percent, and its peak memory in MiB."""
        self._stop_asking.set()
        self.join()
        if not self.seen:
            return {"gpu_percent": None, "gpu_mib": None}
        return {"gpu_percent": statistics.median(s[0] for s in self.seen), "gpu_mib": max(s[1] for s in self.seen)}


class Phases:
    """Loader that measures while it is read: emulation, acting, learning, and all of them together.

    Args:
        stream: stream of a training that begins.
        agent: learning agent.
        seconds: length of each phase.
    """

    def __init__(self, stream: ReplayStream, agent: VariationalActorCritic, seconds: float) -> None:
        self.stream, self.agent, self.seconds = stream, agent, seconds
        self.found: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Batch]:
        stream, schedule = self.stream, self.stream.epsilon_schedule
        warm = iter(stream)
        for _ in range(20):  # fills the replay; the first updates compile and record
            yield next(warm)
        stream.epsilon_schedule = EpsilonSchedule(1.0, 1.0, 0)
        begin, frames = self._now(), stream.frames
        while time.monotonic() - begin < self.seconds:
            stream.step_environments()
        self.found["emulation_fps"] = (stream.frames - frames) / (self._now() - begin)
        stream.epsilon_schedule = schedule
        observations = stream.stack.observations()
        begin, acts = self._now(), 0
        while time.monotonic() - begin < self.seconds / 4:
            self.agent.act(observations)
            acts += 1
        self.found["acting_ms"] = 1000 * (self._now() - begin) / acts
        begin, updates = self._now(), 0
        while time.monotonic() - begin < self.seconds:
            rng = np.random.default_rng(updates)
            yield Batch(stream.replay.sample(stream.batch_size, rng), len(stream.replay), stream.frames)
            updates += 1
        self.found["learner_ups"] = updates / (self._now() - begin)
        # The phase of emulation alone made no updates: count them as done, or all of them would follow now.
        stream.updates = int(stream.steps_after_prefill * stream.envs.num_envs * stream.updates_per_step)
        watch = Watch()
        watch.start()
        begin, frames, updates = self._now(), stream.frames, stream.updates
        while time.monotonic() - begin < self.seconds:
            yield from self._some(stream)
        passed = self._now() - begin
        self.found |= watch.finish()
        self.found |= {"fps": (stream.frames - frames) / passed, "ups": (stream.updates - updates) / passed}

    def _some(self, stream: ReplayStream) -> Iterator[Batch]:
        """Yield a few minibatches as in training. A new pass is allowed: a stream may be read in parts."""
        for _, batch in zip(range(16), stream, strict=False):
            yield batch

    def _now(self) -> float:
        if self.agent.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def measure(case: Cell, options_of_study: Options) -> Row:
    """Measure the rates of one configuration on this machine, in this process."""
    config = yaml.safe_load((ROOT / case["config"]).read_text())
    options: dict[str, dict[str, Any]] = {"data": config["data"], "model": config["model"], "trainer": {}}
    for key, value in case["options"].items():
        section, *group, name = key.split(".")
        (options[section].setdefault(group[0], {}) if group else options[section])[name] = value
    precision = options["trainer"].get("precision", config["trainer"].get("precision"))
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(**options["data"] | {"seed": 1})
    agent = VariationalActorCritic(**options["model"], **data.agent_arguments())
    trainer = pl.Trainer(
        accelerator=case["device"],
        devices=1,
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=200,
    )
    phases: list[Phases] = []

    def loader() -> Phases:
        phases.append(Phases(data.stream, agent, case["seconds"]))
        return phases[-1]

    data.train_dataloader = loader  # type: ignore[assignment, method-assign]
    trainer.fit(agent, datamodule=data)
    found, skip = phases[-1].found, data.settings.frame_skip
    step = {  # seconds per step of all environments
        "emulation": data.num_envs * skip / found["emulation_fps"],
        "acting": found["acting_ms"] / 1000,
        "learner": data.num_envs * data.updates_per_step / found["learner_ups"],
    }
    whole = data.num_envs * skip / found["fps"]
    found["step_ms"] = {name: round(1000 * value, 3) for name, value in (step | {"all": whole}).items()}
    found["bottleneck"] = max(step, key=lambda name: step[name])
    found["overlap"] = round(max(step.values()) / whole, 3)  # 1: the slowest part takes all the time
    if agent.device.type == "cuda":
        found["torch_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}


def cases(study: dict[str, Any], device: str, forced: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every measurement of the throughput by name."""
    found = {}
    for group in study.get("throughput") or []:
        for envs in group["num_envs"]:
            for updates in group["updates_per_step"]:
                for compile in group["compile"]:
                    options = {**(group.get("options") or {}), "data.num_envs": envs, "model.compile": compile}
                    options |= {} if updates is None else {"data.updates_per_step": updates}
                    options |= forced
                    how = f"{updates or 'its own'} updates, {options['model.compile']}"
                    name = f"{Path(group['config']).stem} {options['data.num_envs']} environments, {how}"
                    case = {"config": group["config"], "seconds": group["seconds"], "device": device}
                    found[name] = case | {"options": options}
    return found


# ---------------------------------------------------------------------------------------------------- learning
class Run:
    """One entry of the study's `runs`.

    Args:
        entry: game, seed, frames, config, options and name. The default of the name is made of config, game and seed.
        work: directory of all runs.
        forced: options of every run.
    """

    def __init__(self, entry: dict[str, Any], work: Path, forced: dict[str, Any]) -> None:
        self.entry = entry
        self.name = str(entry.get("name") or f"{Path(entry['config']).stem}-{entry['game']}-seed{entry['seed']}")
        self.directory, self.forced = work / self.name, forced
        self.process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    @property
    def state(self) -> dict[str, Any]:
        """Sittings and seconds so far, and the exit status of the last sitting."""
        path = self.directory / "state.json"
        return json.loads(path.read_text()) if path.exists() else {"sittings": 0, "seconds": 0.0, "exit": None}

    @property
    def _folder(self) -> Path | None:
        """Directory of the newest version with a checkpoint, or None."""
        saved = sorted(self.directory.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        return saved[-1].parents[1] if saved else None

    def command(self) -> list[str]:
        """Return the command that starts or resumes the run."""
        words = [sys.executable, str(ROOT / "cli.py"), "fit"]
        if self._folder is not None:
            return [*words, f"--ckpt_path={self._folder / 'checkpoints/last.ckpt'}"]
        config = yaml.safe_load((ROOT / self.entry["config"]).read_text())
        options = {**(self.entry.get("options") or {}), **self.forced}
        epoch = options.get("data.frames_per_epoch", config["data"]["frames_per_epoch"])
        options |= {"data.env": self.entry["game"], "seed_everything": self.entry["seed"], "name": self.name}
        options["trainer.max_epochs"] = math.ceil(self.entry["frames"] / epoch)
        options["trainer.default_root_dir"] = str(self.directory.parent)
        typed = [f"--{key}={'null' if value is None else value}" for key, value in options.items()]
        return [*words, f"--config={ROOT / self.entry['config']}", *typed, "--trainer.enable_progress_bar=false"]

    def start(self, threads: int) -> None:
        """Start the run in a process of its own, which prints to `log.txt`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log.txt").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=subprocess.STDOUT, env=environment)
        self._began = time.monotonic()

    def finish(self) -> None:
        """Store how a sitting ended."""
        assert self.process is not None
        before = self.state
        seconds = before["seconds"] + time.monotonic() - self._began
        write_json(
            self.directory / "state.json",
            {"sittings": before["sittings"] + 1, "seconds": round(seconds, 1), "exit": self.process.returncode},
        )
        self.process = None

    def result(self) -> dict[str, Any]:
        """Return the scores after every epoch, and those of the test games of a finished run."""
        found: dict[str, Any] = {**self.entry, "forced": self.forced, **self.state, "finished": self.state["exit"] == 0}
        if self._folder is not None and (table := self._folder / "metrics.npy").exists():
            rows = np.load(table)
            found["scores"] = [{key: float(row[key]) for key in rows.dtype.names} for row in rows]
        if self._folder is not None and found["finished"]:
            events = EventAccumulator(str(self._folder)).Reload()
            tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("test/")]
            found["test"] = {tag.removeprefix("test/"): events.Scalars(tag)[-1].value for tag in tags}
        if found["exit"] not in (None, 0, *STOPPED):
            found["error"] = (self.directory / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
        return found


def learn(runs: list[Run], jobs: int, until: float, last: float) -> None:
    """Run unfinished runs, `jobs` at a time, until the time `until`; stop them then, and kill them at `last`."""
    waiting = [run for run in runs if run.state["exit"] != 0]
    running: list[Run] = []
    threads = max(1, (os.cpu_count() or 1) // (2 * jobs))  # the emulators have equally many
    while (waiting or running) and time.monotonic() < until:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            running[-1].start(threads)
            print(f"working on {running[-1].name}", flush=True)
        time.sleep(POLL)
        running = [run for run in running if not _ended(run)]
    for run in running:
        assert run.process is not None
        run.process.terminate()
    while running and time.monotonic() < last:
        time.sleep(POLL)
        running = [run for run in running if not _ended(run)]
    for run in running:  # the last checkpoint is complete, as after any kill
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        _ended(run)


def _ended(run: Run) -> bool:
    assert run.process is not None
    if run.process.poll() is None:
        return False
    print(f"{run.name} ended with {run.process.returncode}", flush=True)
    run.finish()
    return True


# ------------------------------------------------------------------------------------------------------- sittings
def prepare(options: Options) -> None:
    """Exit where a GPU is asked for and there is none."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: there is no GPU here")


def on_cpu(options: Options) -> bool:
    """Return whether the study runs without a GPU."""
    return options.device == "cpu" or not torch.cuda.is_available()


def forced_options(options: Options) -> dict[str, Any]:
    """Return the options of every run and measurement."""
    forced = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in options.set)}
    return forced | ({"data.replay.device": "cpu", "model.compile": "none"} if on_cpu(options) else {})


def seconds_left(options: Options) -> float:
    """Return the seconds until the end of this sitting."""
    return options.started + 60 * options.minutes - time.monotonic()


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the measurements of the throughput for which there is time."""
    if options.part == "learning":
        return []
    study = yaml.safe_load(options.study.read_text())
    known = cases(study, "cpu" if on_cpu(options) else "cuda", forced_options(options))
    left = seconds_left(options) - options.grace
    return [{"part": "throughput", "name": name, **case} for name, case in known.items() if 6 * case["seconds"] <= left]


def learning(options: Options, results: Results) -> None:
    """Continue the training runs of the study until the time is used, then print what has no result yet."""
    study, forced = yaml.safe_load(options.study.read_text()), forced_options(options)
    runs = [Run(entry, options.work.absolute(), forced) for entry in study.get("runs") or []]
    if options.part != "throughput":
        before = {run.name: run.state["sittings"] for run in runs}
        finished = [row["name"] for row in results.rows if row["part"] == "learning" and row["finished"]]
        runs = [run for run in runs if run.name not in finished]
        last = time.monotonic() + seconds_left(options)
        learn(runs, options.jobs, last - options.grace, last)
        for run in runs:
            if run.state["sittings"] > before[run.name]:
                results.add({"part": "learning", "name": run.name}, run.result())
    measured = [row["name"] for row in results.rows if row["part"] == "throughput"]
    left = [name for name in cases(study, "", forced) if name not in measured]
    left += [run.name for run in runs if run.state["exit"] != 0]
    print(f"{len(left)} left: {'; '.join(left)}" if left else "nothing is left", flush=True)


def table(rows: list[Row]) -> str:
    """Return both parts of the study as Markdown."""
    throughput = ("name", "emulation_fps", "acting_ms", "learner_ups", "fps", "ups", "bottleneck", "gpu_percent")
    runs = ("name", "sittings", "seconds", "exit", "finished")
    columns = {"throughput": throughput, "learning": runs}
    tables = [markdown([row for row in rows if row["part"] == part], shown) for part, shown in columns.items()]
    return "\n".join(tables)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the parts, the time of a sitting and the places of the study."""
    parser.add_argument("--part", choices=("throughput", "learning", "both"), default="both")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock time of this sitting")
    parser.add_argument("--grace", type=float, default=45.0, help="seconds of them in which runs save and end")
    parser.add_argument("--jobs", type=int, default=2, help="learning runs at a time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    text = "options of every run and measurement"
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=text)
    parser.add_argument("--study", type=Path, default=ROOT / "benchmarks" / "learning" / "study.yaml")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu_study")
    parser.set_defaults(keep=True, started=time.monotonic())


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    prepare=prepare,
    add_arguments=add_arguments,
    key=("part", "name"),
    facts=lambda options: {"lightning": pl.__version__},
    child=True,
    seconds_left=seconds_left,
    finish=learning,
)
