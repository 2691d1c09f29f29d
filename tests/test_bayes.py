"""Variational layers against algebra, `torch.distributions` and an exact Bayesian posterior."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as distribution_kl

from bayes_rl import losses
from bayes_rl.bayes import BayesLinear, bayesian_layers, kl_divergence
from bayes_rl.types import ConfigError

DRAWS = 100_000
SIGMAS = 4.0  # Monte Carlo estimates must lie within this many standard errors


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def wide_posterior(rows: int = 5, columns: int = 7, prior_precision: float = 3.0) -> BayesLinear:
    """A float64 layer whose log-variances differ by several units, so that no term of the KL hides another."""
    layer = BayesLinear(columns, rows, prior_precision).double()
    with torch.no_grad():
        layer.weight_log_var.copy_(torch.empty_like(layer.weight_log_var).uniform_(-8.0, 3.0))
        layer.bias.normal_()
    return layer


def kl_by_distributions(layer: BayesLinear) -> Tensor:
    """The oracle: KL between `torch.distributions` Gaussians, summed over weights, in nats."""
    posterior = Normal(layer.weight_mu, (0.5 * layer.weight_log_var).exp())
    prior = Normal(torch.zeros_like(layer.weight_mu), layer.prior_precision**-0.5)
    return distribution_kl(posterior, prior).sum()


@pytest.mark.parametrize("prior_precision", [0.1, 1.0, 10.0, 250.0])
def test_kl_equals_torch_distributions_summed_over_weights(prior_precision: float) -> None:
    layer = wide_posterior(prior_precision=prior_precision)
    torch.testing.assert_close(layer.kl_divergence(), kl_by_distributions(layer), rtol=1e-10, atol=0.0)


def test_kl_gradient_equals_that_of_torch_distributions() -> None:
    layer = wide_posterior()
    parameters = (layer.weight_mu, layer.weight_log_var)
    ours = torch.autograd.grad(layer.kl_divergence(), parameters)
    theirs = torch.autograd.grad(kl_by_distributions(layer), parameters)
    for mine, oracle in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-10, atol=1e-10)


def test_kl_is_zero_exactly_when_the_posterior_is_the_prior() -> None:
    layer = BayesLinear(6, 4, prior_precision=10.0).double()
    with torch.no_grad():
        layer.weight_mu.zero_()
        layer.weight_log_var.fill_(-math.log(10.0))
    assert abs(layer.kl_divergence().item()) < 1e-13  # 24 terms that cancel to double precision


def test_kl_of_a_tree_is_the_sum_over_layers_not_a_mean() -> None:
    first, second = wide_posterior(5, 7), wide_posterior(2, 5)
    tree = nn.Sequential(first, nn.ReLU(), nn.ModuleList([second]))
    assert bayesian_layers(tree) == [first, second]
    expected = kl_by_distributions(first) + kl_by_distributions(second)
    torch.testing.assert_close(kl_divergence(tree), expected, rtol=1e-10, atol=0.0)


def test_kl_grows_with_the_number_of_identical_weights() -> None:
    small, large = BayesLinear(4, 3).double(), BayesLinear(4, 6).double()
    with torch.no_grad():
        for layer in (small, large):
            layer.weight_mu.fill_(0.3)
            layer.weight_log_var.fill_(-5.0)
    torch.testing.assert_close(large.kl_divergence(), 2 * small.kl_divergence(), rtol=1e-12, atol=0.0)


def test_kl_of_a_tree_without_bayesian_layers_is_zero() -> None:
    assert kl_divergence(nn.Linear(3, 2)).item() == 0.0


def test_kl_stays_float32_under_bf16_autocast() -> None:
    layer = BayesLinear(64, 32)
    outside = layer.kl_divergence()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer.kl_divergence()
        tree = kl_divergence(nn.Sequential(layer))
    assert inside.dtype == tree.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(tree, outside)


def test_local_reparameterisation_has_the_mean_and_variance_of_the_algebra() -> None:
    layer = wide_posterior(rows=3, columns=4)
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        draws = layer(x.expand(DRAWS, -1), weights="sample")
        mean = layer.weight_mu @ x + layer.bias
        variance = layer.weight_log_var.exp() @ x.square()
    standard_error = (variance / DRAWS).sqrt()
    assert ((draws.mean(0) - mean).abs() < SIGMAS * standard_error).all()
    variance_error = variance * math.sqrt(2.0 / (DRAWS - 1))  # of a Gaussian's sample variance
    assert ((draws.var(0) - variance).abs() < SIGMAS * variance_error).all()


def test_local_reparameterisation_agrees_with_drawing_weights() -> None:
    layer = wide_posterior(rows=2, columns=3)
    x = torch.randn(3, dtype=torch.float64)
    with torch.no_grad():
        ours = layer(x.expand(DRAWS, -1), weights="sample")
        std = (0.5 * layer.weight_log_var).exp()
        weights = layer.weight_mu + std * torch.randn(DRAWS, *std.shape, dtype=torch.float64)  # the slow twin
        slow = weights @ x + layer.bias
    standard_error = (2 * slow.var(0) / DRAWS).sqrt()
    assert ((ours.mean(0) - slow.mean(0)).abs() < SIGMAS * standard_error).all()
    ratio_error = 2.0 / math.sqrt(DRAWS - 1)  # std of the ratio of two equal sample variances: sqrt(2 * 2 / n)
    assert ((ours.var(0) / slow.var(0) - 1).abs() < SIGMAS * ratio_error).all()


def test_rows_and_outputs_get_independent_noise() -> None:
    layer = wide_posterior(rows=2, columns=4)
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        noise = layer(x.expand(DRAWS, -1), weights="sample") - layer(x[None])
    noise = noise / noise.std(0)
    limit = SIGMAS / math.sqrt(DRAWS)
    assert abs((noise[1:] * noise[:-1]).mean(0)).max() < SIGMAS / math.sqrt(DRAWS - 1)  # neighbouring rows
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < limit  # outputs of one row
    assert noise.unique().numel() == noise.numel()


def test_each_call_draws_afresh_and_the_seed_repeats_it() -> None:
    layer, x = BayesLinear(4, 3), torch.ones(2, 4)
    torch.manual_seed(5)
    first, second = layer(x, weights="sample"), layer(x, weights="sample")
    torch.manual_seed(5)
    assert not torch.equal(first, second)
    assert torch.equal(layer(x, weights="sample"), first)


@pytest.mark.parametrize("training", [True, False])
def test_mean_is_deterministic_and_sample_is_random_whatever_the_mode(training: bool) -> None:
    layer, x = wide_posterior().train(training), torch.randn(3, 7, dtype=torch.float64)
    state = torch.get_rng_state()
    mean = layer(x)
    assert torch.equal(torch.get_rng_state(), state)  # draws no random number
    torch.testing.assert_close(mean, x @ layer.weight_mu.T + layer.bias, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x, weights="mean"), mean)
    assert not torch.equal(layer(x, weights="sample"), mean)


def test_initial_means_have_the_scale_of_the_fan_in_and_log_variances_are_narrow() -> None:
    layer = BayesLinear(256, 400)
    count = layer.weight_mu.numel()
    for tensor, mean, std in ((layer.weight_mu, 0.0, 1 / 16), (layer.weight_log_var, -9.0, 1e-3)):
        values = tensor.detach().double()
        assert abs(values.mean().item() - mean) < SIGMAS * std / math.sqrt(count) + 1e-6  # float32 rounding of -9
        assert abs(values.std().item() - std) < SIGMAS * std / math.sqrt(2 * count) + 1e-6
    assert torch.equal(layer.bias, torch.zeros(400))


@pytest.mark.parametrize(("raw", "used"), [(100.0, 11.0), (-100.0, -11.0), (2.5, 2.5)])
def test_log_variances_are_clamped_to_eleven(raw: float, used: float) -> None:
    layer = BayesLinear(3, 2).double()
    with torch.no_grad():
        layer.weight_log_var.fill_(raw)
    assert torch.equal(layer.log_var(), torch.full((2, 3), used, dtype=torch.float64))
    assert torch.isfinite(layer.kl_divergence())
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        draws = layer(x.expand(20_000, -1), weights="sample")
    expected = 6.0 * math.exp(used)  # sum of x^2 times the variance
    assert abs(draws.var(0) / expected - 1).max() < SIGMAS * math.sqrt(2 / (20_000 - 1))


def test_variance_floor_keeps_the_gradient_of_a_zero_input_finite() -> None:
    layer = BayesLinear(3, 2).double()
    draws = layer(torch.zeros(DRAWS, 3, dtype=torch.float64), weights="sample")
    assert abs(draws.var(0).detach() / 1e-8 - 1).max() < SIGMAS * math.sqrt(2 / (DRAWS - 1))
    draws.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"prior_precision": 0.0}, "prior_precision"),
        ({"prior_precision": -1.0}, "prior_precision"),
        ({"prior_precision": float("nan")}, "prior_precision"),
        ({"init_log_var": 11.5}, "init_log_var"),
        ({"init_log_var": -12.0}, "init_log_var"),
        ({"init_log_var": float("nan")}, "init_log_var"),
    ],
)
def test_bad_settings_give_a_config_error_that_names_the_key(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as raised:
        BayesLinear(3, 2, **settings)
    assert str(next(iter(settings.values()))) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_trained_posterior_equals_exact_bayesian_linear_regression() -> None:
    """Orthogonal features make the exact posterior factorise, so mean-field reaches it:
    precision_i = prior + d_i / noise^2 and mean_i = (phi_i . y / noise^2) / precision_i, with d_i = |phi_i|^2.
    A KL that is averaged, unscaled (defect 1) or scaled by another N gives other means and variances.
    """
    num_data, noise_std, prior_precision = 16, 0.5, 10.0
    scales = torch.tensor([0.5, 1.0, 1.5, 0.75], dtype=torch.float64)
    phi = torch.tensor(hadamard(num_data)[:, 1:5], dtype=torch.float64) * scales
    y = phi @ torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    y = y + noise_std * torch.randn(num_data, dtype=torch.float64)
    exact_variance = 1 / (prior_precision + phi.square().sum(0) / noise_std**2)
    exact_mean = exact_variance * (phi.T @ y) / noise_std**2

    layer = BayesLinear(4, 1, prior_precision, init_log_var=-4.0).double()
    optimizer = torch.optim.Adam([layer.weight_mu, layer.weight_log_var], lr=0.05)  # the model has no bias
    steps, copies = 700, 64  # copies of the data only make the gradient less noisy
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    x, target = phi.repeat(copies, 1), y.repeat(copies)
    for _ in range(steps):
        nll = losses.gaussian_nll(layer(x, weights="sample").squeeze(-1), target, noise_std).mean()
        loss = losses.negative_elbo(nll, layer.kl_divergence(), num_data, temperature=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    torch.testing.assert_close(layer.weight_mu.detach()[0], exact_mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(layer.log_var().detach().exp()[0], exact_variance, rtol=0.01, atol=0.0)


def test_elbo_divides_the_kl_by_the_number_of_data() -> None:
    """Defect 1 of the original: a KL of 2.6e7 nats added unscaled to values in [0, 1]."""
    layer, nll = BayesLinear(64, 32), torch.tensor(0.5)
    kl = layer.kl_divergence()
    for num_data in (1, 1000, 1_000_000):
        loss = losses.negative_elbo(nll, kl, num_data, temperature=1.0)
        torch.testing.assert_close(loss, nll + kl / num_data)
