"""The log-uniform prior: the published approximation, the integral, and its limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Normal

from bayes_rl.bayes.layers import BayesLinear
from tests.helpers.bayes_layers import (
    SIZE,
    each_kind,
    make,
    make_linear,
)


def molchanov(log_alpha: Tensor) -> Tensor:
    """KL by Molchanov, Ashukha and Vetrov (2017), equation 14 with C = -k1:
    -KL = k1 sigmoid(k2 + k3 log alpha) - log(1 + 1 / alpha) / 2 - k1.
    """
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    return k1 - k1 / (1 + (-k2 - k3 * log_alpha).exp()) + 0.5 * (1 + (-log_alpha).exp()).log()


def exact_log_uniform_kl(log_alpha: float) -> float:
    """E log|1 + sqrt(alpha) e| - log(alpha) / 2 for normal e, less its limit E log|e| = -(Euler + log 2) / 2."""
    std = math.exp(0.5 * log_alpha)
    zero = -1 / std  # the logarithm's singularity, between two integrals
    edges = [-12.0, *([zero] if zero > -12 else []), 12.0]
    density = Normal(0.0, 1.0)

    def term(e: float) -> float:
        return math.log(abs(1 + std * e) or 1e-300) * density.log_prob(torch.tensor(e).double()).exp().item()

    expected = sum(quad(term, low, high, limit=200)[0] for low, high in pairwise(edges))
    return expected - 0.5 * log_alpha + 0.5 * (0.5772156649015329 + math.log(2))


def uniform_layer(log_alpha: float) -> BayesLinear:
    """Four equal weights, of either sign, with this log s^2 / mu^2."""
    layer = make_linear(rows=2, columns=2, prior="log_uniform")
    with torch.no_grad():
        layer.weight_mu.copy_(math.exp(-1.0) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        layer.weight_log_var.fill_(log_alpha - 2.0)
    return layer


@each_kind
@pytest.mark.parametrize("posterior", ["mean_field", "members"])
def test_log_uniform_kl_is_the_published_approximation(kind: str, posterior: str) -> None:
    layer = make(kind, posterior, prior="log_uniform")
    expected = molchanov(layer.weight_log_var - layer.weight_mu.square().log()).sum()
    expected = expected / (SIZE if posterior == "members" else 1)
    torch.testing.assert_close(layer.kl_divergence(), expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("log_alpha", [-6.0, -2.0, 0.0, 1.0, 4.0])
def test_log_uniform_kl_is_near_the_integral(log_alpha: float) -> None:
    ours = uniform_layer(log_alpha).kl_divergence().item() / 4
    assert abs(ours - exact_log_uniform_kl(log_alpha)) < 0.01  # the published error is below 0.009


def test_log_uniform_kl_falls_to_zero_as_a_weight_becomes_noise() -> None:
    values = [uniform_layer(log_alpha).kl_divergence().item() for log_alpha in range(-9, 10)]
    assert all(after < before for before, after in pairwise(values))
    assert values[0] / 4 == pytest.approx(4.5 + 0.63576, abs=1e-3)  # -log(alpha) / 2 + k1
    assert 0 < values[-1] < 1e-3
    pruned = uniform_layer(9.0)
    with torch.no_grad():
        pruned.weight_mu.zero_()
    pruned.kl_divergence().backward()
    assert 0 <= pruned.kl_divergence().item() < 1e-9
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in pruned.parameters())
