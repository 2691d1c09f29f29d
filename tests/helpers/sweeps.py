"""Sweeps with fits that are written, not trained, and a command that stands for `bayes-rl fit`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bayes_rl.sweep.fit import Fit
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import Space, Values

RATE = "model.optimizer.critic_lr"
STEPS = "data.replay.n_step"
SPACE = Space({RATE: Values("log_uniform", (1e-4, 1e-2)), STEPS: Values("choice", (1, 3, 5))})
GRID = Space({RATE: Values("grid", (1e-4, 1e-3, 1e-2))})
FRAMES = 100

TINY_FIT: dict[str, Any] = {
    "trainer.max_epochs": 3,
    "trainer.enable_model_summary": False,
    "model.network.encoder": "mlp",
    "model.network.hidden_dim": 8,
    "data.env": "CartPole-v1",
    "data.num_envs": 2,
    "data.frame_stack": 1,
    "data.frames_per_epoch": 400,
    "data.rules.frame_skip": 1,
    "data.replay.min_size": 40,
    "data.replay.capacity": 2000,
    "data.replay.batch_size": 4,
    "data.evaluation.games": 2,
}
"""Options of a fit that ends within seconds."""


def make_sweep(directory: Path, space: Space = SPACE, seeds: Sequence[int] = (100, 101), **changes: Any) -> Sweep:
    """Return a sweep of fits with two validations."""
    usual: dict[str, Any] = {"draws": 4, "validations": 2, "threads": 1, "gpus": 0.0, "pruning": False}
    usual["options"] = {"data.env": "CartPole-v1", "trainer.max_epochs": 2}
    return Sweep(directory, space, seeds=tuple(seeds), folder=directory.parent, **{**usual, **changes})


def write_scores(fit: Fit, scores: Sequence[float], column: str = "return_counted") -> None:
    """Write the scores of validations as a fit does."""
    rows = np.array([(FRAMES * (i + 1), s) for i, s in enumerate(scores)], [("frames", "f8"), (column, "f8")])
    fit.run.mkdir(parents=True, exist_ok=True)
    np.save(fit.run / "metrics.npy", rows)


def write_finished(fit: Fit, test: float) -> None:
    """Write the end of a fit with the score of its test games."""
    fit.directory.mkdir(parents=True, exist_ok=True)
    (fit.directory / "finished.json").write_text(json.dumps({"test/return_counted": test}))


def write_trial(sweep: Sweep, options: Mapping[str, Any], curves: Sequence[Sequence[float]], state: str) -> None:
    """Write a trial whose fits have ended if they have as many scores as the sweep has validations."""
    trial = sweep.trial(options)
    trial.write(state, "an error" if state == "failed" else "")
    for fit, scores in zip(trial.fits, curves, strict=False):
        write_scores(fit, scores)
        if len(scores) == sweep.validations:
            write_finished(fit, scores[-1] - 1)


def score_of(options: Mapping[str, Any]) -> float:
    """Return the score of a pretended fit: high at a step size of 1e-3."""
    return 100 - 10 * abs(math.log10(options["model"]["optimizer"]["critic_lr"]) + 3) + options["seed_everything"] % 100


def pretended_fit(words: list[str]) -> dict[str, float]:
    """Do as `bayes-rl fit` does: validate twice, and leave a mark of the call beside the configuration."""
    path = Path(next(word.removeprefix("--config=") for word in words if word.startswith("--config=")))
    options = yaml.safe_load(path.read_text())
    with open(path.parent / "calls", "a") as calls:
        calls.write(f"{words[0]}\n")
    fit = Fit(path.parent)
    scores: list[float] = []
    for share in (0.5, 1.0):
        scores.append(share * score_of(options))
        write_scores(fit, scores)
        time.sleep(0.2)
    return {"test/return_counted": scores[-1] - 1}


def failing_fit(words: list[str]) -> dict[str, float]:
    """Do as a fit does that cannot go on."""
    raise RuntimeError("the loss is\nnot finite")
