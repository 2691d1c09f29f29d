"""The two formulas of every update with Bayesian weights, each with its gradient by hand: many small operations, each
with a place in autograd's graph, take several times as long. Their plain twins are in the tests.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

VARIANCE_FLOOR = 1e-8


def sampled_linear(x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, limit: float, blocked: int = 0) -> Tensor:
    """A linear layer with weights N(mean, exp(log_var)) by local reparameterisation: `[B, out]`.

    y = x mean^T + bias + sqrt(x^2 exp(log_var)^T) eps, eps a fresh standard normal number for each output.

    Args:
        x: `[B, in]`.
        mean: `[out, in]`.
        log_var: `[out, in]`, used clamped to +-limit; see `bounds.bounded` for its gradient outside.
        bias: `[out]`.
        limit: of log-variances.
        blocked: so many of the first outputs have no gradient with respect to `x`.
    """
    return _SampledLinear.apply(x, mean, log_var, bias, limit, blocked)


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


def _inward(gradient: Tensor, log_var: Tensor, limit: float) -> Tensor:
    """Without what leads further out of the limits: below them a positive gradient, above them a negative one."""
    return gradient.masked_fill_((log_var.abs() > limit) & (gradient * log_var < 0), 0.0)


class _SampledLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, limit: float, blocked: int) -> Tensor:
        variance, square = log_var.clamp(-limit, limit).exp_(), x.square()
        std = (square @ variance.t()).clamp_min_(VARIANCE_FLOOR).sqrt_()
        noise = torch.randn_like(std)
        ctx.save_for_backward(x, square, mean, log_var, variance, std, noise)
        ctx.limit, ctx.blocked = limit, blocked
        return torch.addmm(bias, x, mean.t()).addcmul_(std, noise)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, square, mean, log_var, variance, std, noise = ctx.saved_tensors
        of_variance = (gradient * noise).div_(std).mul_(0.5)
        of_variance.masked_fill_(std <= math.sqrt(VARIANCE_FLOOR), 0.0)
        of_x = None
        if ctx.needs_input_grad[0]:
            k = ctx.blocked
            of_x = torch.addcmul(gradient[:, k:] @ mean[k:], x, of_variance[:, k:] @ variance[k:], value=2)
        of_log_var = _inward((of_variance.t() @ square).mul_(variance), log_var, ctx.limit)
        return of_x, gradient.t() @ x, of_log_var, gradient.sum(0), None, None


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int) -> Tensor:
        used = log_var.clamp(-limit, limit)
        variance = used.exp()
        ctx.save_for_backward(mean, log_var, variance)
        ctx.precision, ctx.limit, ctx.copies = precision, limit, copies
        second_moment = mean.square().sum().div_(copies).add_(variance.sum())
        constant = log_var.numel() * (1.0 + math.log(precision))
        return second_moment.mul_(precision).sub_(used.sum()).sub_(constant).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        mean, log_var, variance = ctx.saved_tensors
        of_mean = mean * (gradient * (ctx.precision / ctx.copies))
        of_log_var = variance.mul(ctx.precision).sub_(1.0).mul_(0.5 * gradient)
        return of_mean, _inward(of_log_var, log_var, ctx.limit), None, None, None
