"""The benchmark `crash`: runs stopped at any moment end like a run without interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_rl.training.checkpoint_io import AtomicCheckpointIO
from benchmarks.reliability import crash
from benchmarks.runner import ROOT


@pytest.mark.slow
def test_signals_and_kills_in_every_phase_change_nothing(tmp_path: Path) -> None:
    """The benchmark in short: exit codes, checkpoints, and the same end, bit for bit, with the same curves."""
    output = tmp_path / "crash.json"
    command = [sys.executable, "-m", "benchmarks", "crash", "--signals=8", "--kills=4", "--loaded"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"--output={output}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["measurements"]
    assert len(rows) == 12
    assert all(row["faults"] == [] for row in rows)
    codes = [row["code"] for row in rows[:8] if row["phase"] not in crash.VERBS]
    assert codes == [130, 143, 129, 130, 129, 130, 143]
    assert {row["code"] for row in rows[8:]} <= {-9, 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a run whose `last.ckpt` holds seven updates."""
    path = tmp_path / "runs/cartpole/version_0/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint({"global_step": 7, "weights": torch.ones(3)}, path)
    return tmp_path


def test_a_whole_checkpoint_has_no_fault(folder: Path) -> None:
    assert crash.faults_of_checkpoint(folder, 7) == []


def test_a_checkpoint_without_its_manifest_is_a_fault(folder: Path) -> None:
    next(folder.rglob("last.ckpt.json")).unlink()
    assert crash.faults_of_checkpoint(folder, 7) == ["last.ckpt has no manifest"]


def test_a_truncated_checkpoint_is_a_fault(folder: Path) -> None:
    path = next(folder.rglob("last.ckpt"))
    path.write_bytes(path.read_bytes()[:-1])
    (fault,) = crash.faults_of_checkpoint(folder, 7)
    assert "is not what was saved" in fault


def test_a_checkpoint_that_lacks_updates_is_a_fault(folder: Path, tmp_path: Path) -> None:
    assert crash.faults_of_checkpoint(folder, 8) == ["last.ckpt holds 7 updates, not 8"]
    next(folder.rglob("last.ckpt")).unlink()
    assert crash.faults_of_checkpoint(folder, 1) == ["no last.ckpt after 1 updates"]
    assert crash.faults_of_checkpoint(folder, 0) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-7}, "/a"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, "/a"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "/a/1"),
        ({"a": 1, "b": 2}, {"a": 1}, "/b"),
    ],
)
def test_every_difference_of_two_checkpoints_is_found(ours: Any, theirs: Any, where: str) -> None:
    assert list(crash.differences(ours, theirs)) == [where]
    assert list(crash.differences(theirs, ours)) == [where]
    assert not list(crash.differences(ours, ours))


def test_files_of_the_run_and_not_a_number_are_no_difference() -> None:
    ours = {"dirpath": "a", "score": float("nan")}
    assert not list(crash.differences(ours, {"dirpath": "b", "score": float("nan")}))


@pytest.mark.parametrize(("code", "seconds"), [(0, 1.0), (143, 1.0), (130, 5.5)])
def test_a_wrong_exit_code_and_a_late_end_are_faults(code: int, seconds: float) -> None:
    moment = {"signals": "SIGINT+SIGTERM", "phase": "update"}
    assert len(crash.faults_of_end(moment, code, seconds, 5.0)) == 1
    assert crash.faults_of_end(moment, 130, 5.0, 5.0) == []


def test_a_process_that_was_at_its_end_anyway_has_no_fault() -> None:
    for phase in ("video", "bayes-rl export"):
        assert crash.faults_of_end({"signals": "SIGINT", "phase": phase}, 0, 1.0, 5.0) == []


def test_every_fault_is_a_failure_of_the_benchmark() -> None:
    row = {"number": 3, "signals": "SIGKILL", "phase": "test", "code": -9, "seconds": 0.1}
    assert crash.verdict([row | {"faults": []}]) == []
    assert crash.verdict([row | {"faults": ["lost"]}, row | {"faults": []}]) == ["3 (SIGKILL in test): lost"]
