"""The command line in this process, and the files that a run writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bayes_rl
from bayes_rl.cli import app, main

ROOT = Path(bayes_rl.__file__).parents[1]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
TINY = [
    *("--config", str(ROOT / "tests/configs/cartpole.yaml"), *QUIET),
    *("--trainer.max_epochs=2", "--trainer.log_every_n_steps=10", "--data.frames_per_epoch=800"),
    *(
        "--data.replay.min_size=100",
        "--data.replay.capacity=2000",
        "--data.evaluation.games=3",
        "--model.network.hidden_dim=16",
    ),
]
"""Options of a run of a few seconds."""
SHORT = ["fit", *TINY, "--trainer.log_every_n_steps=10", "--data.frames_per_epoch=240", "--data.evaluation.games=1"]
"""Words of a run of two epochs of 60 updates each."""

SHORTEST = [
    *("--data.env=CartPole-v1", "--data.frame_stack=1", "--data.num_envs=2", "--data.rules.frame_skip=1"),
    *("--data.frames_per_epoch=80", "--data.replay.min_size=40", "--data.replay.capacity=500"),
    *("--data.evaluation.games=1", "--data.rules.max_episode_frames=20", "--data.replay.batch_size=4"),
    *("--model.network.encoder=mlp", "--model.network.hidden_dim=8", "--name=game"),
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]
"""Options of the shortest run: two epochs of `UPDATES` updates."""

TWO_TASKS = [
    *("--config", str(ROOT / "configs/continual.yaml"), "--data.tasks=[MinAtar/Breakout-v1, MinAtar/Freeway-v1]"),
    *("--data.frames_per_epoch=400", "--data.curriculum.frames_per_task=800", "--data.replay.min_size=100"),
    *(
        "--data.replay.capacity=2000",
        "--data.evaluation.games=2",
        "--data.rules.max_episode_frames=50",
        "--data.replay.batch_size=8",
    ),
    *("--model.network.hidden_dim=8", "--model.consolidation.fisher_samples=20", "--trainer.log_every_n_steps=10"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]
"""Options of a run of two tasks."""

UPDATES = 20


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> app.BayesCLI:
    """Do what `bayes-rl WORDS` does, and return its objects."""
    monkeypatch.setattr(sys, "argv", ["bayes-rl", *words])
    return app.run()


def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the single line that refused input prints; assert exit code 2 and that no file is touched."""
    monkeypatch.setattr(sys, "argv", ["bayes-rl", *words])
    before = _files()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code == 2, printed
    lines = (printed.out + printed.err).strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("bayes-rl: error: ")
    assert "Traceback" not in lines[0]
    assert _files() == before
    return lines[0]


def failure_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the single line that a failed run prints; assert exit code 1 and that the screen shows no stack trace."""
    monkeypatch.setattr(sys, "argv", ["bayes-rl", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("bayes-rl: error: ")
    return line


def _files() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the state of the agent in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's scalars: tag to (step, value), in order of step."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: sorted((e.step, e.value) for e in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


def saved(checkpoint: Path) -> dict[str, Any]:
    """Return everything in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)
