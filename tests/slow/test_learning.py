"""Whole configurations that must learn: minutes each, run by `make test-slow`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bayes_rl.cli import app as cli

ROOT = Path(cli.__file__).parents[2]


def best_score(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> float:
    """Mean score of the test games after `fit`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", "--trainer.enable_progress_bar=false", *arguments])
    return float(cli.run().trainer.callback_metrics["test/return_mean"])


@pytest.mark.slow
def test_cartpole_is_solved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """475 of 500 is the environment's own threshold; a random policy gets about 22."""
    assert best_score(monkeypatch, tmp_path, f"--config={ROOT / 'configs/cartpole.yaml'}") >= 475


@pytest.mark.slow
def test_minatar_breakout_is_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A random policy gets about 0.5."""
    assert best_score(monkeypatch, tmp_path, f"--config={ROOT / 'configs/minatar.yaml'}") >= 4


FAMILIES = [
    [
        "--model.consolidation.method=online_ewc",
        "--model.consolidation.consolidate_every=50",
        "--model.consolidation.fisher_samples=64",
    ],
    ["--model.posterior.family=low_rank", "--model.network.prior_function_scale=0.5", "--model.exploration=thompson"],
    ["--model.posterior.family=members", "--model.likelihood.family=hl_gauss", "--model.exploration=both"],
    ["--model.posterior.family=low_rank", "--model.network.bayesian=all", "--model.likelihood.family=learned_gaussian"],
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES, ids=" ".join)
def test_breakout_runs_on_a_gpu_in_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: list[str]) -> None:
    options = ["--trainer.max_epochs=1", "--data.frames_per_epoch=4000", "--data.evaluation.games=2"]
    options += ["--data.replay.min_size=500", "--trainer.accelerator=gpu", "--data.rules.max_episode_frames=1000"]
    options += ["--model.objective.bootstrap=greedy", "--data.updates_per_step=0.25"]
    score = best_score(monkeypatch, tmp_path, f"--config={ROOT / 'configs/quickstart.yaml'}", *options, *family)
    assert score >= 0
