"""The benchmark `time_to_score`: the fit that it reads, and the runs that it keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from benchmarks import runner
from benchmarks.learning import time_to_score


def run_benchmark(*words: object) -> int:
    """Call the benchmark with words of its command line."""
    return runner.main(time_to_score.BENCHMARK, "time_to_score", [str(word) for word in words])


def finished_fit(directory: Path, env: str = "breakout", points: int = 300) -> Path:
    """A run's directory: a training curve by the second in two files, two validations and the test of the best."""
    directory.mkdir()
    data = {"updates_per_step": 0.0625, "epsilon": {"decay_frames": 3000}, "env": env, "evaluation": {"games": 7}}
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 5, "data": data}))
    began = time.time()
    for part in range(2):  # as after a resumption
        with SummaryWriter(str(directory), filename_suffix=f".{part}") as writer:
            for i in range(part * points // 2, (part + 1) * points // 2):
                writer.add_scalar("train/return_mean", i / 10, 100 * i, walltime=began + i)
            for tag, value in (("mean", 14.5), ("median", 13), ("min", 8), ("max", 26)):
                writer.add_scalar(f"val/return_{tag}", part * value, 3000 * part)
                writer.add_scalar(f"test/return_{tag}", 99, 3000)
    return directory


def test_a_finished_fit_is_read(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["ours", finished_fit(tmp_path / "run"), "--commit", "1a2b3c4", "--output", output]
    assert run_benchmark(*words) == 0
    (found,) = json.loads(output.read_text())["measurements"]
    assert (found["arm"], found["steps_per_update"], found["seed"]) == ("bayes_rl", 16, 5)
    assert (found["epsilon_frames"], found["commit"]) == (3000, "1a2b3c4")
    minutes, frames, scores = zip(*found["curve"], strict=True)
    assert list(frames) == list(range(200, 30_000, 300))  # every third, with the last one
    assert list(scores) == pytest.approx([frame / 1000 for frame in frames])
    assert list(minutes) == pytest.approx([frame / 6000 for frame in frames], abs=0.05)
    assert found["minutes"] == minutes[-1]
    assert found["test"] == {"mean": 14.5, "median": 13, "min": 8, "max": 26, "games": 7}  # of the final weights
    assert output.with_suffix(".png").stat().st_size > 0


@pytest.mark.parametrize("broken", [{"env": "pong"}, {"points": 0}], ids=str)
def test_what_is_no_finished_fit_of_breakout_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    run = finished_fit(tmp_path / "run", **broken)
    with pytest.raises(SystemExit, match="is no finished fit of breakout"):
        run_benchmark("ours", run, "--output", tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


def test_ours_needs_a_fit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ours needs the directory of a finished fit"):
        run_benchmark("ours", "--output", tmp_path / "result.json")


def test_a_run_takes_the_place_of_its_like_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"

    def trained(options: Any) -> dict[str, Any]:
        test = time_to_score.summary([1.0, 2.0, 6.0])
        curve = [(0.5, 400, 1.0), (options.minutes, 800, 2.0)]
        what = {"arm": "sb3", "steps_per_update": options.steps_per_update, "epsilon_frames": options.epsilon_frames}
        return what | {"minutes": options.minutes, "curve": curve, "test": test}

    monkeypatch.setattr(time_to_score, "sb3", trained)
    for every, seed, minutes in ((4, 1, 5), (16, 1, 5), (4, 2, 5), (4, 1, 9)):
        words = ["sb3", "--steps_per_update", every, "--seed", seed, "--minutes", minutes, "--output", output]
        assert run_benchmark(*words) == 0
    runs = json.loads(output.read_text())["measurements"]
    kinds = [(run["steps_per_update"], run["seed"], run["minutes"]) for run in runs]
    assert kinds == [(4, 1, 9), (4, 2, 5), (16, 1, 5)]
    assert runs[0]["test"] == {"mean": 3, "median": 2, "min": 1, "max": 6, "games": 3}
    assert "sb3: 3.00 after 9.0 minutes and 800 frames" in capsys.readouterr().out
