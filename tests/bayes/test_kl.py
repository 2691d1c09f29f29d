"""Divergence from the prior: against `torch.distributions`, dense covariances and float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal
from torch.distributions import kl_divergence as distribution_kl

from bayes_rl.bayes.kl import bayesian_layers, joint_kl, kl_divergence
from bayes_rl.bayes.layers import BayesLayer, BayesLinear
from bayes_rl.bayes.settings import PosteriorSettings
from tests.helpers.bayes_layers import (
    FAMILIES,
    SIZE,
    close,
    each_kind,
    each_posterior,
    float_layer,
    float_modes,
    inputs,
    make,
    make_conv,
    make_linear,
)


def kl_by_distributions(layer: BayesLayer) -> Tensor:
    """KL between `torch.distributions` Gaussians: summed over weights, averaged over members."""
    posterior = Normal(layer.weight_mu, (0.5 * layer.weight_log_var).exp())
    prior = Normal(torch.zeros_like(layer.weight_mu), layer.settings.prior_precision**-0.5)
    return distribution_kl(posterior, prior).sum() / (SIZE if layer.settings.family == "members" else 1)


def kl_by_full_covariance(layers: list[BayesLayer]) -> Tensor:
    """KL of the joint Gaussian of all weights of `low_rank` layers, which share z."""
    mean = torch.cat([layer.weight_mu.flatten() for layer in layers])
    factor = torch.cat([layer.weight_factor.flatten(1) for layer in layers], 1)
    variance = torch.cat([layer.weight_log_var.flatten() for layer in layers]).exp()
    precision = torch.cat([torch.full_like(p.weight_log_var, p.settings.prior_precision).flatten() for p in layers])
    posterior = MultivariateNormal(mean, factor.T @ factor + variance.diag())
    return distribution_kl(posterior, MultivariateNormal(torch.zeros_like(mean), (1 / precision).diag()))


@each_kind
@pytest.mark.parametrize("posterior", ["mean_field", "members"])
@pytest.mark.parametrize("k", [0.1, 1.0, 10.0, 250.0])
def test_kl_equals_torch_distributions_summed_over_weights(kind: str, posterior: str, k: float) -> None:
    layer = make(kind, posterior, k)
    torch.testing.assert_close(layer.kl_divergence(), kl_by_distributions(layer), rtol=1e-10, atol=0.0)


@each_kind
@pytest.mark.parametrize("k", [0.1, 10.0])
def test_low_rank_kl_equals_that_of_the_full_covariance(kind: str, k: float) -> None:
    layer = make(kind, "low_rank", k)
    factor = layer.weight_factor.flatten(1).T
    posterior = LowRankMultivariateNormal(layer.weight_mu.flatten(), factor, layer.weight_log_var.exp().flatten())
    prior = MultivariateNormal(torch.zeros(len(factor)).double(), torch.eye(len(factor)).double() / k)
    torch.testing.assert_close(layer.kl_divergence(), distribution_kl(posterior, prior), rtol=1e-8, atol=0.0)
    torch.testing.assert_close(layer.kl_divergence(), kl_by_full_covariance([layer]), rtol=1e-8, atol=0.0)


def test_joint_low_rank_kl_is_that_of_all_weights_which_share_z() -> None:
    layers: list[BayesLayer] = [make("linear", "low_rank", 0.7), make("conv", "low_rank", 5.0)]
    together, apart = joint_kl(layers), sum(layer.kl_divergence() for layer in layers)
    torch.testing.assert_close(together, kl_by_full_covariance(layers), rtol=1e-8, atol=0.0)
    assert together > apart + 0.1  # what the layers tell about each other
    assert torch.equal(kl_divergence(nn.ModuleList(layers)), together)


@pytest.mark.parametrize("posterior", ["mean_field", "members"])
def test_kl_of_a_tree_is_the_sum_over_layers_not_a_mean(posterior: str) -> None:
    first, second = make("conv", posterior), make("linear", posterior)
    tree = nn.Sequential(first, nn.ReLU(), nn.ModuleList([second]))
    assert bayesian_layers(tree) == {"0": first, "2.0": second}
    expected = kl_by_distributions(first) + kl_by_distributions(second)
    torch.testing.assert_close(kl_divergence(tree), expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(joint_kl([first, second]), expected, rtol=1e-10, atol=0.0)


@each_posterior
def test_layers_of_equal_and_of_different_inputs_and_settings_add_up(posterior: str) -> None:
    layers: list[BayesLayer] = [
        make_linear(posterior, rows=2),
        make_conv(posterior),
        make_linear(posterior, rows=5),
        make_linear(posterior, columns=3),
        make_linear(posterior, rows=1, k=0.2),
        make_conv(posterior, k=20.0),
        make_linear(posterior, rows=4),
    ]
    parameters = [p for layer in layers for name, p in layer.named_parameters() if name != "bias"]
    together = joint_kl(layers)
    oracle = kl_by_full_covariance(layers) if posterior == "low_rank" else sum(map(kl_by_distributions, layers))
    assert isinstance(oracle, Tensor)
    torch.testing.assert_close(together, oracle, rtol=1e-10, atol=0.0)
    gradients = (torch.autograd.grad(kl, parameters) for kl in (together, oracle))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@each_posterior
def test_kl_gradient_equals_that_of_torch_distributions(posterior: str) -> None:
    layer = make("linear", posterior)
    parameters = [p for name, p in layer.named_parameters() if name != "bias"]
    oracle = kl_by_full_covariance([layer]) if posterior == "low_rank" else kl_by_distributions(layer)
    ours = torch.autograd.grad(layer.kl_divergence(), parameters)
    for mine, theirs in zip(ours, torch.autograd.grad(oracle, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@each_posterior
def test_kl_is_zero_exactly_when_the_posterior_is_the_prior(posterior: str) -> None:
    layer = make_linear(posterior, rows=4, columns=6, k=10.0)
    with torch.no_grad():
        layer.weight_mu.zero_()
        layer.weight_log_var.fill_(-math.log(10.0))
        if layer.settings.family == "low_rank":
            layer.weight_factor.zero_()
    assert abs(layer.kl_divergence().item()) < 1e-13  # 24 terms that cancel to double precision


def test_kl_grows_with_the_number_of_identical_weights() -> None:
    small, large = make_linear(rows=3), make_linear(rows=6)
    with torch.no_grad():
        for layer in (small, large):
            layer.weight_mu.fill_(0.3)
            layer.weight_log_var.fill_(-5.0)
    close(large.kl_divergence(), 2 * small.kl_divergence())


def test_kl_of_a_tree_without_bayesian_layers_is_zero() -> None:
    assert kl_divergence(nn.Linear(3, 2)).item() == 0.0


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_low_rank_kl_survives_columns_that_are_nearly_parallel(scale: float) -> None:
    """Their Gram matrix is positive definite, but not to single precision."""
    layer = BayesLinear(64, 64, PosteriorSettings("low_rank", 8))
    with torch.no_grad():
        layer.weight_log_var.fill_(-11.0)
        layer.weight_factor.copy_(scale * torch.randn(64, 64) * torch.rand(8, 1, 1) + 1e-3 * torch.randn(8, 64, 64))
    exact = copy.deepcopy(layer).double().kl_divergence().item()
    kl = layer.kl_divergence()
    kl.backward()
    assert kl.item() == pytest.approx(exact, rel=1e-4)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in layer.parameters())


@each_kind
@pytest.mark.parametrize(("posterior", "prior"), FAMILIES)
def test_kl_stays_float32_under_bf16_autocast(kind: str, posterior: str, prior: str) -> None:
    layer, x = float_layer(kind, posterior, prior), inputs(kind, 4).float()
    outside = layer.kl_divergence()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, tree = layer.kl_divergence(), kl_divergence(nn.Sequential(layer))
        outputs = float_modes(layer, x)
    assert inside.dtype == tree.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(tree, outside)
    assert outputs[0].dtype == torch.bfloat16
    (tree + sum(y.float().square().mean() for y in outputs)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    exact = layer(x, "mean")
    torch.testing.assert_close(outputs[0].float(), exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_log_variance_beyond_its_limit_can_come_back(sign: float) -> None:
    """The KL pulls extreme variances towards the prior: a clamp without gradient would keep them there for good."""
    layer = BayesLinear(3, 2, PosteriorSettings(prior_precision=1.0))
    with torch.no_grad():
        layer.weight_log_var.fill_(sign * 12.0)  # the limit is 11
    layer.kl_divergence().backward()
    gradient = layer.weight_log_var.grad
    assert gradient is not None
    assert (gradient * sign > 0).all()  # descent leads back
    layer.weight_log_var.grad = None
    (-layer.kl_divergence()).backward()
    assert (layer.weight_log_var.grad == 0).all()  # and never further out
