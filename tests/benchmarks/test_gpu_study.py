"""The study for a GPU, on the CPU and with tiny settings: sittings continue where the last one stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bayes_rl.cli import app as cli

ROOT = Path(cli.__file__).parents[2]
TINY = {
    **{
        "data.replay.min_size": 100,
        "data.evaluation.games": 1,
        "data.replay.capacity": 2000,
        "model.network.hidden_dim": 16,
    },
    "data.frames_per_epoch": 800,
}


def sitting(folder: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Run one sitting; return its rows by part and name, and the last printed line."""
    paths = [f"--study={folder / 'study.yaml'}", f"--work={folder / 'work'}", f"--output={folder / 'out.json'}"]
    command = [sys.executable, "-m", "benchmarks", "gpu_study", "--device=cpu", *paths, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    parts: dict[str, Any] = {"throughput": {}, "learning": {}}
    for row in json.loads((folder / "out.json").read_text())["measurements"]:
        parts[row["part"]][row["name"]] = row
    return parts, done.stdout.strip().splitlines()[-1]


def write_study(folder: Path, **parts: Any) -> None:
    (folder / "study.yaml").write_text(yaml.safe_dump(parts))


def entry(**more: Any) -> dict[str, Any]:
    common = {"game": "CartPole-v1", "seed": 1, "config": "configs/cartpole.yaml", "options": TINY}
    return common | more


def test_the_study_names_what_there_is() -> None:
    study = yaml.safe_load((ROOT / "benchmarks/learning/study.yaml").read_text())
    for part in (*study["throughput"], *study["runs"]):
        assert (ROOT / part["config"]).is_file()
    names = [(run["config"], run["game"], run["seed"]) for run in study["runs"]]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_a_sitting_that_ends_is_gone_on_with(tmp_path: Path) -> None:
    """A run too long for one sitting: saved when its time is up, and further on after the next one."""
    write_study(tmp_path, runs=[entry(frames=10_000_000, options=TINY | {"data.frames_per_epoch": 10_000_000})])
    name = "cartpole-CartPole-v1-seed1"
    updates = []
    for number in (1, 2):
        found, left = sitting(tmp_path, "--part=learning", "--minutes=1", "--grace=20")
        assert (found["learning"][name]["sittings"], found["learning"][name]["finished"]) == (number, False)
        assert found["learning"][name]["exit"] == 143
        assert name in left
        (last,) = (tmp_path / "work" / name).glob("version_*/checkpoints/last.ckpt")
        updates.append(torch.load(last, weights_only=True)["global_step"])
    assert 0 < updates[0] < updates[1]


@pytest.mark.slow
def test_a_finished_study_has_scores_and_rates_and_is_not_done_again(tmp_path: Path) -> None:
    rates = {"config": "configs/cartpole.yaml", "num_envs": [2], "updates_per_step": [None, 1], "compile": ["none"]}
    rates |= {"seconds": 0.5, "options": {"data.replay.min_size": 100, "data.replay.capacity": 2000}}
    write_study(tmp_path, throughput=[rates], runs=[entry(frames=1500)])
    found, left = sitting(tmp_path, "--minutes=5", "--grace=20")
    assert left == "nothing is left"
    run = found["learning"]["cartpole-CartPole-v1-seed1"]
    assert [row["frames"] for row in run["scores"]] == [912, 1712]
    assert run["finished"]
    assert run["test"]["return_mean"] > 0
    assert len(found["throughput"]) == 2
    for row in found["throughput"].values():
        assert {"emulation_fps", "acting_ms", "learner_ups", "fps", "ups", "bottleneck", "commit", "torch"} <= set(row)
        assert row["bottleneck"] in row["step_ms"]
        assert min(row["fps"], row["ups"], row["emulation_fps"], row["learner_ups"]) > 0
    again, _ = sitting(tmp_path, "--minutes=1", "--grace=20")
    assert again == found
