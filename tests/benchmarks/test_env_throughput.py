"""The comparison of speeds, in short: what it writes, and what its turns leave behind."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/env_throughput.py`, on a machine without OpenCV."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("env_throughput", BENCHMARKS / "env_throughput.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    return module


def test_rows_are_added_to_those_that_stand_there(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    for envs in ("2", "1"):
        words = ["env_throughput", "--envs", envs, "--rounds=2", "--steps=6", "--replay=60", f"--output={output}"]
        monkeypatch.setattr(sys, "argv", words)
        benchmark.main()
    printed = capsys.readouterr().out
    assert "Gymnasium's wrappers are left out: OpenCV is not installed" in printed
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["1", "2"]
    assert [row["vector_steps_per_turn"] for row in rows.values()] == [6, 3]
    for row in rows.values():
        assert list(row["agent_steps_per_second"]) == ["emulator", "stream", "filling"]
        assert row["ratio_to_emulator"]["emulator"] == [1, 1, 1]
        assert 0 < row["stream_ratio_with_seeded_resets"][1] < row["ratio_to_emulator"]["stream"][1]
    assert output.with_suffix(".png").stat().st_size > 1000


def test_a_summary_is_of_rounds_and_counts_seeds_in(benchmark: ModuleType) -> None:
    """Two rounds of 20 000 steps of one environment, in which one seed falls due that takes 4 seconds."""
    seconds = {"emulator": np.array([8.0, 10.0]), "stream": np.array([16.0, 10.0])}
    result = benchmark.summary(seconds, 20_000, 4.0)
    assert result["agent_steps_per_second"]["emulator"] == [2125, 2250, 2375]
    assert result["ratio_to_emulator"]["stream"] == [0.625, 0.75, 0.875]
    assert result["ratio_of_sums"]["stream"] == 18 / 26
    assert result["stream_ratio_with_seeded_resets"][1] == pytest.approx((8 / 20 + 10 / 14) / 2)


def test_a_turn_of_the_stream_leaves_no_step_under_way(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next contender would share the machine with it."""
    calls: list[str] = []

    class Noted(benchmark.ReplayStream):  # type: ignore[misc, name-defined]
        def _send(self, actions: np.ndarray) -> None:
            calls.append("send")
            super()._send(actions)

        def _store(self, *args: object) -> None:
            calls.append("store")
            super()._store(*args)

    monkeypatch.setattr(benchmark, "ReplayStream", Noted)
    with benchmark.stream("breakout", 2, 100, full=False) as turn:
        turn(2)
        turn(1)
    assert calls == ["send", "send", "store", "store", "send", "store"]
