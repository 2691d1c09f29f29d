"""What the benchmarks share: running what is missing, and saying where a figure comes from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def origin(command: str) -> dict[str, str | int | None]:
    """Command, commit, versions and hardware of a figure."""
    machine = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {
        "command": command,
        "commit": _commit(),
        "processor": machine,
        "cores": os.cpu_count(),
        "gpu": device,
    } | versions


def _commit() -> str:
    """Of the working tree; the variable COMMIT where there is no repository, as in a copy on another machine."""
    git = shutil.which("git")
    done = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True) if git else None
    return done.stdout.strip() if done and not done.returncode else os.environ.get("COMMIT", "")


def learner(
    config: dict[str, Any], seed: int, **settings: Any
) -> tuple[ReplayDataModule, VariationalActorCritic, pl.Trainer]:
    """Data, agent and a silent CPU trainer of a configuration file, without logs or checkpoints.

    Args:
        config: content of a file of `configs/`.
        seed: of everything.
        settings: of the trainer.
    """
    pl.seed_everything(seed, verbose=False)
    data = ReplayDataModule(**config["data"] | {"seed": seed})
    agent = VariationalActorCritic(**config["model"], **data.agent_arguments())
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=config["trainer"]["gradient_clip_val"],
        num_sanity_val_steps=0,
        log_every_n_steps=1000,
        **settings,
    )
    return data, agent, trainer


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.rename(path)


def run_missing(script: str, runs: Sequence[tuple[Path, list[str]]], jobs: int) -> None:
    """Run `script` with the words of each run whose file is not there, `jobs` at a time with one thread each."""
    todo = [words for path, words in runs if not path.exists()]
    print(f"{len(todo)} runs to do, {len(runs) - len(todo)} done before", flush=True)
    running: list[subprocess.Popen[bytes]] = []
    while todo or running:
        while todo and len(running) < jobs:
            command = [sys.executable, script, *todo.pop(0)]
            running.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
        time.sleep(1)
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            print(f"{len(todo) + len(running)} left", flush=True)
            if process.returncode:
                print(f"a run failed with {process.returncode}", file=sys.stderr, flush=True)
