"""The two formulas of every update with Bayesian weights, each with its gradient by hand: many small operations, each
with a place in autograd's graph, take several times as long. Their plain twins are in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

VARIANCE_FLOOR = 1e-8


def sampled_linear(
    x: Tensor,
    means: Sequence[Tensor],
    log_vars: Sequence[Tensor],
    biases: Sequence[Tensor],
    limit: float,
    precision: float,
    blocked: int = 0,
) -> tuple[Tensor, Tensor]:
    """Linear layers on one input, with weights N(mean, exp(log_var)), as one layer; and their divergence.

    y = x mean^T + bias + sqrt(x^2 exp(log_var)^T) eps, eps a fresh standard normal number for each output (local
    reparameterisation); and KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights.

    Args:
        x: `[B, in]`.
        means: of each layer, `[out, in]`.
        log_vars: likewise, used clamped to +-limit; see `bounds.bounded` for their gradient outside.
        biases: `[out]` each.
        limit: of log-variances.
        precision: of the prior, > 0.
        blocked: so many of the first outputs have no gradient with respect to `x`.

    Returns:
        `[B, sum of out]`, and a scalar in nats.
    """
    y, kl = _SampledLinear.apply(x, limit, precision, blocked, *means, *log_vars, *biases)
    return y, kl


def gaussian_kl(mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int = 1) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights, a scalar in nats.

    Args:
        mean: `[*shape]`, or `[copies, *shape]` for as many Gaussians of one variance, whose divergence is averaged.
        log_var: `[*shape]`, used clamped to +-limit.
        precision: of the prior, > 0.
        limit: of log-variances.
        copies: number of Gaussians.
    """
    return _GaussianKL.apply(mean, log_var, precision, limit, copies)


def _kl(mean: Tensor, used: Tensor, variance: Tensor, precision: float, copies: int = 1) -> Tensor:
    """The divergence by clamped log-variances and variances."""
    flat = mean.flatten()
    total = torch.sub(variance, used, alpha=1 / precision).sum().add_(flat.dot(flat), alpha=1 / copies)
    return total.mul_(0.5 * precision).sub_(0.5 * used.numel() * (1.0 + math.log(precision)))


def _inward(gradient: Tensor, log_var: Tensor, used: Tensor) -> Tensor:
    """Without what leads further out of the limits: below them a positive gradient, above them a negative one."""
    return gradient.masked_fill_((log_var - used).mul_(gradient) < 0, 0.0)


class _SampledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, limit: float, precision: float, blocked: int, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Joined here and not before: autograd's own splitting of gradients takes a fifth of a small update.
        n = len(parts) // 3
        mean, log_var, bias = (torch.cat(parts[i : i + n]) for i in (0, n, 2 * n))
        ctx.sizes = [len(part) for part in parts[:n]]
        used, square = log_var.clamp(-limit, limit), x.square()
        variance = used.exp()
        std = (square @ variance.t()).add_(VARIANCE_FLOOR).sqrt_()
        noise = torch.randn_like(std)
        ctx.save_for_backward(x, square, mean, log_var, used, variance, std, noise)
        ctx.precision, ctx.blocked = precision, blocked
        return torch.addmm(bias, x, mean.t()).addcmul_(std, noise), _kl(mean, used, variance, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_kl: Tensor) -> Any:
        x, square, mean, log_var, used, variance, std, noise = ctx.saved_tensors
        of_variance = (gradient * noise).div_(std)  # twice that
        of_x = None
        if ctx.needs_input_grad[0]:
            k = ctx.blocked
            of_x = torch.addcmul(gradient[:, k:] @ mean[k:], x, of_variance[:, k:] @ variance[k:])
        of_moment = 0.5 * ctx.precision * of_kl
        of_mean = torch.addmm(2 * of_moment * mean, gradient.t(), x)
        of_log_var = torch.addmm(of_moment, of_variance.t(), square, alpha=0.5).mul_(variance).sub_(0.5 * of_kl)
        of_parts = of_mean, _inward(of_log_var, log_var, used), gradient.sum(0)
        return of_x, None, None, None, *(part for whole in of_parts for part in whole.split(ctx.sizes))


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int) -> Tensor:
        used = log_var.clamp(-limit, limit)
        variance = used.exp()
        ctx.save_for_backward(mean, log_var, used, variance)
        ctx.precision, ctx.copies = precision, copies
        return _kl(mean, used, variance, precision, copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        mean, log_var, used, variance = ctx.saved_tensors
        of_mean = mean * (gradient * (ctx.precision / ctx.copies))
        of_log_var = variance.mul(ctx.precision).sub_(1.0).mul_(0.5 * gradient)
        return of_mean, _inward(of_log_var, log_var, used), None, None, None
