"""Cells of a benchmark on a simulated cluster, of which one machine is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bayes_rl.sweep import cluster
from benchmarks import __main__ as command_line
from benchmarks.runner import ROOT

SIZES = ["4", "5", "6", "7", "8", "9"]
WORDS = ["deep_sea", "--agents=thompson", "--episodes=100", "--sizes", *SIZES]
CHANGES = ("minutes", "seconds", "command", "commit")
"""Fields of a row that depend on more than the seed."""


def command(output: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *WORDS, f"--output={output}", *words]


def rows(output: Path) -> dict[str, dict[str, Any]]:
    found = {path.name: json.loads(path.read_text()) for path in output.glob("*.json")}
    return {name: {k: v for k, v in row.items() if k not in CHANGES} for name, row in found.items()}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_lost_machine_costs_no_row(tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        lost, _ = (machines.add_node(num_cpus=1) for _ in range(2))
        words = command(Path("far"), f"--address={machines.address}")
        process = subprocess.Popen(words, env=environment, cwd=tmp_path)
        end = time.monotonic() + 300
        while not rows(tmp_path / "far"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        machines.remove_node(lost, allow_graceful=False)
        assert len(rows(tmp_path / "far")) < len(SIZES)
        assert process.wait(600) == 0
    finally:
        machines.shutdown()
    subprocess.run(command(tmp_path / "near", "--jobs=1"), env=environment, cwd=tmp_path, check=True)
    assert rows(tmp_path / "far") == rows(tmp_path / "near")


@pytest.mark.parametrize(
    ("address", "says"),
    [("localhost:1", "benchmarks: error: --address: 'localhost:1' does not answer: "), ("x", "nearest: 'auto'")],
)
def test_an_address_without_a_cluster_is_one_line(
    address: str, says: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("ray")
    words = command(tmp_path, f"--address={address}")
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_the_extra_the_option_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "missing_packages", lambda: ["ray"])
    assert command_line.main([*WORDS, "--address=auto", f"--output={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "benchmarks: error: --address: 'auto' needs ray, which pip install 'bayes_rl[cluster]' installs"
