"""Arms of the comparison with an earlier version, and the busy processes beside it."""

from __future__ import annotations

import argparse
import subprocess

import pytest
import yaml

from benchmarks.speed import versions


def test_the_cells_keep_no_and_one_process_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*arguments: object) -> subprocess.Popen[bytes]:
        started.append(start(*arguments))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(versions.subprocess, "Popen", record)
    running: list[int] = []
    for cell in versions.cells(argparse.Namespace(), []):
        with versions.busy_processes(cell["busy"]):
            running.append(sum(process.poll() is None for process in started))
    assert running == [0, 1]
    assert all(process.poll() is not None for process in started)


def test_the_arm_with_the_options_of_version_0_1_has_those_that_take_time() -> None:
    """`quickstart.yaml` of commit 852c601."""
    config = yaml.safe_load((versions.ROOT / "configs/quickstart.yaml").read_text())
    for name, value in versions.SAME.items():
        *groups, option = name.split(".")
        group = config
        for key in groups:
            group = group[key]
        group[option] = yaml.safe_load(value)
    model, data = config["model"], config["data"]
    network = {name: model["network"][name] for name in ("encoder", "width", "hidden_dim", "shared_trunk", "bayesian")}
    assert network == {"encoder": "nature", "width": 1, "hidden_dim": 256, "shared_trunk": True, "bayesian": "heads"}
    assert (model["likelihood"]["family"], model["exploration"]) == ("gaussian", "epsilon")
    assert (model["objective"]["target"], model["optimizer"]["schedule"]) == ("ema", "constant")
    assert (data["num_envs"], data["frame_stack"], data["updates_per_step"]) == (16, 4, 0.0625)
    assert (data["replay"]["batch_size"], data["replay"]["n_step"], data["replay"]["capacity"]) == (32, 5, 105_000)
