"""Two ranks against one: turns, words of the fits, and ratios of pairs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from benchmarks.speed.ranks import ARMS, cells, on_cores, summarize, words_of


def test_one_and_two_ranks_take_turns() -> None:
    options = argparse.Namespace(tasks=["minatar"], rounds=2)
    turns = [(cell["turn"], cell["arm"]) for cell in cells(options, [])]
    assert turns == [*((0, arm) for arm in ARMS), *((1, arm) for arm in reversed(ARMS))]


def test_a_fit_has_the_cores_of_its_arm() -> None:
    before = os.sched_getaffinity(0)
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    for number, core in enumerate(sorted(before)[:2]):
        with on_cores(1, first=number):
            assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == f"[{core}]\n"
    assert os.sched_getaffinity(0) == before


def test_two_ranks_have_twice_the_batch_and_half_the_updates() -> None:
    one, two = ({*words_of("nature", ranks, 10, "f")} for ranks in (1, 2))
    assert {"--data.num_envs=8", "--data.replay.batch_size=32", "--data.updates_per_step=0.25"} <= one
    assert {"--data.num_envs=16", "--data.replay.batch_size=64", "--data.updates_per_step=0.125"} <= two
    assert "--trainer.devices=2" in two


def test_ratios_are_those_of_turns() -> None:
    """The third turn is not whole."""
    rates = {0: (50.0, 100.0, 150.0, 95.0), 1: (40.0, 50.0, 100.0, 80.0), 2: (70.0,)}
    rows = [
        {"task": "nature", "turn": turn, "arm": arm, "frames_per_second": rate}
        for turn, of_turn in rates.items()
        for arm, rate in zip(ARMS, of_turn, strict=False)
    ]
    (found,) = summarize(rows)
    assert found["turns"] == 2
    assert found["to_two_cores"] == pytest.approx([1.625, 1.75, 1.875])
    assert found["to_one_core"] == pytest.approx([2.625, 2.75, 2.875])
    assert found["runs_to_one_core"] == pytest.approx([1.925, 1.95, 1.975])
