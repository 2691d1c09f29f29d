"""Likelihoods of a return against `torch.distributions`, brute-force integration and exact enumeration, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.func import grad, vmap

from bayes_rl.bayes.likelihoods import (
    NOISE_STD_RANGE,
    GaussianLikelihood,
    HLGaussLikelihood,
    LearnedGaussianLikelihood,
    Likelihood,
    LikelihoodSettings,
    ReturnGaussianLikelihood,
    TwoHotLikelihood,
    make_likelihood,
)
from bayes_rl.errors import ConfigError

LOW, HIGH, BINS = -3.0, 5.0, 16
WIDTH = (HIGH - LOW) / BINS
EPS = torch.finfo(torch.float32).eps  # 1.2e-7
HISTOGRAMS: dict[str, Callable[[], HLGaussLikelihood | TwoHotLikelihood]] = {
    "hl_gauss": lambda: HLGaussLikelihood(LOW, HIGH, BINS),
    "two_hot": lambda: TwoHotLikelihood(LOW, HIGH, BINS),
}
GAUSSIANS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": lambda: GaussianLikelihood(0.7),
    "learned_gaussian": lambda: LearnedGaussianLikelihood(0.7),
}
MAKERS: dict[str, Callable[[], Likelihood]] = {**GAUSSIANS, **HISTOGRAMS}


def bin_edges(likelihood: Likelihood) -> Tensor:
    """Edges of the bins by definition: the range cut in equal parts, or halfway between atoms; float64 `[n + 1]`."""
    if isinstance(likelihood, HLGaussLikelihood):
        return torch.linspace(LOW, HIGH, BINS + 1, dtype=torch.float64)
    half = (HIGH - LOW) / (BINS - 1) / 2
    return torch.linspace(LOW - half, HIGH + half, BINS + 1, dtype=torch.float64)


def centres(likelihood: Likelihood) -> Tensor:
    """Middles of the bins, float64 `[n]`."""
    edges = bin_edges(likelihood)
    return (edges[1:] + edges[:-1]) / 2


# ------------------------------------------------------------------ Gaussians
@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("noise_std", [0.01, 1.0, 30.0])
def test_gaussian_equals_torch_distributions(name: str, noise_std: float) -> None:
    likelihood = make_likelihood(LikelihoodSettings(name, noise_std, (0, 1), 2))
    raw, target = torch.randn(50, 1), torch.randn(50)
    oracle = Normal(raw[:, 0].double(), noise_std)
    # The residual over the noise is off by a few eps, its square by twice that.
    torch.testing.assert_close(
        likelihood.nll(raw, target).double(), -oracle.log_prob(target.double()), rtol=20 * EPS, atol=1e-6
    )
    assert torch.equal(likelihood.value(raw), raw[:, 0])
    torch.testing.assert_close(likelihood.std(raw), torch.full((50,), noise_std))
    levels = torch.tensor([0.001, 0.05, 0.5, 0.9, 0.999])
    expected = oracle.mean[:, None] + Normal(0.0, noise_std).icdf(levels.double())
    torch.testing.assert_close(likelihood.quantiles(raw, levels).double(), expected, rtol=1e-5, atol=1e-6)


def test_learned_noise_gradient_in_closed_form() -> None:
    likelihood = LearnedGaussianLikelihood(0.7)
    raw, target = torch.randn(40, 1), torch.randn(40)
    (gradient,) = torch.autograd.grad(likelihood.nll(raw, target).mean(), likelihood.log_noise)
    residual = (target - raw[:, 0]).double()
    torch.testing.assert_close(gradient.double(), 1 - residual.square().mean() / 0.7**2, rtol=1e-5, atol=1e-6)


def test_learned_noise_is_best_at_the_rms_residual() -> None:
    likelihood = LearnedGaussianLikelihood(1.0)
    raw, target = torch.randn(200, 1), 3 * torch.randn(200)
    optimizer = torch.optim.LBFGS([likelihood.log_noise], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = likelihood.nll(raw, target).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    rms = (target - raw[:, 0]).square().mean().sqrt()
    # LBFGS stops at a gradient below 1e-7, or where float32 sees no difference: sqrt(eps) in log_noise.
    torch.testing.assert_close(likelihood.std(raw)[0].detach(), rms, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("outside", "bound"), [(-20.0, 0), (20.0, 1)])
def test_learned_noise_is_bounded_and_finds_its_way_back(outside: float, bound: int) -> None:
    likelihood = LearnedGaussianLikelihood(1.0)
    with torch.no_grad():
        likelihood.log_noise.fill_(outside)
    torch.testing.assert_close(likelihood.std(torch.zeros(1)), torch.tensor(NOISE_STD_RANGE[bound]))

    def slope(residual: float) -> float:
        nll = likelihood.nll(torch.zeros(2, 1), torch.full((2,), residual)).sum()
        return torch.autograd.grad(nll, likelihood.log_noise)[0].item()

    further, back = (0.0, 1.0) if bound == 0 else (1e9, 1.0)
    assert slope(further) == 0.0
    assert slope(back) * (1 if bound else -1) > 0  # descent leads inward


def test_learned_noise_is_a_parameter_and_the_fixed_one_leaves_no_trace() -> None:
    assert list(LearnedGaussianLikelihood(1.0).state_dict()) == ["log_noise"]
    for name in ("gaussian", *HISTOGRAMS):
        assert not MAKERS[name]().state_dict()
        assert not list(MAKERS[name]().parameters())


# ------------------------------------------------------------------ projection
@pytest.mark.parametrize("sigma_ratio", [0.3, 0.75, 2.0])
def test_hl_gauss_histogram_equals_brute_force_integration(sigma_ratio: float) -> None:
    likelihood = HLGaussLikelihood(LOW, HIGH, BINS, sigma_ratio)
    target = torch.tensor([LOW, -2.9, -1.0, 0.123, 2.0, 4.99, HIGH, LOW - 7, HIGH + 1e30])
    fine = 2000  # midpoint rule: error (step / sigma)^2 / 24 < 1e-6 / 24
    x = LOW + WIDTH / fine * (torch.arange(BINS * fine, dtype=torch.float64) + 0.5)
    density = Normal(target.double().clamp(LOW, HIGH)[:, None], sigma_ratio * WIDTH).log_prob(x).exp()
    mass = density.unflatten(1, (BINS, fine)).sum(-1)
    expected = mass / mass.sum(-1, keepdim=True)
    torch.testing.assert_close(likelihood.project(target).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigma_ratio", [0.4, 0.75, 1.0])
def test_hl_gauss_histogram_has_the_target_as_its_mean_away_from_the_ends(sigma_ratio: float) -> None:
    """Putting each bin's mass at its centre shifts the mean by w sum_k (-1)^k exp(-2 (pi k r)^2) sin(...) / (pi k):
    at most w / pi exp(-2 pi^2 r^2) (1 + ...), 1.5e-5 w / pi for r = 0.75. Beyond 6 sigma the tails have 1e-9.
    """
    likelihood = HLGaussLikelihood(LOW, HIGH, BINS, sigma_ratio)
    margin = 6 * sigma_ratio * WIDTH
    target = torch.linspace(LOW + margin, HIGH - margin, 301)
    shift = WIDTH / math.pi * math.exp(-2 * (math.pi * sigma_ratio) ** 2)
    rounding = BINS * WIDTH * 8 * EPS  # masses and positions are off by some eps each
    mean = (likelihood.project(target).double() * centres(likelihood)).sum(-1)
    error = (mean - target.double()).abs().max().item()
    assert error <= 1.01 * shift + rounding
    if shift > 10 * rounding:
        assert error > 0.9 * shift  # the bound is sharp, so the derivation is right


def test_hl_gauss_mean_is_drawn_inward_at_an_end() -> None:
    """Half a normal has its mean at sigma sqrt(2 / pi)."""
    likelihood = HLGaussLikelihood(LOW, HIGH, 400, sigma_ratio=10.0)  # fine bins: no rounding to centres
    sigma = 10 * (HIGH - LOW) / 400
    value = likelihood.value(likelihood.project(torch.tensor(LOW)).clamp_min(1e-30).log()).item()
    assert value == pytest.approx(LOW + sigma * math.sqrt(2 / math.pi), abs=1e-3 * sigma)


def test_two_hot_has_two_neighbours_and_the_target_as_its_mean() -> None:
    likelihood = TwoHotLikelihood(LOW, HIGH, BINS)
    target = torch.cat([torch.linspace(LOW, HIGH, 301), centres(likelihood).float()])
    mass = likelihood.project(target).double()
    torch.testing.assert_close(mass.sum(-1), torch.ones_like(mass[:, 0]), rtol=0, atol=1e-12)
    mean = (mass * torch.linspace(LOW, HIGH, BINS, dtype=torch.float64)).sum(-1)
    torch.testing.assert_close(mean, target.double(), rtol=0, atol=BINS * WIDTH * 4 * EPS)
    apart = (torch.linspace(LOW, HIGH, BINS) - target[:, None]).abs() > (HIGH - LOW) / (BINS - 1) * (1 + 1e-5)
    assert (mass[apart] == 0).all()


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_projected_masses_are_masses_for_any_target(name: str) -> None:
    likelihood = HISTOGRAMS[name]()
    target = torch.tensor([-math.inf, -1e38, -1e4, LOW, 0.0, HIGH, 1e4, 1e38, math.inf])
    mass = likelihood.project(target)
    assert (mass >= 0).all()
    torch.testing.assert_close(mass.sum(-1), torch.ones(9))
    assert torch.equal(mass[0], mass[3])
    assert torch.equal(mass[-1], mass[5])


# ------------------------------------------------------------------ learned variance of returns
def test_return_gaussian_equals_torch_distributions() -> None:
    likelihood, raw, target = ReturnGaussianLikelihood(0.7), torch.randn(50, 2), torch.randn(50)
    oracle = Normal(raw[:, 0].double(), 0.7 * raw[:, 1].double().exp())
    nll = likelihood.nll(raw, target)
    torch.testing.assert_close(nll.double(), -oracle.log_prob(target.double()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(likelihood.value(raw), raw[:, 0])
    torch.testing.assert_close(likelihood.std(raw).double(), oracle.stddev, rtol=1e-5, atol=0)
    levels = torch.tensor([0.05, 0.5, 0.8])
    expected = torch.stack([oracle.icdf(level.double()) for level in levels], -1)
    torch.testing.assert_close(likelihood.quantiles(raw, levels).double(), expected, rtol=1e-5, atol=1e-5)


def test_return_nll_without_a_realised_return_is_the_expectation_over_returns() -> None:
    """Over returns that need not be Gaussian: three points here, each with probability 1 / 3."""
    likelihood, raw = ReturnGaussianLikelihood(1.3), torch.randn(20, 2)
    returns = torch.randn(3, 20)
    expected = torch.stack([likelihood.nll(raw, y) for y in returns]).mean(0)
    nll = likelihood.return_nll(raw, returns.mean(0), returns.var(0, correction=0), None)
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-5)


def test_return_nll_of_a_realised_return_is_its_nll() -> None:
    """Where the return is not known, its expectation by the TD target takes its place."""
    likelihood, raw = ReturnGaussianLikelihood(1.3), torch.randn(20, 2)
    target, variance, realised = torch.randn(20), torch.rand(20), torch.randn(20)
    realised[::2] = torch.nan
    nll = likelihood.return_nll(raw, target, variance, realised)
    torch.testing.assert_close(nll[1::2], likelihood.nll(raw, realised)[1::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nll[::2], likelihood.return_nll(raw, target, variance, None)[::2], rtol=0, atol=0)


@pytest.mark.parametrize("known", [False, True])
def test_gradients_of_return_nll(known: bool) -> None:
    """By the noise a hundredth of that of the return or of its expectation; by the value a TD error with noise 1."""
    likelihood, raw = ReturnGaussianLikelihood(1.3), torch.randn(20, 2).requires_grad_()
    target, variance = torch.randn(20), torch.rand(20)
    realised = torch.randn(20) if known else None
    (gradient,) = torch.autograd.grad(likelihood.return_nll(raw, target, variance, realised).sum(), raw)
    second_moment = (target - raw[:, 0]).square() + variance if realised is None else (realised - raw[:, 0]).square()
    of_noise = 1 - second_moment / likelihood.std(raw).square()
    torch.testing.assert_close(gradient[:, 1], 0.01 * of_noise.detach(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient[:, 0], (raw[:, 0] - target).detach())


@pytest.mark.parametrize("name", MAKERS)
def test_only_families_that_learn_the_variance_bootstrap_it(name: str) -> None:
    likelihood = MAKERS[name]()
    assert not likelihood.bootstraps_variance
    with pytest.raises(NotImplementedError, match="does not learn the variance"):
        likelihood.return_nll(torch.zeros(1, likelihood.outputs), torch.zeros(1), torch.ones(1), None)


# ------------------------------------------------------------------ histograms: cross-entropy and moments
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_cross_entropy_by_hand(name: str) -> None:
    likelihood = HISTOGRAMS[name]()
    raw, target = 3 * torch.randn(30, BINS), 6 * torch.randn(30)
    log_probs = raw.double().log_softmax(-1)
    expected = -(likelihood.project(target).double() * log_probs).sum(-1)
    torch.testing.assert_close(likelihood.nll(raw, target).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_cross_entropy_is_least_where_the_softmax_is_the_projected_target(name: str) -> None:
    likelihood = HISTOGRAMS[name]()
    target = torch.linspace(LOW - 1, HIGH + 1, 41)
    mass = likelihood.project(target)
    best = mass.clamp_min(1e-30).log().requires_grad_()
    nll = likelihood.nll(best, target)
    (gradient,) = torch.autograd.grad(nll.sum(), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)
    torch.testing.assert_close(nll, -torch.xlogy(mass, mass).sum(-1), rtol=1e-5, atol=1e-6)  # their entropy
    for _ in range(20):
        assert (likelihood.nll(best + 0.3 * torch.randn(41, BINS), target) > nll - 1e-6).all()


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_fitting_logits_to_draws_finds_their_mean(name: str) -> None:
    """Cross-entropy against several targets is least at the mean of their masses, so the value is their mean."""
    likelihood = HISTOGRAMS[name]()
    draws = 1 + 0.5 * torch.randn(500)
    raw = likelihood.project(draws).mean(0).clamp_min(1e-30).log()
    torch.testing.assert_close(likelihood.value(raw), draws.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_value_and_std_are_moments_of_the_spread_histogram(name: str) -> None:
    likelihood, raw = HISTOGRAMS[name](), 2 * torch.randn(20, BINS)
    edges, probs = bin_edges(likelihood), raw.double().softmax(-1)
    left, right = edges[:-1], edges[1:]
    mean = (probs * (left + right) / 2).sum(-1)
    second = (probs * (left**2 + left * right + right**2) / 3).sum(-1)  # of a uniform density from left to right
    torch.testing.assert_close(likelihood.value(raw).double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(likelihood.std(raw).double(), (second - mean**2).sqrt(), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ quantiles
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_quantiles_invert_the_piecewise_linear_cdf(name: str) -> None:
    likelihood, raw = HISTOGRAMS[name](), 2 * torch.randn(4, 5, BINS)
    levels = torch.tensor([0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0])
    quantiles = likelihood.quantiles(raw, levels)
    assert quantiles.shape == (4, 5, 9)
    edges, probs = bin_edges(likelihood), raw.double().softmax(-1)
    covered = ((quantiles.double()[..., None] - edges[:-1]) / edges.diff()).clamp(0, 1)  # of each bin, [4, 5, 9, n]
    cdf = (probs[..., None, :] * covered).sum(-1)
    torch.testing.assert_close(cdf, levels.double().expand(4, 5, 9), rtol=0, atol=5e-6)
    torch.testing.assert_close(quantiles[..., 0].double(), edges[0].expand(4, 5), rtol=0, atol=1e-5)
    # The last bins of small mass move the last quantile by the rounding of the sum over their density.
    assert (quantiles[..., -1] <= edges[-1] + 1e-5).all()


@pytest.mark.parametrize("name", MAKERS)
def test_quantiles_equal_those_of_draws(name: str) -> None:
    likelihood, draws, levels = MAKERS[name](), 200_000, torch.tensor([0.1, 0.5, 0.8])
    raw = torch.randn(likelihood.outputs)
    if name in HISTOGRAMS:
        drawn = torch.multinomial(raw.softmax(-1), draws, replacement=True)
        sample = centres(likelihood)[drawn] + (torch.rand(draws) - 0.5) * bin_edges(likelihood).diff()[0]
    else:
        sample = Normal(raw[0].double(), 0.7).sample((draws,))
    inside = (sample[:, None] <= likelihood.quantiles(raw, levels).detach()).double().mean(0)
    torch.testing.assert_close(inside, levels.double(), rtol=0, atol=4 * 0.5 / math.sqrt(draws))  # 4 standard errors


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_quantiles_of_gaps_and_peaks_are_finite_and_ordered(name: str) -> None:
    likelihood = HISTOGRAMS[name]()
    raw = torch.full((3, BINS), -1e4)
    raw[0, 5] = raw[1, 2] = raw[1, 9] = raw[2, 0] = 1e4
    quantiles = likelihood.quantiles(raw, torch.linspace(0, 1, 21))
    assert quantiles.isfinite().all()
    assert (quantiles.diff() >= 0).all()
    edges = bin_edges(likelihood).float()
    torch.testing.assert_close(quantiles[0, 1:], edges[5] + torch.linspace(0, 1, 21)[1:] * edges.diff()[5])
    torch.testing.assert_close(quantiles[1, [10, 11]], torch.stack([edges[3], edges[9] + 0.1 * edges.diff()[9]]))


# ------------------------------------------------------------------ Fisher
def scores(likelihood: Likelihood, x: Tensor, u: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights `[n, d]` of a linear head to the gradient of the score at each `u`: `[U, n, d]`."""
    return lambda weight: vmap(grad(lambda w, each: likelihood.fisher_score(w @ x, each)), (None, 0))(weight, u)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_fisher_of_a_linear_head_is_that_of_a_softmax(name: str) -> None:
    """F of w_kj is p_k (1 - p_k) x_j^2. A midpoint grid of U points gives each bin its mass within 1 / U."""
    likelihood, grid = HISTOGRAMS[name](), 4000
    x, weight = torch.randn(3), torch.randn(BINS, 3)
    u = (torch.arange(grid) + 0.5) / grid
    squared = scores(likelihood, x, u)(weight).double().square()
    probs = (weight @ x).double().softmax(-1)
    expected = (probs * (1 - probs))[:, None] * x.double().square()
    atol = BINS / grid * x.square().max().item()
    torch.testing.assert_close(squared.mean(0), expected, rtol=0, atol=atol)
    # Exactly: one u inside each bin, weighted by the bin's mass.
    inside = (probs.cumsum(-1) - probs / 2).float()
    weighted = probs[:, None, None] * scores(likelihood, x, inside)(weight).double().square()
    torch.testing.assert_close(weighted.sum(0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_fisher_of_a_linear_head_is_that_of_a_gaussian(name: str) -> None:
    x, weight, u = torch.randn(3), torch.randn(1, 3), torch.rand(5)
    squared = scores(MAKERS[name](), x, u)(weight).square()
    torch.testing.assert_close(squared, (x.square() / 0.7**2).expand(5, 1, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_fisher_score_never_draws_a_bin_without_mass(name: str) -> None:
    raw = torch.full((BINS,), -1e4)
    raw[3], raw[7] = 1.0, 1.0
    for u in (0.0, 0.25, 0.75, 1 - 2**-24):
        torch.testing.assert_close(HISTOGRAMS[name]().fisher_score(raw, torch.tensor(u)).item(), -math.log(2))
    many = torch.cat([torch.randn(1000, BINS - 2), torch.full((1000, 2), -1e4)], -1)  # some sums end below 1
    assert (many.softmax(-1).cumsum(-1)[:, -1] < 1).any()
    for last in (1 - 2**-24, 1 - 2**-50):  # the latter is 1 in float32
        u_last = torch.full((1000,), last, dtype=torch.float64)
        assert (HISTOGRAMS[name]().fisher_score(many, u_last) > -100).all()


def test_fisher_score_leaves_the_noise_alone() -> None:
    likelihood = LearnedGaussianLikelihood(0.7)
    raw = torch.ones(1, requires_grad=True)
    score = likelihood.fisher_score(raw, torch.tensor(0.5))
    assert torch.autograd.grad(score, (raw, likelihood.log_noise), allow_unused=True)[1] is None


# ------------------------------------------------------------------ interface
@pytest.mark.parametrize("name", MAKERS)
def test_leading_axes_are_kept_and_each_entry_stands_alone(name: str) -> None:
    likelihood, levels = MAKERS[name](), torch.tensor([0.1, 0.5, 0.9])
    raw, target, u = torch.randn(2, 3, 4, likelihood.outputs), torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    results: dict[str, Tensor] = {
        "value": likelihood.value(raw),
        "std": likelihood.std(raw),
        "nll": likelihood.nll(raw, target),
        "fisher_score": likelihood.fisher_score(raw, u),
        "quantiles": likelihood.quantiles(raw, levels),
    }
    at = (1, 2, 3)
    alone: dict[str, Any] = {"value": (), "std": (), "nll": (target[at],), "fisher_score": (u[at],)}
    alone["quantiles"] = (levels,)
    for method, result in results.items():
        assert result.dtype == torch.float32
        assert result.shape == ((2, 3, 4, 3) if method == "quantiles" else (2, 3, 4)), method
        torch.testing.assert_close(getattr(likelihood, method)(raw[at], *alone[method]), result[at])


@pytest.mark.parametrize("name", MAKERS)
def test_every_method_works_under_vmap_and_grad(name: str) -> None:
    likelihood, levels = MAKERS[name](), torch.tensor([0.1, 0.9])
    raw, target = torch.randn(6, likelihood.outputs), torch.randn(6)
    leaf = raw.clone().requires_grad_()
    (expected,) = torch.autograd.grad(likelihood.nll(leaf, target).sum(), leaf)
    torch.testing.assert_close(vmap(grad(likelihood.nll))(raw, target), expected)
    torch.testing.assert_close(vmap(likelihood.quantiles, (0, None))(raw, levels), likelihood.quantiles(raw, levels))
    torch.testing.assert_close(vmap(likelihood.value)(raw), likelihood.value(raw))
    torch.testing.assert_close(vmap(likelihood.std)(raw), likelihood.std(raw))


@pytest.mark.parametrize("name", MAKERS)
def test_no_gradient_flows_through_the_target(name: str) -> None:
    likelihood = MAKERS[name]()
    raw, target = torch.randn(6, likelihood.outputs, requires_grad=True), torch.randn(6, requires_grad=True)
    assert torch.autograd.grad(likelihood.nll(raw, target).sum(), (raw, target), allow_unused=True)[1] is None
    if isinstance(likelihood, HLGaussLikelihood | TwoHotLikelihood):
        assert not likelihood.project(target).requires_grad


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_is_read_in_float32(name: str) -> None:
    likelihood = MAKERS[name]()
    raw, target = torch.randn(6, likelihood.outputs).bfloat16(), torch.randn(6)
    assert torch.equal(likelihood.nll(raw, target), likelihood.nll(raw.float(), target))
    assert likelihood.value(raw).dtype == torch.float32


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_peaked_logits_and_far_targets_stay_finite(name: str) -> None:
    likelihood = HISTOGRAMS[name]()
    raw = torch.full((4, BINS), -1e4)
    raw[:, 3] = 1e4
    raw.requires_grad_()
    nll = likelihood.nll(raw, torch.tensor([-1e30, 0.0, 1e30, LOW]))
    (gradient,) = torch.autograd.grad(nll.sum(), raw)
    assert nll.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(likelihood.value(raw).double(), centres(likelihood)[3].expand(4), rtol=0, atol=1e-6)
    width = bin_edges(likelihood).diff()[0].item()
    torch.testing.assert_close(likelihood.std(raw), torch.full((4,), width / math.sqrt(12)))


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    likelihood = MAKERS[name]()
    n = likelihood.outputs
    raw, wrong = torch.randn(6, n), torch.randn(6, 1 if n > 1 else 2)
    for other in (torch.randn(6, 1), torch.randn(1), torch.randn(()), torch.randn(6, n)):
        with pytest.raises(ValueError, match="shapes must be equal"):
            likelihood.nll(raw, other)
        with pytest.raises(ValueError, match="shapes must be equal"):
            likelihood.fisher_score(raw, other)
    for call in (
        lambda: likelihood.value(wrong),
        lambda: likelihood.std(wrong),
        lambda: likelihood.nll(wrong, torch.randn(6)),
        lambda: likelihood.fisher_score(wrong[0], torch.rand(())),
        lambda: likelihood.quantiles(wrong, torch.rand(3)),
    ):
        with pytest.raises(ValueError, match=f"last axis must have {n} numbers"):
            call()
    with pytest.raises(ValueError, match="levels must have one axis"):
        likelihood.quantiles(raw, torch.rand(6, 3))


@pytest.mark.parametrize(("name", "kind"), [(name, type(make())) for name, make in MAKERS.items()])
def test_likelihoods_by_name(name: str, kind: type[Likelihood]) -> None:
    likelihood = make_likelihood(LikelihoodSettings(name, noise_std=0.5, value_range=(LOW, HIGH), num_bins=BINS))
    assert type(likelihood) is kind
    assert likelihood.outputs == (BINS if name in HISTOGRAMS else 1)


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("model.likelihood.family", ("hl_gaus", 1.0, (0.0, 1.0), 5)),
        ("model.likelihood.noise_std", ("gaussian", 0.0, (0.0, 1.0), 5)),
        ("model.likelihood.noise_std", ("gaussian", math.nan, (0.0, 1.0), 5)),
        ("model.likelihood.noise_std", ("learned_gaussian", -1.0, (0.0, 1.0), 5)),
        ("model.likelihood.noise_std", ("learned_gaussian", 1e-4, (0.0, 1.0), 5)),
        ("model.likelihood.value_range", ("hl_gauss", 1.0, (1.0, 1.0), 5)),
        ("model.likelihood.value_range", ("two_hot", 1.0, (2.0, 1.0), 5)),
        ("model.likelihood.value_range", ("two_hot", 1.0, (0.0, math.inf), 5)),
        ("model.likelihood.num_bins", ("hl_gauss", 1.0, (0.0, 1.0), 1)),
        ("model.likelihood.num_bins", ("two_hot", 1.0, (0.0, 1.0), 1)),
    ],
)
def test_settings_that_cannot_work_are_refused(key: str, settings: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        make_likelihood(LikelihoodSettings(*settings))
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_a_sigma_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sigma_ratio must be positive and finite, got 0\.0$"):
        HLGaussLikelihood(0.0, 1.0, 5, sigma_ratio=0.0)
