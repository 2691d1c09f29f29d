"""Two ranks against one: turns, words of the fits, and ratios of pairs."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.speed.ranks import cells, summarize, words_of


def test_one_and_two_ranks_take_turns() -> None:
    options = argparse.Namespace(tasks=["minatar"], rounds=2)
    turns = [(cell["turn"], cell["ranks"]) for cell in cells(options, [])]
    assert turns == [(0, 1), (0, 2), (1, 2), (1, 1)]


def test_two_ranks_have_twice_the_batch_and_half_the_updates() -> None:
    one, two = ({*words_of({"task": "nature", "ranks": ranks}, 10, "f")} for ranks in (1, 2))
    assert {"--data.num_envs=8", "--data.replay.batch_size=32", "--data.updates_per_step=0.25"} <= one
    assert {"--data.num_envs=16", "--data.replay.batch_size=64", "--data.updates_per_step=0.125"} <= two
    assert "--trainer.devices=2" in two


def test_ratios_are_those_of_pairs() -> None:
    rates = {(0, 1): 100.0, (0, 2): 150.0, (1, 1): 50.0, (1, 2): 100.0, (2, 1): 70.0}
    rows = [{"task": "nature", "turn": t, "ranks": r, "frames_per_second": rate} for (t, r), rate in rates.items()]
    (found,) = summarize(rows)
    assert found["turns"] == 2
    assert found["ratio"] == pytest.approx([1.625, 1.75, 1.875])
