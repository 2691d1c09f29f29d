"""Ranking of states by uncertainty: against SciPy, against repeated data, and against brute force over orders."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from bayes_rl.metrics.error_ranking import ErrorRanking, game_resamples, relative_risk_area, risk_coverage, spearman

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=60)
NUMBER = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 7.5, 1e4])  # few, so that ties are frequent
PAIRS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=40)
FEW_PAIRS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=6)


def columns(pairs: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    x, y = torch.tensor(pairs).unbind(1)
    return x, y


def reference(x: Tensor, y: Tensor) -> float:
    """SciPy's correlation of ranks; 0 where it is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        value = spearmanr(x.numpy(), y.numpy()).statistic if len(x) > 1 else math.nan
    return 0.0 if math.isnan(value) else float(value)


# ---------------------------------------------------------------------------------------------------- correlation
@PROPERTY
@given(PAIRS)
def test_the_correlation_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    x, y = columns(pairs)
    assert float(spearman(x, y)) == pytest.approx(reference(x, y), abs=1e-9)


def test_the_correlation_is_that_of_torchmetrics() -> None:
    torch.manual_seed(0)
    x = torch.randn(300).round(decimals=1)
    y = x + torch.randn(300).round(decimals=1)
    assert float(spearman(x, y)) == pytest.approx(float(spearman_corrcoef(x, y)), abs=1e-5)


@PROPERTY
@given(PAIRS, st.randoms(use_true_random=False))
def test_counts_are_repetitions(pairs: list[tuple[float, float]], random: object) -> None:
    """The correlation of a sample with counts is that of the data with each pair repeated."""
    x, y = columns(pairs)
    counts = torch.tensor([[random.randrange(4) for _ in pairs] for _ in range(3)])  # type: ignore[attr-defined]
    counts[:, 0] += 1  # no sample is empty
    values = spearman(x, y, counts)
    for row, value in zip(counts, values.tolist(), strict=True):
        wanted = reference(x.repeat_interleave(row), y.repeat_interleave(row))
        assert value == pytest.approx(wanted, abs=1e-9)


def test_resamples_are_of_whole_games() -> None:
    game = torch.tensor([7, 7, 2, 9, 2, 2])
    counts = game_resamples(game, seed=1, resamples=2000)
    for a, b in ((0, 1), (2, 4), (2, 5)):
        assert torch.equal(counts[:, a], counts[:, b])
    games = counts[:, [0, 2, 3]]
    assert (games.sum(1) == 3).all()
    # Each of 3 draws takes a game with probability 1/3: mean 1, variance 2/3; 2000 samples, 5 standard errors.
    assert (games.mean(0) - 1).abs().max() < 5 * math.sqrt(2 / 3 / 2000)
    assert torch.equal(counts, game_resamples(game, seed=1, resamples=2000))
    assert not torch.equal(counts, game_resamples(game, seed=2, resamples=2000))


def test_the_interval_is_that_of_a_plain_bootstrap_over_games() -> None:
    """Resample games by hand, with SciPy's correlation; both intervals are random, hence the tolerance."""
    rng = np.random.default_rng(0)
    games = np.repeat(np.arange(12), 20)
    shift = rng.normal(size=12)[games]  # a game's states have a common error: they depend on each other
    std = np.exp(shift + 0.5 * rng.normal(size=240)).astype(np.float32)
    error = np.abs(std * rng.normal(size=240)).astype(np.float32)
    metric = ErrorRanking(seed=3)
    metric.update(torch.from_numpy(std), torch.from_numpy(error), torch.from_numpy(games))
    values = metric.compute()
    samples = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(games == g) for g in rng.integers(0, 12, 12)])
        samples.append(spearmanr(std[rows], error[rows]).statistic)
    low, high = np.quantile(samples, [0.025, 0.975])
    assert float(values["error_correlation"]) == pytest.approx(spearmanr(std, error).statistic, abs=1e-6)
    assert float(values["error_correlation_low"]) == pytest.approx(low, abs=0.05)
    assert float(values["error_correlation_high"]) == pytest.approx(high, abs=0.05)
    states = [spearmanr(std[rows], error[rows]).statistic for rows in (rng.integers(0, 240, 240) for _ in range(500))]
    narrow = np.quantile(states, 0.975) - np.quantile(states, 0.025)
    width = float(values["error_correlation_high"] - values["error_correlation_low"])
    assert width > 1.2 * narrow  # an interval over states is too narrow here


# -------------------------------------------------------------------------------------------------- risk-coverage
def curves_over_orders(std: Tensor, error: Tensor) -> Tensor:
    """Mean over all orders of the states that `std` allows of the mean error of the first k states."""
    rows = [
        [sum(float(error[i]) for i in order[:k]) / k for k in range(1, len(order) + 1)]
        for order in itertools.permutations(range(len(std)))
        if all(std[a] <= std[b] for a, b in itertools.pairwise(order))
    ]
    return torch.tensor(rows, dtype=torch.float64).mean(0)


@PROPERTY
@given(FEW_PAIRS)
def test_the_curve_is_the_mean_over_all_orders(pairs: list[tuple[float, float]]) -> None:
    std, error = columns(pairs)
    curve, wanted = risk_coverage(std, error), curves_over_orders(std, error)
    torch.testing.assert_close(curve, wanted, rtol=1e-9, atol=1e-9)
    assert float(curve[-1]) == pytest.approx(float(error.mean()), rel=1e-6)


@PROPERTY
@given(FEW_PAIRS)
def test_the_area_is_between_that_of_chance_and_that_of_the_errors(pairs: list[tuple[float, float]]) -> None:
    std, error = columns(pairs)
    area = relative_risk_area(std, error)
    if len(set(error.tolist())) == 1:
        assert area.isnan()
        return
    chance, oracle = error.double().mean(), curves_over_orders(error, error).mean()
    wanted = (chance - curves_over_orders(std, error).mean()) / (chance - oracle)
    assert float(area) == pytest.approx(float(wanted), abs=1e-9)
    assert float(relative_risk_area(error, error)) == pytest.approx(1)
    assert float(relative_risk_area(torch.ones_like(error), error)) == pytest.approx(0, abs=1e-9)
    assert float(relative_risk_area(1e4 - error, error)) < 0


# --------------------------------------------------------------------------------------------------------- metric
def test_the_metric_joins_updates() -> None:
    torch.manual_seed(1)
    std, error, game = torch.rand(30), torch.rand(30), torch.arange(30) // 10
    metric, whole = ErrorRanking(), ErrorRanking()
    for rows in (slice(0, 10), slice(10, 30)):
        metric.update(std[rows], error[rows], game[rows])
    whole.update(std, error, game)
    assert metric.compute() == whole.compute()
    values = metric.compute()
    assert float(values["error_correlation"]) == pytest.approx(reference(std, error), abs=1e-6)
    assert float(values["risk_coverage_area"]) == pytest.approx(float(relative_risk_area(std, error)), abs=1e-6)
    assert values["error_correlation_low"] <= values["error_correlation"] <= values["error_correlation_high"]


def test_without_states_or_with_numbers_that_are_not_finite_all_values_are_nan() -> None:
    metric = ErrorRanking()
    with pytest.warns(UserWarning, match="compute"):
        assert all(value.isnan() for value in metric.compute().values())
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]), torch.zeros(2))
    assert all(value.isnan() for value in metric.compute().values())


def test_wrong_input_is_refused() -> None:
    metric, one = ErrorRanking(), torch.ones(2)
    with pytest.raises(ValueError, match="one length"):
        metric.update(one, torch.ones(3), one)
    for std, error in ((-one, one), (one, -one)):
        with pytest.raises(ValueError, match="negative"):
            metric.update(std, error, one)
