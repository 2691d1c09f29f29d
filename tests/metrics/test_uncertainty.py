"""Metrics of predictive uncertainty and of its calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from bayes_rl.metrics.calibration import (
    conformal_scale,
    fit_return_noise,
    fit_returns,
    game_weights,
    gaussian_quantiles,
    interval_coverage,
)
from bayes_rl.metrics.uncertainty import LEVELS, PolicyUncertainty, ReturnCalibration

KEYS = {
    "coverage_50",
    "coverage_90",
    "calibration_error",
    "return_rmse",
    "return_bias",
    "return_correlation",
    "epistemic_std_mean",
    "interval_width_90",
}


def normal(size: int | tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size))


def judged(
    mean: Tensor, epistemic: Tensor | float, noise: Tensor | float, realised: Tensor, game: Tensor | None = None
) -> dict[str, float]:
    metric = ReturnCalibration()
    full = torch.ones_like(mean)
    metric.update(mean, epistemic * full, noise * full, realised, game)
    return {key: value.item() for key, value in metric.compute().items()}


def drawn(games: int, steps: int, bias: float, epistemic: float, error: float) -> list[Tensor]:
    """Predictions off by `bias` and a normal error of another std than they claim; game ids."""
    count = games * steps
    mean = 10 * torch.randn(count)
    realised = mean - bias + error * torch.randn(count)
    return [mean, torch.full((count,), epistemic), realised, torch.arange(count) // steps]


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
    result = judged(mean, epistemic, noise, realised)
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
    ours = judged(torch.zeros(count, dtype=torch.float64), claimed, 0.0, residuals)["calibration_error"]

    def distance(level: float) -> float:
        return abs(2 * norm.cdf(claimed * norm.ppf((1 + level) / 2)) - 1 - level)

    assert ours == pytest.approx(np.mean([distance(level) for level in LEVELS]), abs=2 / count)
    # The trapezoid rule with ends at which the distance is 0: 1 / 20 x the sum, the mean x 19 / 20. It is coarse
    # where the distance falls steeply to 0 at level 1, as it does for small claims.
    assert 0.95 * ours == pytest.approx(quad(distance, 0, 1)[0], abs=0.012)


def test_calibration_error_does_not_let_errors_of_opposite_sign_cancel() -> None:
    """Returns uniform in [-2, 2] under N(0, 1): too few near the mean and none in the tails."""
    uniform = torch.linspace(-2, 2, 10_001, dtype=torch.float64)
    ours = judged(torch.zeros_like(uniform), 1.0, 0.0, uniform)["calibration_error"]
    excess = [norm.ppf((1 + level) / 2) / 2 - level for level in LEVELS]
    assert min(excess) < 0 < max(excess)
    assert ours == pytest.approx(np.mean(np.abs(excess)), abs=2e-4)


def test_return_statistics_are_those_of_numpy() -> None:
    mean, realised, epistemic, noise = normal(500), normal(500, 1) + 0.3, normal(500, 2).abs(), normal(500, 3).abs()
    result = judged(mean, epistemic, noise, realised)
    width = 2 * norm.ppf(0.95) * (epistemic**2 + noise**2).sqrt().mean().item()
    assert result == pytest.approx(
        {
            **{key: result[key] for key in ("coverage_50", "coverage_90", "calibration_error")},
            "return_rmse": ((mean - realised) ** 2).mean().sqrt().item(),
            "return_bias": (mean.mean() - realised.mean()).item(),
            "return_correlation": np.corrcoef(mean.numpy(), realised.numpy())[0, 1],
            "epistemic_std_mean": epistemic.mean().item(),
            "interval_width_90": width,
        },
        rel=1e-5,  # stored in float32
    )
    assert set(result) == KEYS


def test_correlation_is_1_for_a_line_and_0_for_a_constant() -> None:
    mean = torch.linspace(-1, 1, 50)
    assert judged(mean, 1.0, 1.0, 3 * mean + 2)["return_correlation"] == pytest.approx(1)
    assert judged(mean, 1.0, 1.0, -mean)["return_correlation"] == pytest.approx(-1)
    assert judged(mean, 1.0, 1.0, torch.full((50,), 0.1))["return_correlation"] == 0
    assert judged(torch.full((50,), 0.1), 1.0, 1.0, mean)["return_correlation"] == 0


def test_each_game_counts_alike_whatever_its_length() -> None:
    game = torch.tensor([7, 3, 7, 7, 9])
    torch.testing.assert_close(game_weights(game), torch.tensor([1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3]).double())
    realised = torch.tensor([100.0, 0.0, 100.0, 100.0, 0.0])  # the long game is a surprise, the short ones are not
    with_ids, without = judged(torch.zeros(5), 1.0, 1.0, realised, game), judged(torch.zeros(5), 1.0, 1.0, realised)
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
        result = judged(mean, 1.0, 1.0, torch.zeros_like(mean))
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
    result = judged(torch.zeros(count)[other], epistemic[other], fitted, realised[other], game[other])
    # The fitted std errs too: in units of the level, at most by phi(z) z x 2 x its relative error, 1 / sqrt(2 M).
    z, m = norm.ppf(0.95), count / 2
    error = math.hypot(math.sqrt(0.09 / m), 2 * z * norm.pdf(z) / math.sqrt(2 * m) * 1.5)
    assert result["coverage_90"] == pytest.approx(0.9, abs=4 * error)


def test_policy_uncertainty_by_brute_force() -> None:
    draws, states, actions = 7, 30, 5
    q = normal((draws, states, actions)) + normal((states, actions), 1)
    stds, disagreements, gaps = [], [], []
    for state in range(states):
        means = [sum(q[d, state, a].item() for d in range(draws)) / draws for a in range(actions)]
        ranked = sorted(range(actions), key=lambda a: -means[a])
        stds.append(np.std([q[d, state, ranked[0]].item() for d in range(draws)], ddof=1))
        votes = [max(range(actions), key=lambda a: q[d, state, a].item()) for d in range(draws)]
        disagreements.append(sum(vote != ranked[0] for vote in votes) / draws)
        gaps.append(means[ranked[0]] - means[ranked[1]])
    metric = PolicyUncertainty()
    metric.update(q)
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx(
        {
            "epistemic_std": np.mean(stds),
            "greedy_disagreement": np.mean(disagreements),
            "q_gap": np.mean(gaps),
        },
        rel=1e-5,
    )
    assert 0.1 < np.mean(disagreements) < 0.9


def test_policy_uncertainty_adds_up_over_updates_and_ranks_and_resets() -> None:
    q = normal((4, 50, 3)).float()
    whole, parts, other = PolicyUncertainty(), PolicyUncertainty(), PolicyUncertainty()
    whole.update(q)
    parts.update(q[:, :5])
    parts.update(q[:, 5:30])
    other.update(q[:, 30:])
    other.update(q[:, :0])
    parts.merge_state(other)
    assert {k: v.item() for k, v in parts.compute().items()} == pytest.approx(
        {k: v.item() for k, v in whole.compute().items()}, rel=1e-5
    )
    parts.reset()
    parts.update(torch.tensor([[[1.0, 0.0]], [[3.0, 8.0]]]))
    again = {key: value.item() for key, value in parts.compute().items()}
    assert again == pytest.approx({"epistemic_std": math.sqrt(32), "greedy_disagreement": 0.5, "q_gap": 2.0})


def test_draws_that_agree_leave_no_doubt_and_one_action_no_gap() -> None:
    metric = PolicyUncertainty()
    metric.update(torch.zeros(3, 4, 6))  # ties too are broken alike
    assert [value.item() for value in metric.compute().values()] == [0.0, 0.0, 0.0]
    metric.reset()
    metric.update(torch.tensor([[[1.0]], [[3.0]]]))
    assert [value.item() for value in metric.compute().values()] == pytest.approx([math.sqrt(2), 0.0, 0.0])


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 3), (2, 4, 0), (2, 2, 4, 3)])
def test_policy_uncertainty_refuses_what_has_no_spread_or_no_action(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="q_draws"):
        PolicyUncertainty().update(torch.zeros(shape))


def test_policy_uncertainty_without_states_is_nan() -> None:
    metric = PolicyUncertainty()
    metric.update(torch.zeros(2, 0, 3))
    assert all(math.isnan(value.item()) for value in metric.compute().values())


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
