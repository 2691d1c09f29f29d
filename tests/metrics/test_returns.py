"""Scores of whole games against SciPy and the published tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from bayes_rl.metrics.returns import EpisodeReturns, interquartile_mean

SCORES = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.lists(SCORES, min_size=1, max_size=60))
def test_interquartile_mean_equals_scipy_trim_mean(values: list[float]) -> None:
    ours = interquartile_mean(torch.tensor(values, dtype=torch.float64)).item()
    # A mean of at most 60 numbers of size 1e6 in double precision: 60 * 1e6 * 2^-52 < 2e-8.
    assert ours == pytest.approx(trim_mean(values, 0.25), rel=1e-12, abs=2e-8)


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(st.lists(SCORES, min_size=4, max_size=40), st.randoms(use_true_random=False))
def test_interquartile_mean_ignores_the_order(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert torch.equal(interquartile_mean(torch.tensor(values)), interquartile_mean(torch.tensor(shuffled)))


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    assert interquartile_mean(torch.tensor([1e9, 2.0, 4.0, -1e9])).item() == 3.0


def test_episode_returns_accumulates_over_updates_and_resets() -> None:
    metric = EpisodeReturns()
    metric.update(torch.tensor([1.0, 9.0]), torch.tensor([100.0, 200.0]))
    metric.update(torch.tensor([2.0]), torch.tensor([300.0]))
    metric.update(torch.tensor([4.0]), torch.tensor([400.0]))
    scores = {key: value.item() for key, value in metric.compute().items()}
    assert scores == {
        "games": 4.0,
        "games_cut": 0.0,
        "games_truncated": 0.0,
        "return_mean": 4.0,
        "return_counted": 4.0,
        "return_median": 3.0,
        "return_iqm": 3.0,
        "return_min": 1.0,
        "return_max": 9.0,
        "length_mean": 250.0,
        "points_won": 4.0,
        "points_lost": 0.0,
    }
    metric.reset()
    metric.update(torch.tensor([7.0]), torch.tensor([50.0]))
    again = metric.compute()
    assert (again["games"].item(), again["return_mean"].item(), again["length_mean"].item()) == (1.0, 7.0, 50.0)


def test_updates_weigh_games_not_batches() -> None:
    metric = EpisodeReturns()
    metric.update(torch.tensor([0.0, 0.0, 0.0]), torch.ones(3))
    metric.update(torch.tensor([8.0]), torch.ones(1))
    assert metric.compute()["return_mean"].item() == 2.0


def test_stopped_games_and_lost_points_are_counted_apart() -> None:
    metric = EpisodeReturns()
    flags = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    metric.update(
        torch.tensor([0.0, -3.0]), torch.ones(2), *flags, torch.tensor([-20.0, -3.0]), torch.tensor([0.0, 5.0])
    )
    metric.update(torch.tensor([6.0]), torch.ones(1))
    scores = {key: value.item() for key, value in metric.compute().items()}
    names = ("games_cut", "games_truncated", "return_mean", "return_counted", "points_won", "points_lost")
    assert [scores[name] for name in names] == pytest.approx([1, 1, 1, -17 / 3, 8 / 3, 5 / 3])
    metric.reset()
    metric.update(torch.tensor([6.0]), torch.ones(1))
    assert metric.compute()["games_cut"].item() == metric.compute()["points_lost"].item() == 0
