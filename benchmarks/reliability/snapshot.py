"""Equality of learning, to the bit, of two checkouts or of a checkout and a stored set of hashes.

    python -m benchmarks snapshot --output before.json                       # store hashes of this checkout
    python -m benchmarks snapshot --against before.json --output after.json  # compare this checkout with them
    python -m benchmarks snapshot --against ../other_checkout --cases cartpole low_rank

Tiny configurations are trained on one thread. Compared are hashes of the weights, of the optimizer's state, of the
random numbers' state, of the stream with its replay, and of all logged values but times. The exit status is 1 if
anything differs. Hashes of different processors or versions of torch cannot be compared.

`CASES` has the present options. `OLD_NAMES` translates them for a checkout of version 0.1.0; name the sides that
have the old names with `--old_options`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bayes_rl.utils.version_0_1 import RENAMED
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown

OLD_NAMES = {f"{section}.{new}": f"{section}.{old}" for section, names in RENAMED.items() for old, new in names.items()}
"""Names of options in version 0.1.0 by their present names, without leading dashes."""

COMMON = {"trainer.enable_progress_bar": False, "data.evaluation.games": 2, "trainer.log_every_n_steps": 20}
SMALL_REPLAY = {"data.replay.min_size": 100, "data.replay.capacity": 2000}
SHORT = {"trainer.max_epochs": 1, "data.frames_per_epoch": 800, **SMALL_REPLAY}
TASKS = {
    **{"data.curriculum.frames_per_task": 400, "data.frames_per_epoch": 400, **SMALL_REPLAY},
    **{"model.consolidation.fisher_samples": 100, "model.network.hidden_dim": 32},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cartpole": ("cartpole", SHORT),
    "minatar": ("minatar", SHORT),
    "deep_sea": ("deep_sea", {**SHORT, "data.replay.batch_size": 64}),
    "continual": ("continual", TASKS),
    "seed": (
        "seed",
        {
            **{"trainer.max_epochs": 1, "data.frames_per_epoch": 800, "data.replay.min_size": 290},
            **{"data.replay.capacity": 300, "data.replay.batch_size": 2, "data.evaluation.games": 1},
            **{
                "data.rules.max_episode_frames": 1000,
                "model.network.hidden_dim": 32,
                "model.consolidation.fisher_samples": 2,
            },
        },
    ),
    "low_rank": (
        "minatar",
        {
            **SHORT,
            **{
                "model.posterior.family": "low_rank",
                "model.posterior.size": 4,
                "model.posterior.num_draws": 3,
                "model.network.prior_function_scale": 1,
            },
            **{"model.exploration": "both", "model.network.bayesian": "all", "model.likelihood.family": "hl_gauss"},
            "model.optimizer.weight_decay": 0.01,
        },
    ),
    "vcl": (
        "continual",
        {
            **TASKS,
            **{"model.consolidation.method": "vcl", "model.network.bayesian": "all", "model.exploration": "thompson"},
            "data.curriculum.task_conditioning": "heads",
        },
    ),
    "gains": (
        "continual",
        {
            **TASKS,
            **{
                "model.consolidation.method": "ewc",
                "model.consolidation.fisher": "empirical",
                "model.likelihood.family": "learned_gaussian",
            },
            **{
                "model.objective.update_pairs": "random",
                "model.objective.actor_loss": "dpg",
                "model.objective.target": "other",
            },
            **{"model.network.bayesian": "none", "model.objective.entropy_weight": 0.01},
            **{"data.curriculum.task_conditioning": "gains", "data.curriculum.keep_replays": True},
        },
    ),
    "members_atari": (
        "quickstart",
        {
            **{"trainer.max_epochs": 1, "data.frames_per_epoch": 1600, **SMALL_REPLAY},
            **{"data.updates_per_step": 0.25, "data.replay.batch_size": 4, "data.evaluation.games": 1},
            **{"data.rules.max_episode_frames": 1000, "model.posterior.family": "members", "model.posterior.size": 3},
            **{"model.network.prior_function_scale": 1, "model.exploration": "both", "model.network.hidden_dim": 32},
            **{
                "model.network.bayesian": "heads",
                "model.likelihood.family": "two_hot",
                "model.network.shared_trunk": False,
            },
        },
    ),
    "log_uniform": (
        "cartpole",
        {
            **SHORT,
            **{
                "model.posterior.prior": "log_uniform",
                "model.network.bayesian": "trunk",
                "model.network.shared_trunk": False,
            },
            "model.objective.bootstrap": "greedy",
        },
    ),
}
"""Configuration file and changed options of every case."""


# ----------------------------------------------------------------------------------------------------------- hashes
def digest(value: Any, state: hashlib._Hash) -> hashlib._Hash:
    """Add tensors, containers and numbers to the state of a hash, and return the state."""
    if isinstance(value, torch.Tensor):
        state.update(str((value.dtype, tuple(value.shape))).encode())
        plain = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
        state.update(plain.contiguous().cpu().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            state.update(str(key).encode())
            digest(value[key], state)
    elif isinstance(value, list | tuple):
        for item in value:
            digest(item, state)
    else:
        state.update(repr(value).encode())
    return state


def short_hash(value: Any) -> str:
    """Return the first 16 digits of the SHA-256 of a value."""
    return digest(value, hashlib.sha256()).hexdigest()[:16]


def logged_values(run: Path) -> dict[str, list[list[float]]]:
    """Return all logged (step, value) pairs by tag, without times."""
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in tags}


def hashes_of(run: Path) -> dict[str, str]:
    """Return the hashes of a finished run by what they are of."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True, map_location="cpu")
    stream = dict(checkpoint["ReplayDataModule"]["stream"])
    stream.pop("finished", None)
    # The history names the replay's files, which belong to one run.
    replay = {key: value for key, value in stream.pop("replay").items() if key != "history"}
    return {
        "weights": short_hash(checkpoint["state_dict"]),
        "optimizer": short_hash(checkpoint["optimizer_states"][0]["state"]),
        "rng": short_hash(checkpoint["torch_rng"]),
        "stream": short_hash({**stream, "replay": replay}),
        "logged": short_hash({tag: [tuple(pair) for pair in pairs] for tag, pairs in logged_values(run).items()}),
    }


# -------------------------------------------------------------------------------------------------------- measuring
def command_of(case: str, folder: Path, old_names: bool) -> list[str]:
    """Return the words of `cli.py` that train a case in `folder`."""
    config, options = CASES[case]
    words = ["fit", "--config", f"configs/{config}.yaml", "--name", case, "--trainer.default_root_dir", str(folder)]
    for name, value in {**COMMON, **options}.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += [f"--{OLD_NAMES.get(name, name) if old_names else name}", text]
    return words


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all cases of this checkout and, where another one is given, of that one."""
    sides = ["checkout", *(["against"] if options.against and options.against.is_dir() else [])]
    return [{"case": case, "side": side} for case in options.cases for side in sides]


def measure(cell: Cell, options: Options) -> Row:
    """Train one case of one checkout and return hashes and logged values."""
    checkout = (options.checkout if cell["side"] == "checkout" else options.against).resolve()
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        words = command_of(cell["case"], Path(folder), cell["side"] in options.old_options)
        command = [sys.executable, str(checkout / "cli.py"), *words]
        process = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{cell['case']} of {checkout} failed: {(process.stdout + process.stderr)[-2500:]}")
        run = max(Path(folder, cell["case"]).glob("version_*"))
        return {"hashes": hashes_of(run), "values": logged_values(run)}


STORED: list[Row] = []
"""Rows of the stored set that this process compares with."""


def prepare(options: Options) -> None:
    """Read a stored set to compare with, and exit if it lacks a case."""
    STORED.clear()
    if not options.against or options.against.is_dir():
        return
    if not options.against.is_file():
        sys.exit(f"--against {options.against}: there is no such file or checkout")
    rows = json.loads(options.against.read_text())["measurements"]
    STORED.extend(row | {"side": "against"} for row in rows if row["case"] in options.cases)
    if missing := sorted(set(options.cases) - {row["case"] for row in STORED}):
        sys.exit(f"--against {options.against} has no hashes of {', '.join(missing)}")


def compared(rows: list[Row]) -> list[Row]:
    """Return a line for each case: what differs between both sides, and the first logged values that do."""
    sides = {(row["case"], row["side"]): row for row in (*STORED, *rows)}
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if row["side"] == "checkout"):
        ours, theirs = sides[case, "checkout"], sides.get((case, "against"))
        line = {"case": case, "weights": ours["hashes"]["weights"], "different": None, "tags": None}
        if theirs is not None:
            different = [key for key, value in ours["hashes"].items() if value != theirs["hashes"].get(key)]
            values, other = ours["values"], theirs["values"]
            tags = [tag for tag in {**values, **other} if values.get(tag) != other.get(tag)]
            line |= {"different": ", ".join(different) or "nothing", "tags": ", ".join(tags[:8]) or None}
        lines.append(line)
    return lines


def verdict(rows: list[Row]) -> list[str]:
    """Return a failure for every case that differs."""
    lines = [line for line in compared(rows) if line["different"] not in (None, "nothing")]
    return [f"{line['case']} differs in {line['different']} ({line['tags']})" for line in lines]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both sides of the comparison and the cases."""
    parser.add_argument("--checkout", type=Path, default=ROOT, help="checkout to train with")
    parser.add_argument("--against", type=Path, help="another checkout, or a file of this benchmark")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    text = "sides that have the names of options of version 0.1.0"
    parser.add_argument("--old_options", nargs="+", default=[], choices=("checkout", "against"), help=text)


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=lambda rows: markdown(compared(rows)),
    prepare=prepare,
    verdict=verdict,
    add_arguments=add_arguments,
)
