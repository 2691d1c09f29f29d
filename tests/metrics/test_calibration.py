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
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import Tensor

from bayes_rl.metrics.calibration import (
    LEVELS,
    ReturnCalibration,
    conformal_scale,
    fit_return_noise,
    fit_returns,
    game_weights,
    gaussian_crps,
    gaussian_intervals,
    gaussian_log_score,
    gaussian_quantiles,
    interval_coverage,
    realised_returns,
)

KEYS = {
    "coverage_50",
    "coverage_90",
    "calibration_error",
    "return_rmse",
    "return_bias",
    "return_correlation",
    "epistemic_std_mean",
    "interval_width_90",
    "crps",
    "log_score",
}


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


# The metric of calibration


def calibration_of(
    mean: Tensor, epistemic: Tensor | float, noise: Tensor | float, realised: Tensor, game: Tensor | None = None
) -> dict[str, float]:
    metric = ReturnCalibration()
    full = torch.ones_like(mean)
    metric.update(mean, epistemic * full, noise * full, realised, game)
    return {key: value.item() for key, value in metric.compute().items()}


def test_shapes_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match="shapes"):
        gaussian_quantiles(torch.zeros(3), torch.ones(3, 1), [0.5])
    with pytest.raises(ValueError, match="vectors"):
        interval_coverage(torch.zeros(3), torch.ones(3), torch.zeros(3, 1), [0.5])
    with pytest.raises(ValueError, match="vectors"):
        ReturnCalibration().update(torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3), torch.zeros(1))


@pytest.mark.parametrize("claimed", [1.0, 0.5, 2.0], ids=["calibrated", "overconfident", "underconfident"])
def test_coverage_is_that_of_the_claimed_std_over_the_true_one(claimed: float) -> None:
    """|z| of a return is below claimed x z_level with probability 2 Phi(claimed x z_level) - 1."""
    count = 20_000
    mean, epistemic, noise = 3 * normal(count), 0.2 + normal(count, 1).abs(), 0.7
    realised = mean + (epistemic**2 + noise**2).sqrt() / claimed * normal(count, 2)
    result = calibration_of(mean, epistemic, noise, realised)
    for level in (0.5, 0.9):
        p = 2 * norm.cdf(claimed * norm.ppf((1 + level) / 2)) - 1
        assert result[f"coverage_{100 * level:.0f}"] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count))
    if claimed == 1.0:
        assert result["calibration_error"] < 1 / math.sqrt(count)  # about 0.3 / sqrt(count) by chance


@pytest.mark.parametrize("claimed", [0.3, 0.8, 1.0, 1.7])
def test_calibration_error_of_a_known_misscale(claimed: float) -> None:
    """Residuals at the quantiles of N(0, 1) stand in for infinitely many; the levels sum up an integral."""
    count = 10_000
    residuals = torch.from_numpy(norm.ppf((np.arange(count) + 0.5) / count))
    ours = calibration_of(torch.zeros(count, dtype=torch.float64), claimed, 0.0, residuals)["calibration_error"]

    def distance(level: float) -> float:
        return abs(2 * norm.cdf(claimed * norm.ppf((1 + level) / 2)) - 1 - level)

    assert ours == pytest.approx(np.mean([distance(level) for level in LEVELS]), abs=2 / count)
    # The trapezoid rule with ends at which the distance is 0: 1 / 20 x the sum, the mean x 19 / 20. It is coarse
    # where the distance falls steeply to 0 at level 1, as it does for small claims.
    assert 0.95 * ours == pytest.approx(quad(distance, 0, 1)[0], abs=0.012)


def test_calibration_error_does_not_let_errors_of_opposite_sign_cancel() -> None:
    """Returns uniform in [-2, 2] under N(0, 1): too few near the mean and none in the tails."""
    uniform = torch.linspace(-2, 2, 10_001, dtype=torch.float64)
    ours = calibration_of(torch.zeros_like(uniform), 1.0, 0.0, uniform)["calibration_error"]
    excess = [norm.ppf((1 + level) / 2) / 2 - level for level in LEVELS]
    assert min(excess) < 0 < max(excess)
    assert ours == pytest.approx(np.mean(np.abs(excess)), abs=2e-4)


def test_return_statistics_are_those_of_numpy() -> None:
    mean, realised, epistemic, noise = normal(500), normal(500, 1) + 0.3, normal(500, 2).abs(), normal(500, 3).abs()
    result = calibration_of(mean, epistemic, noise, realised)
    width = 2 * norm.ppf(0.95) * (epistemic**2 + noise**2).sqrt().mean().item()
    assert result == pytest.approx(
        {
            **{key: result[key] for key in ("coverage_50", "coverage_90", "calibration_error")},
            "return_rmse": ((mean - realised) ** 2).mean().sqrt().item(),
            "return_bias": (mean.mean() - realised.mean()).item(),
            "return_correlation": np.corrcoef(mean.numpy(), realised.numpy())[0, 1],
            "epistemic_std_mean": epistemic.mean().item(),
            "interval_width_90": width,
            "crps": gaussian_crps(mean, (epistemic**2 + noise**2).sqrt(), realised).mean().item(),
            "log_score": norm.logpdf(realised, mean, (epistemic**2 + noise**2).sqrt()).mean(),
        },
        rel=1e-5,  # stored in float32
    )
    assert set(result) == KEYS


def test_correlation_is_1_for_a_line_and_0_for_a_constant() -> None:
    mean = torch.linspace(-1, 1, 50)
    assert calibration_of(mean, 1.0, 1.0, 3 * mean + 2)["return_correlation"] == pytest.approx(1)
    assert calibration_of(mean, 1.0, 1.0, -mean)["return_correlation"] == pytest.approx(-1)
    assert calibration_of(mean, 1.0, 1.0, torch.full((50,), 0.1))["return_correlation"] == 0
    assert calibration_of(torch.full((50,), 0.1), 1.0, 1.0, mean)["return_correlation"] == 0


def test_each_game_counts_alike_whatever_its_length() -> None:
    game = torch.tensor([7, 3, 7, 7, 9])
    torch.testing.assert_close(game_weights(game), torch.tensor([1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3]).double())
    realised = torch.tensor([100.0, 0.0, 100.0, 100.0, 0.0])  # the long game is a surprise, the short ones are not
    with_ids, without = (
        calibration_of(torch.zeros(5), 1.0, 1.0, realised, game),
        calibration_of(torch.zeros(5), 1.0, 1.0, realised),
    )
    assert (with_ids["coverage_90"], without["coverage_90"]) == pytest.approx((2 / 3, 2 / 5))
    assert (with_ids["return_bias"], without["return_bias"]) == pytest.approx((-100 / 3, -60))
    assert with_ids["return_correlation"] == 0


def test_calibration_adds_up_over_updates_and_ranks_and_resets() -> None:
    mean, epistemic, noise, realised = normal((4, 60)).float()
    vectors, game = (mean, epistemic.abs(), noise.abs(), realised), torch.arange(60) // 17
    whole, parts, other = ReturnCalibration(), ReturnCalibration(), ReturnCalibration()
    whole.update(*vectors, game)
    for metric, piece in ((parts, slice(0, 10)), (parts, slice(10, 40)), (other, slice(40, 60)), (other, slice(0, 0))):
        metric.update(*[v[piece] for v in (*vectors, game)])
    parts.merge_state(other)
    assert {k: v.item() for k, v in parts.compute().items()} == pytest.approx(
        {k: v.item() for k, v in whole.compute().items()}, rel=1e-6
    )
    parts.reset()
    parts.update(torch.zeros(1), torch.ones(1), torch.ones(1), torch.full((1,), 5.0))
    again = parts.compute()
    assert (again["return_bias"].item(), again["coverage_90"].item()) == (-5.0, 0.0)
    parts.update(torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3))
    assert parts.compute()["return_bias"].item() == -2.0  # without ids every step counts alike, whatever its update


def test_without_data_or_with_broken_data_every_value_is_nan() -> None:
    for mean in (torch.zeros(0), torch.tensor([1.0, math.nan]), torch.tensor([math.inf])):
        result = calibration_of(mean, 1.0, 1.0, torch.zeros_like(mean))
        assert set(result) == KEYS
        assert all(math.isnan(value) for value in result.values())
    with pytest.warns(UserWarning, match="before"):
        assert set(ReturnCalibration().compute()) == KEYS


def test_a_negative_std_is_refused() -> None:
    one = torch.ones(1)
    for call in (
        lambda: ReturnCalibration().update(one, -one, one, one),
        lambda: ReturnCalibration().update(one, one, -one, one),
        lambda: fit_return_noise(one, -one, one),
        lambda: conformal_scale(one, -one, one, 0.5),
    ):
        with pytest.raises(ValueError, match="negative"):
            call()


def test_fitted_noise_makes_the_coverage_of_other_games_right() -> None:
    games, length, noise = 200, 40, 1.5
    count = games * length
    epistemic, game = 0.2 + normal(count).abs(), torch.arange(count) // length
    realised = (epistemic**2 + noise**2).sqrt() * normal(count, 1)
    fit, other = game < games // 2, game >= games // 2
    fitted = fit_return_noise(torch.zeros(count)[fit], epistemic[fit], realised[fit], game[fit])
    result = calibration_of(torch.zeros(count)[other], epistemic[other], fitted, realised[other], game[other])
    # The fitted std errs too: in units of the level, at most by phi(z) z x 2 x its relative error, 1 / sqrt(2 M).
    z, m = norm.ppf(0.95), count / 2
    error = math.hypot(math.sqrt(0.09 / m), 2 * z * norm.pdf(z) / math.sqrt(2 * m) * 1.5)
    assert result["coverage_90"] == pytest.approx(0.9, abs=4 * error)


@pytest.mark.parametrize(("bias", "epistemic", "error"), [(1.5, 0.1, 0.6), (-3.0, 0.5, 0.5), (0.2, 2.0, 0.3)])
def test_fitted_intervals_hold_on_other_games(bias: float, epistemic: float, error: float) -> None:
    """Also where predictions are all off by the same, and where the posterior is wider than the errors."""
    torch.manual_seed(0)
    fit = fit_returns(*drawn(100, 40, bias, epistemic, error))
    assert fit.bias == pytest.approx(bias, abs=4 * error / math.sqrt(4000))
    expected = math.sqrt(max(0.0, error**2 - epistemic**2))
    assert fit.noise_std == pytest.approx(expected, rel=0.1, abs=0.2 * error)
    # 4 standard errors of a quantile at 0.9 of 4000 scores: 4 x sqrt(0.09 / 4000) / (2 x 0.103), in units of 1.645
    assert fit.scale == pytest.approx(error / math.hypot(epistemic, fit.noise_std), rel=0.06)
    metric = ReturnCalibration()
    mean, std, realised, game = drawn(100, 40, bias, epistemic, error)
    metric.update(mean, std, torch.full_like(mean, fit.noise_std), realised, game, bias=fit.bias, scale=fit.scale)
    values = metric.compute()
    assert values["coverage_90"].item() == pytest.approx(0.9, abs=0.03)
    assert values["coverage_50"].item() == pytest.approx(0.5, abs=0.04)
    assert values["return_bias"].item() == pytest.approx(bias, abs=4 * error / math.sqrt(4000))  # as it was predicted
    width = 2 * 1.6448536 * fit.scale * math.hypot(epistemic, fit.noise_std)
    assert values["interval_width_90"].item() == pytest.approx(width, rel=1e-4)


# ------------------------------------------------------------------ games of different lengths
def games_of_two_lengths(link: str, seed: int) -> list[Tensor]:
    """400 games of 20 or 400 steps, half of each; predictions, their std, returns and game ids."""
    rng = np.random.default_rng(seed)
    long = rng.random(400) < 0.5
    error = {
        "none": 0.5 + rng.random(400),
        "long games err more": np.where(long, 3.0, 0.5),
        "short games err more": np.where(long, 0.5, 3.0),
    }[link]
    game = np.repeat(np.arange(400), np.where(long, 400, 20))
    realised = torch.from_numpy(error[game] * rng.standard_normal(len(game)))
    return [torch.zeros(len(game)).double(), torch.full((len(game),), 0.1).double(), realised, torch.from_numpy(game)]


@pytest.mark.parametrize("link", ["none", "long games err more", "short games err more"])
def test_90_percent_intervals_cover_90_percent_of_new_games_however_length_and_error_go_together(link: str) -> None:
    """The mean over five pairs of samples: one pair scatters by about 0.01."""
    coverages = []
    for seed in range(5):
        fit = fit_returns(*games_of_two_lengths(link, 2 * seed))
        mean, std, realised, game = games_of_two_lengths(link, 2 * seed + 1)
        total = fit.scale * (std**2 + fit.noise_std**2).sqrt()
        coverages.append(interval_coverage(mean - fit.bias, total, realised, [0.9], game_weights(game)).item())
    assert np.mean(coverages) == pytest.approx(0.9, abs=0.02)


def test_conformal_scale_weighs_games_by_hand() -> None:
    """Game 0 has the scores 1, 2, 3, game 1 the score 10: with weights 1/9 thrice, 1/3, and 1/3 of the new game."""
    game, scores = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 10.0])
    zero, one = torch.zeros(4), torch.ones(4)

    def scale(level: float) -> float:
        return conformal_scale(zero, one, scores, level, game)

    assert [scale(level) for level in (0.1, 0.12, 0.3, 0.34, 0.66)] == [1, 2, 3, 10, 10]
    assert scale(0.67) == math.inf


def test_a_fit_on_eight_games_leaves_the_scale_alone_however_long_they_are() -> None:
    mean, std, realised, game = drawn(8, 40, 0.0, 0.1, 1.0)
    assert fit_returns(mean, std, realised, game).scale == 1.0
    mean, std, realised, game = drawn(9, 40, 0.0, 0.1, 1.0)
    assert fit_returns(mean, std, realised, game).scale != 1.0


# ------------------------------------------------------------------ scores of a prediction
@pytest.mark.parametrize(("mean", "std", "realised"), [(0.0, 1.0, 0.3), (2.0, 0.5, -1.0), (-3.0, 4.0, 9.0)])
def test_crps_equals_the_numerical_integral(mean: float, std: float, realised: float) -> None:
    below = quad(lambda y: norm.cdf(y, mean, std) ** 2, mean - 40 * std, realised)[0]
    above = quad(lambda y: norm.sf(y, mean, std) ** 2, realised, mean + 40 * std)[0]
    ours = gaussian_crps(*(torch.tensor([x], dtype=torch.float64) for x in (mean, std, realised)))
    assert ours.item() == pytest.approx(below + above, rel=1e-6)
    score = gaussian_log_score(*(torch.tensor([x], dtype=torch.float64) for x in (mean, std, realised)))
    assert score.item() == pytest.approx(norm.logpdf(realised, mean, std), rel=1e-12)


def test_scores_of_a_prediction_without_a_spread() -> None:
    mean, std, realised = torch.zeros(2), torch.zeros(2), torch.tensor([0.0, -2.5])
    assert gaussian_crps(mean, std, realised).tolist() == [0.0, 2.5]
    assert gaussian_log_score(mean, std, realised).tolist() == [math.inf, -math.inf]
