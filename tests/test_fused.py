"""Gradients by hand against autograd of the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bayes_rl.bounds import bounded
from bayes_rl.fused import VARIANCE_FLOOR, gaussian_kl, sampled_linear

LIMIT = 2.0
BLOCKED = 2
PRECISION = 3.0


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def parameters(
    outputs: int = 5, inputs: int = 4, members: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, mean, log_var (some of it beyond the limits) and bias, in float64."""
    x = torch.randn(7, inputs, dtype=torch.float64)
    mean = torch.randn(*members, outputs, inputs, dtype=torch.float64)
    log_var = torch.empty(outputs, inputs, dtype=torch.float64).uniform_(-3 * LIMIT, 3 * LIMIT)
    bias = torch.randn(outputs, dtype=torch.float64)
    return x.requires_grad_(), mean.requires_grad_(), log_var.requires_grad_(), bias.requires_grad_()


def layers(x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, blocked: int = 0) -> tuple[Tensor, Tensor]:
    """By three layers of 2, 2 and 1 outputs."""
    means, log_vars, biases = (values.split(2) for values in (mean, log_var, bias))
    return sampled_linear(x, means, log_vars, biases, LIMIT, PRECISION, blocked)


def plain(x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, blocked: int) -> tuple[Tensor, Tensor]:
    """The formulas; the actors' gradient is stopped by `detach`."""
    variance = bounded(log_var, -LIMIT, LIMIT).exp()
    inputs = [x.detach()] * blocked + [x] * (len(mean) - blocked)
    rows = [f @ m + b for f, m, b in zip(inputs, mean, bias, strict=True)]
    spread = [(f.square() @ v + VARIANCE_FLOOR).sqrt() for f, v in zip(inputs, variance, strict=True)]
    y = torch.stack(rows, -1) + torch.stack(spread, -1) * torch.randn(len(x), len(mean), dtype=torch.float64)
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, PRECISION**-0.5))
    return y, kl_divergence(Normal(mean, variance.sqrt()), prior).sum()


@pytest.mark.parametrize("blocked", [0, BLOCKED, 5])
def test_a_sampled_linear_layer_its_kl_and_their_gradients_equal_the_plain_formula(blocked: int) -> None:
    tensors = parameters()
    results = []
    for fused in (True, False):
        torch.manual_seed(1)
        y, kl = layers(*tensors, blocked) if fused else plain(*tensors, blocked)
        results.append([y, kl, *torch.autograd.grad((3 * y.sin()).sum() + 0.7 * kl, tensors, materialize_grads=True)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_an_input_of_zero_has_the_floor_for_a_variance_and_a_finite_gradient() -> None:
    x, mean, log_var, bias = parameters()
    y, _ = layers(torch.zeros_like(x), mean, log_var, bias)
    assert (y - bias).abs().max() < 6 * math.sqrt(VARIANCE_FLOOR)
    (gradient,) = torch.autograd.grad(y.sum(), log_var)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("members", [(), (3,)])
def test_the_kl_and_its_gradient_equal_torch_distributions(members: tuple[int, ...]) -> None:
    _, mean, log_var, _ = parameters(members=members)
    copies = math.prod(members)
    ours = 0.7 * gaussian_kl(mean, log_var, PRECISION, LIMIT, copies)
    std = bounded(log_var, -LIMIT, LIMIT).exp().sqrt().expand_as(mean)
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, PRECISION**-0.5))
    theirs = 0.7 * kl_divergence(Normal(mean, std), prior).sum() / copies
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
    for one, other in zip(*(torch.autograd.grad(kl, [mean, log_var]) for kl in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_log_variance_beyond_the_limit_moves_only_inward() -> None:
    log_var = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    kl = gaussian_kl(torch.zeros(1, 2), log_var, 1.0, LIMIT)  # whose optimum is 0
    assert (torch.autograd.grad(kl, log_var)[0].sign() == torch.tensor([[-1.0, 1.0]])).all()
    log_var = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    away = -gaussian_kl(torch.zeros(1, 2), log_var, 1.0, LIMIT)
    assert torch.equal(torch.autograd.grad(away, log_var)[0], torch.zeros(1, 2))
