"""Seconds of averaging gradients over ranks: the ring, and its fit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.speed import exchange
from benchmarks.speed.exchange import (
    SIZES,
    SMALL,
    WAYS,
    cells,
    computing_share,
    fitted,
    measure,
    ring_seconds,
    summarize,
    table,
)


def test_a_ring_sends_every_byte_twice_in_steps() -> None:
    """Two ranks: two steps of half of the bytes. Many ranks: twice the bytes, and two latencies a rank."""
    assert ring_seconds(1, 1e6, 1e-3, 1e6) == 0
    assert ring_seconds(2, 1e6, 1e-3, 1e6) == pytest.approx(2 * (1e-3 + 0.5))
    assert ring_seconds(1000, 1e6, 0.0, 1e6) == pytest.approx(2.0, rel=2e-3)
    assert ring_seconds(1000, 0.0, 1e-3, 1e6) == pytest.approx(1.998)


def test_latency_and_rate_of_two_ranks_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            **{"ranks": ranks, "values": values, "way": way},
            "milliseconds": [0, 1000 * ring_seconds(ranks, 4 * values, 5e-5, 2e9) if way == "gloo" else 0.1, 0],
        }
        for ranks in (2, 4)
        for values in SIZES
        for way in WAYS
    ]
    assert fitted(rows) == pytest.approx((5e-5, 2e9))
    assert summarize(rows) == [{"latency_microseconds": 50.0, "megabytes_per_second": 2000.0}]
    assert summarize(rows[1:]) == []
    monkeypatch.setattr(exchange, "RESULTS", tmp_path)
    assert table(rows).count("\n|") == 14
    assert table(rows).count("| 0.1 (0 to 0)") == 10
    of_one = {"task": "a", "arm": "one_rank_one_core", "seconds": 4.0, "updates": 100, "gradients": 10**6}
    (tmp_path / "ranks.json").write_text(json.dumps({"measurements": [of_one]}))
    assert table(rows).count("\n|") == 18


def test_ranks_compute_but_for_the_time_of_the_exchange() -> None:
    """Without a latency, two ranks send each of a million gradients twice by halves: 4 MB at 1 GB/s, 4 ms."""
    assert computing_share(2, 0.012, 10**6, 0.0, 1e9) == pytest.approx(0.75, rel=1e-5)
    assert computing_share(1, 0.012, 10**6, 1.0, 1.0) == 1
    assert computing_share(2, 1.0, 0, 0.1, 1e12) == pytest.approx(1 / (1 + 2 * 0.1 * (1 + SMALL)))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_average(way: str) -> None:
    (cell, *_) = [cell for cell in cells(argparse.Namespace(ranks=[2]), []) if cell["way"] == way]
    low, middle, high = measure(cell, argparse.Namespace(rounds=3))["milliseconds"]
    assert 0 < low <= middle <= high
