"""Calibration against brute force, closed forms and simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import Tensor

from bayes_rl.metrics.calibration import (
    conformal_scale,
    fit_return_noise,
    fit_returns,
    gaussian_intervals,
    gaussian_quantiles,
    interval_coverage,
    realised_returns,
)
from bayes_rl.metrics.uncertainty import LEVELS


def normal(size: int | tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size))


# Realised returns


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(
    st.lists(st.tuples(st.floats(-10, 10, width=32), st.booleans()), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(-50, 50),
)
def test_realised_returns_are_discounted_sums_up_to_the_first_end(
    steps: list[tuple[float, bool]], gamma: float, bootstrap: float
) -> None:
    rewards = torch.tensor([reward for reward, _ in steps])
    discounts = torch.tensor([float(goes_on) for _, goes_on in steps])
    expected = []
    for t in range(len(steps)):
        total = 0.0
        for i in range(t, len(steps)):
            total += gamma ** (i - t) * steps[i][0]
            if not steps[i][1]:
                break
        else:
            total += gamma ** (len(steps) - t) * bootstrap
        expected.append(total)
    ours = realised_returns(rewards, discounts, gamma, bootstrap)
    assert ours.dtype == torch.float32
    # One rounding to float32 of a number below 350, and differences of float64 far below it.
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=2**-24, atol=1e-11)


def test_a_truncated_game_leans_on_its_bootstrap_and_a_terminated_one_does_not() -> None:
    rewards, gamma = torch.zeros(600), 0.99
    truncated = realised_returns(rewards, torch.ones(600), gamma, bootstrap=1.0)
    nearer = math.log(0.01) / math.log(gamma)
    steps_to_the_cut = 600 - torch.arange(600)
    assert torch.equal(truncated > 0.01, steps_to_the_cut < nearer)
    terminated = torch.ones(600)
    terminated[-1] = 0
    assert not realised_returns(rewards, terminated, gamma, bootstrap=1.0).any()


def test_what_lies_beyond_an_end_cannot_reach_back() -> None:
    returns = realised_returns(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), 0.5, bootstrap=math.nan)
    assert returns.tolist() == [2.0, 2.0]
    assert realised_returns(torch.zeros(0), torch.zeros(0), 0.9).shape == (0,)


@pytest.mark.parametrize(
    ("rewards", "discounts"),
    [
        (torch.zeros(3), torch.ones(2)),
        (torch.zeros(3, 1), torch.ones(3, 1)),
        (torch.zeros(3), torch.full((3,), 0.9)),  # gamma would count twice
    ],
)
def test_realised_returns_refuses_what_it_would_misread(rewards: Tensor, discounts: Tensor) -> None:
    with pytest.raises(ValueError, match=r"vectors|discounts"):
        realised_returns(rewards, discounts, 0.9)


# Gaussian intervals


def test_gaussian_quantiles_and_intervals_are_those_of_scipy() -> None:
    mean, std = normal((3, 4)), normal((3, 4), 1).abs()
    probabilities = [0.001, 0.3, 0.5, 0.99]
    expected = np.stack([norm.ppf(p, mean, std) for p in probabilities])
    torch.testing.assert_close(gaussian_quantiles(mean, std, probabilities), torch.from_numpy(expected))
    lower, upper = gaussian_intervals(mean, std, LEVELS)
    assert lower.shape == upper.shape == (19, 3, 4)
    for k, level in enumerate(LEVELS):
        low, high = norm.interval(level, mean, std)
        torch.testing.assert_close(lower[k], torch.from_numpy(low))
        torch.testing.assert_close(upper[k], torch.from_numpy(high))


def test_a_certain_prediction_covers_itself_alone() -> None:
    mean = torch.tensor([2.0, 2.0])
    coverage = interval_coverage(mean, torch.zeros(2), torch.tensor([2.0, 2.1]), [0.1, 0.9])
    assert coverage.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_levels_lie_inside_0_and_1(level: float) -> None:
    with pytest.raises(ValueError, match="inside"):
        gaussian_intervals(torch.zeros(1), torch.ones(1), [level])


# Calibration of returns


# Scale of the noise


def test_fitted_noise_equals_the_closed_form_where_all_epistemic_stds_are_equal() -> None:
    mean, realised = normal(300), 2 * normal(300, 1)
    squares = (realised - mean) ** 2
    for epistemic in (0.0, 0.4, 2.0):
        expected = math.sqrt(squares.mean().item() - epistemic**2)
        ours = fit_return_noise(mean, torch.full_like(mean, epistemic), realised)
        assert ours == pytest.approx(expected, rel=1e-9)
    assert fit_return_noise(mean, torch.full_like(mean, 10.0), realised) == 0.0
    assert fit_return_noise(mean, torch.zeros_like(mean), mean) == 0.0


def test_fitted_noise_counts_games_not_steps() -> None:
    game = torch.tensor([0] * 9 + [1])
    residual = torch.tensor([1.0] * 9 + [3.0])
    certain = torch.zeros(10)
    assert fit_return_noise(certain, certain, residual, game) == pytest.approx(math.sqrt((1 + 9) / 2))
    assert fit_return_noise(certain, certain, residual) == pytest.approx(math.sqrt(18 / 10))


@pytest.mark.parametrize("noise", [0.0, 0.3, 5.0])
def test_fitted_noise_finds_the_true_one(noise: float) -> None:
    count = 20_000
    epistemic = 0.1 + normal(count).abs()
    total = (epistemic**2 + noise**2).sqrt()
    realised = total * normal(count, 1)
    fitted = fit_return_noise(torch.zeros(count), epistemic, realised)
    # Fisher information of the noise variance: the sum of 1 / (2 (v + noise^2)^2).
    variance_error = (0.5 / total**4).sum().rsqrt().item()
    assert fitted**2 == pytest.approx(noise**2, abs=4 * variance_error)


@pytest.mark.parametrize("seed", range(20))
def test_fitted_noise_is_the_global_maximum(seed: int) -> None:
    """Few residuals and epistemic stds over several decades: the likelihood has more than one peak at times."""
    rng = np.random.default_rng(seed)
    epistemic, residual = 10 ** rng.uniform(-3, 1, 6), 10 ** rng.uniform(-2, 1, 6)
    ours = fit_return_noise(torch.zeros(6), torch.from_numpy(epistemic), torch.from_numpy(residual))

    def loss(std: float) -> float:
        return -norm.logpdf(residual, scale=np.sqrt(epistemic**2 + std**2)).sum()

    grid = np.geomspace(1e-5, 20, 4000).tolist()
    start = min(range(1, 3999), key=lambda k: loss(grid[k]))
    best = minimize_scalar(loss, bounds=(grid[start - 1], grid[start + 1]), method="bounded").fun
    assert loss(ours) <= min(best, loss(0.0)) + 1e-9


def test_the_likelihood_of_the_noise_can_have_two_peaks_and_the_higher_one_wins() -> None:
    """Nine residuals of 0.01, well known, make a peak at 0.01; residuals of 10, known to 1, another above 3.

    With one of the latter it lies at noise^2 = 10, where 9 terms fall by as much as one rises, and is the lower by
    about 3 nats; with 60 it lies near 9.3 and is the higher.
    """
    for wild, expected in ((1, 0.01), (60, 9.3)):
        epistemic = torch.tensor([1e-3] * 9 + [1.0] * wild).double()
        residual = torch.tensor([0.01] * 9 + [10.0] * wild).double()
        noise = fit_return_noise(torch.zeros(len(residual)), epistemic, residual)
        assert noise == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("fit", [fit_return_noise, partial(conformal_scale, level=0.5)])
def test_a_scale_of_broken_data_is_nan_and_shapes_are_checked(fit: Callable[..., float]) -> None:
    broken = torch.tensor([1.0, math.nan, 2.0])
    assert math.isnan(fit(broken, torch.ones(3), torch.zeros(3)))
    with pytest.raises(ValueError, match="vectors"):
        fit(torch.ones(3), torch.ones(3), torch.ones(3, 1))


def test_there_is_no_noise_to_fit_without_residuals() -> None:
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="no residuals"):
        fit_return_noise(empty, empty, empty)


# Conformal


def test_conformal_scale_is_the_corrected_order_statistic() -> None:
    residual = torch.tensor([4.0, -1.0, 3.0, -2.0])
    mean, std = torch.full((4,), 7.0), torch.full((4,), 2.0)
    assert conformal_scale(mean, std, mean + residual, 0.4) == 1.0  # ceil(5 x 0.4) = 2nd of 0.5, 1, 1.5, 2
    assert conformal_scale(mean, std, mean + residual, 0.8) == 2.0
    assert conformal_scale(mean, std, mean + residual, 0.81) == math.inf  # 4 scores cannot promise more than 4 / 5
    assert conformal_scale(mean[:0], std[:0], mean[:0], 0.5) == math.inf
    scores = torch.arange(1.0, 100.0)
    assert conformal_scale(torch.zeros(99), torch.ones(99), scores, 0.55) == 55.0  # in binary 100 x 0.55 exceeds 55
    certain = torch.zeros(2)
    assert conformal_scale(certain, certain, torch.tensor([0.0, 1.0]), 0.3) == 0.0
    assert conformal_scale(certain, certain, torch.tensor([0.0, 1.0]), 0.6) == math.inf
    with pytest.raises(ValueError, match="inside"):
        conformal_scale(mean, std, mean, 1.0)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_conformal_intervals_cover_fresh_returns_of_any_distribution(level: float) -> None:
    """Over 2000 calibrations on 19 scores each, one fresh return: 10 of 20, or 18 of 20, exactly, by exchangeability.

    Returns are heavy-tailed and skewed; a Gaussian interval of the same std is off by more than the tolerance.
    """
    rounds, count = 2000, 19
    rng = np.random.default_rng(0)
    std = torch.from_numpy(rng.uniform(0.5, 2, (rounds, count + 1)))
    realised = std * torch.from_numpy(rng.lognormal(0, 1.5, (rounds, count + 1)))
    mean = torch.zeros_like(std)
    scales = torch.tensor(
        [conformal_scale(m, s, r, level) for m, s, r in zip(mean[:, :-1], std[:, :-1], realised[:, :-1], strict=True)]
    )
    covered = (realised[:, -1].abs() <= scales * std[:, -1]).double().mean().item()
    tolerance = 4 * math.sqrt(level * (1 - level) / rounds)
    assert covered == pytest.approx(level, abs=tolerance)
    gaussian = (realised[:, -1].abs() <= NormalDist().inv_cdf((1 + level) / 2) * std[:, -1]).double().mean().item()
    assert abs(gaussian - level) > tolerance


# Doubt about the action


# ------------------------------------------------------------------ bias, noise and scale together
def drawn(games: int, steps: int, bias: float, epistemic: float, error: float) -> list[Tensor]:
    """Predictions off by `bias` and a normal error of another std than they claim; game ids."""
    count = games * steps
    mean = 10 * torch.randn(count)
    realised = mean - bias + error * torch.randn(count)
    return [mean, torch.full((count,), epistemic), realised, torch.arange(count) // steps]


def test_bias_counts_each_game_alike() -> None:
    mean, zero = torch.tensor([1.0, 3.0, 3.0, 3.0]), torch.zeros(4)
    assert fit_returns(mean, zero, zero, torch.tensor([0, 1, 1, 1])).bias == pytest.approx(2.0)
    assert fit_returns(mean, zero, zero).bias == pytest.approx(2.5)


def test_too_few_residuals_leave_the_scale_alone_and_bad_ones_are_not_hidden() -> None:
    mean, std, realised, game = drawn(2, 4, 0.0, 0.1, 1.0)
    assert fit_returns(mean, std, realised, game).scale == 1.0
    mean[0] = math.nan
    assert all(math.isnan(value) for value in fit_returns(mean, std, realised, game))
    with pytest.raises(ValueError, match="no residuals"):
        fit_returns(*(x[:0] for x in drawn(1, 1, 0.0, 0.0, 1.0)))
