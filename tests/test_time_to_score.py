"""What `benchmarks/time_to_score.py` reads of a fit, and how it keeps runs."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/time_to_score.py` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("time_to_score")


def finished_fit(directory: Path, rate: float) -> Path:
    """A run's directory with curves of 60, 120 and 180 seconds and a test after them."""
    directory.mkdir()
    data = {"updates_per_step": rate, "epsilon_decay_frames": 3000}
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 7, "data": data}))
    with SummaryWriter(str(directory), filename_suffix=".0") as writer:
        for minute in (1, 2, 3):
            writer.add_scalar("train/return_mean", 10.0 * minute, 1000 * minute, walltime=time.time() + 60 * minute)
    with SummaryWriter(str(directory), filename_suffix=".1") as writer:
        for tag, value in (("mean", 14.5), ("median", 13), ("min", 8), ("max", 26)):
            writer.add_scalar(f"test/return_{tag}", value, 3000)
    return directory


def test_a_finished_fit_is_read(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    run = finished_fit(tmp_path / "run", 0.0625)
    monkeypatch.setattr(sys, "argv", ["time_to_score.py", "ours", str(run), "--output", str(output)])
    bench.main()
    (found,) = json.loads(output.read_text())["runs"]
    assert (found["arm"], found["steps_per_update"], found["seed"]) == ("bayes_rl", 16, 7)
    assert found["epsilon_frames"] == 3000
    assert [(round(m, 1), frames, score) for m, frames, score in found["curve"]] == [
        (1, 1000, 10),
        (2, 2000, 20),
        (3, 3000, 30),
    ]
    assert found["minutes"] == pytest.approx(3, abs=0.05)
    assert found["test"] == {"mean": 14.5, "median": 13, "min": 8, "max": 26, "games": bench.GAMES}
    assert output.with_suffix(".png").stat().st_size > 0


def test_a_run_takes_the_place_of_its_like_only(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"

    def trained(options: Any) -> dict[str, Any]:
        test = bench.summary([1.0, 2.0, 6.0])
        curve = [(0.5, 400, 1.0), (options.minutes, 800, 2.0)]
        what = {"arm": "sb3", "steps_per_update": options.steps_per_update}
        return what | {"minutes": options.minutes, "curve": curve, "test": test}

    monkeypatch.setattr(bench, "sb3", trained)
    for every, seed, minutes in ((4, 1, 5), (16, 1, 5), (4, 2, 5), (4, 1, 9)):
        words = ["sb3", "--steps_per_update", every, "--seed", seed, "--minutes", minutes, "--output", output]
        monkeypatch.setattr(sys, "argv", ["time_to_score.py", *map(str, words)])
        bench.main()
    runs = json.loads(output.read_text())["runs"]
    kinds = [(run["steps_per_update"], run["seed"], run["minutes"]) for run in runs]
    assert kinds == [(4, 1, 9), (4, 2, 5), (16, 1, 5)]
    assert runs[0]["test"] == {"mean": 3, "median": 2, "min": 1, "max": 6, "games": 3}
    assert "sb3: 3.00 after 9.0 minutes and 800 frames" in capsys.readouterr().out
