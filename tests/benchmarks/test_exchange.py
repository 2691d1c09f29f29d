"""Seconds of averaging gradients over ranks: the ring, and its fit."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.speed.exchange import SIZES, cells, fitted, measure, ring_seconds, summarize, table


def test_a_ring_sends_every_byte_twice_in_steps() -> None:
    """Two ranks: two steps of half of the bytes. Many ranks: twice the bytes, and two latencies a rank."""
    assert ring_seconds(1, 1e6, 1e-3, 1e6) == 0
    assert ring_seconds(2, 1e6, 1e-3, 1e6) == pytest.approx(2 * (1e-3 + 0.5))
    assert ring_seconds(1000, 1e6, 0.0, 1e6) == pytest.approx(2.0, rel=2e-3)
    assert ring_seconds(1000, 0.0, 1e-3, 1e6) == pytest.approx(1.998)


def test_latency_and_rate_of_two_ranks_are_found_again() -> None:
    rows = [
        {"ranks": ranks, "values": values, "milliseconds": [0, 1000 * ring_seconds(ranks, 4 * values, 5e-5, 2e9), 0]}
        for ranks in (2, 4)
        for values in SIZES
    ]
    assert fitted(rows) == pytest.approx((5e-5, 2e9))
    assert summarize(rows) == [{"latency_microseconds": 50.0, "megabytes_per_second": 2000.0}]
    assert summarize(rows[1:]) == []
    assert table(rows).count("\n|") == 14


def test_two_processes_average() -> None:
    (cell, *_) = cells(argparse.Namespace(ranks=[2]), [])
    low, middle, high = measure(cell, argparse.Namespace(rounds=3))["milliseconds"]
    assert 0 < low <= middle <= high
