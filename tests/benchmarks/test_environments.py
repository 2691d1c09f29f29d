"""Speed of environments, in short: results, and the state that a turn leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.speed import environments


@pytest.fixture(autouse=True)
def _no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure as on a machine without OpenCV."""
    monkeypatch.setattr(environments, "find_spec", lambda name: None)


@pytest.mark.slow
def test_rows_are_added_to_those_that_stand_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    for envs in ("2", "1"):
        words = ["--envs", envs, "--rounds=2", "--steps=6", "--replay=60", f"--output={output}"]
        assert runner.main(environments.BENCHMARK, "environments", words) == 0
    printed = capsys.readouterr().out
    assert "Gymnasium's wrappers are left out: OpenCV is not installed" in printed
    rows = json.loads(output.read_text())["measurements"]
    assert [row["num_envs"] for row in rows] == [1, 2]
    assert [row["vector_steps_per_turn"] for row in rows] == [6, 3]
    assert [row["command"].split()[5] for row in rows] == ["1", "2"]
    lines = output.with_suffix(".md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| environments", "|---|---|---|---|", "| 1", "| 2"]
    for row in rows:
        assert list(row["agent_steps_per_second"]) == ["emulator", "stream", "filling"]
        assert row["ratio_to_emulator"]["emulator"] == [1, 1, 1]
        assert 0 < row["stream_ratio_with_seeded_resets"][1] < row["ratio_to_emulator"]["stream"][1]
    assert output.with_suffix(".png").stat().st_size > 1000


def test_a_summary_is_of_rounds_and_counts_seeds_in() -> None:
    """Two rounds of 20 000 steps of one environment, in which one seed falls due that takes 4 seconds."""
    seconds = {"emulator": np.array([8.0, 10.0]), "stream": np.array([16.0, 10.0])}
    result = environments.summary(seconds, 20_000, 4.0)
    assert result["agent_steps_per_second"]["emulator"] == [2125, 2250, 2375]
    assert result["ratio_to_emulator"]["stream"] == [0.625, 0.75, 0.875]
    assert result["ratio_of_sums"]["stream"] == 18 / 26
    assert result["stream_ratio_with_seeded_resets"][1] == pytest.approx((8 / 20 + 10 / 14) / 2)


def test_a_turn_of_the_stream_leaves_no_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next contender would share the machine with it."""
    calls: list[str] = []

    class Noted(environments.ReplayStream):
        def _send(self, actions: np.ndarray) -> None:
            calls.append("send")
            super()._send(actions)

        def _store(self, *args: object) -> None:
            calls.append("store")
            super()._store(*args)

    monkeypatch.setattr(environments, "ReplayStream", Noted)
    with environments.stream("breakout", 2, 100, full=False) as turn:
        turn(2)
        turn(1)
    assert calls == ["send", "send", "store", "store", "send", "store"]
