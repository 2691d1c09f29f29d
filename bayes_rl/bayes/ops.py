"""Operations whose gradient is written by hand; the tests compare them with plain autograd."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

VARIANCE_FLOOR = 1e-8


SMALL = 100_000  # numbers up to which clamping is faster than a look at the extremes


def sampled_linear(
    x: Tensor,
    means: Sequence[Tensor],
    log_vars: Sequence[Tensor],
    biases: Sequence[Tensor],
    limit: float,
    precision: float,
    blocked: int = 0,
) -> tuple[Tensor, Tensor]:
    """Evaluate linear layers with weights N(mean, exp(log_var)) on one input as one layer, with their divergence.

    y = x mean^T + bias + sqrt(x^2 exp(log_var)^T) eps, eps a fresh standard normal number for each output (local
    reparameterisation); and KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights.

    Args:
        x: `[B, in]`.
        means: of each layer, `[out, in]`.
        log_vars: likewise, used clamped to +-limit; see `clamp_with_inward_gradient` for their gradient outside.
        biases: `[out]` each.
        limit: of log-variances.
        precision: of the prior, > 0.
        blocked: number of leading outputs that pass no gradient on to `x`.

    Returns:
        `[B, sum of out]`, of autocast's type where that is in force, and a scalar in nats, of the weights' type.
    """
    kind = x.device.type
    reduced = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False) if reduced else contextlib.nullcontext():
        y, kl = _SampledLinear.apply(x, limit, precision, blocked, reduced, *means, *log_vars, *biases)
    return y, kl


def joined_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], blocked: int = 0) -> Tensor:
    """Evaluate linear layers on one input as one layer: y = x weight^T + bias.

    Args:
        x: `[B, in]`.
        weights: of each layer, `[out, in]`.
        biases: `[out]` each.
        blocked: number of leading outputs that pass no gradient on to `x`.

    Returns:
        `[B, sum of out]`.
    """
    if not torch.is_grad_enabled():
        return F.linear(x, _joined(weights), _joined(biases))  # a Function takes longer than the product
    return _JoinedLinear.apply(x, blocked, *weights, *biases)


def gaussian_kl(mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int = 1) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights, a scalar in nats.

    Args:
        mean: `[*shape]`, or `[copies, *shape]` for as many Gaussians of one variance, whose divergence is averaged.
        log_var: `[*shape]`, used clamped to +-limit.
        precision: of the prior, > 0.
        limit: of log-variances.
        copies: number of Gaussians.
    """
    return _GaussianKL.apply(mean, log_var, precision, limit, copies)


def standard_normal(like: Tensor) -> Tensor:
    """Return standard normal numbers with the shape, type and device of `like`.

    Not `randn_like`: which number goes where would depend on strides, and a compiler chooses others.
    """
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def add_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """Return a fresh Gaussian draw of every entry.

    Args:
        mean: any shape.
        variance: of the same shape, >= 0. A floor keeps the gradient of its root finite.
    """
    return torch.addcmul(mean, (variance + VARIANCE_FLOOR).sqrt(), standard_normal(mean))


def _kl(mean: Tensor, used: Tensor, variance: Tensor, precision: float, copies: int = 1) -> Tensor:
    """Return the divergence, by clamped log-variances and their exponentials."""
    flat = mean.flatten()
    total = variance.sum().sub_(used.sum(), alpha=1 / precision).add_(flat.dot(flat), alpha=1 / copies)
    return total.mul_(0.5 * precision).sub_(0.5 * used.numel() * (1.0 + math.log(precision)))


def _clamped(log_var: Tensor, limit: float) -> Tensor:
    """Clamp to the limits. On a CPU, which needs no waiting, a tensor within the limits is returned itself."""
    if log_var.device.type == "cpu" and log_var.numel() > SMALL:
        low, high = log_var.aminmax()
        if -limit <= low and high <= limit:
            return log_var
    return log_var.clamp(-limit, limit)


def _inward(gradient: Tensor, log_var: Tensor, used: Tensor) -> Tensor:
    """Clear gradients that lead further out of the limits: positive ones below, negative ones above."""
    return gradient.masked_fill_((log_var - used).mul_(gradient) < 0, 0.0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _SampledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, limit: float, precision: float, blocked: int, reduced: torch.dtype | None, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Joined here and not before: autograd's own splitting of gradients takes a fifth of a small update.
        n = len(parts) // 3
        mean, log_var, bias = (_joined(parts[i : i + n]) for i in (0, n, 2 * n))
        ctx.sizes = [len(part) for part in parts[:n]]
        dtype = reduced or x.dtype
        ctx.dtype, x = x.dtype, x.to(dtype)
        used, square = _clamped(log_var, limit), x.square()
        variance = used.exp()
        mean_used, variance_used = mean.to(dtype), variance.to(dtype)
        std = (square @ variance_used.t()).add_(VARIANCE_FLOOR).sqrt_()
        noise = standard_normal(std)
        ctx.same = used is log_var  # what is saved comes back as another object
        ctx.save_for_backward(x, square, mean, log_var, used, variance, mean_used, variance_used, std, noise)
        ctx.precision, ctx.blocked = precision, blocked
        y = torch.addmm(bias.to(dtype), x, mean_used.t()).addcmul_(std, noise)
        return y, _kl(mean, used, variance, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_kl: Tensor) -> Any:
        x, square, mean, log_var, used, variance, mean_used, variance_used, std, noise = ctx.saved_tensors
        of_variance = (gradient * noise).div_(std)  # twice that
        of_x = None
        if ctx.needs_input_grad[0]:
            k = ctx.blocked
            of_x = torch.addcmul(gradient[:, k:] @ mean_used[k:], x, of_variance[:, k:] @ variance_used[k:])
            of_x = of_x.to(ctx.dtype)
        of_moment = 0.5 * ctx.precision * of_kl
        # In place, each pass over memory being as long as a product.
        of_mean = (gradient.t() @ x).to(mean.dtype).addcmul_(mean, 2 * of_moment)
        of_log_var = (of_variance.mul_(0.5).t() @ square).to(mean.dtype).add_(of_moment)
        of_log_var = of_log_var.mul_(variance).sub_(0.5 * of_kl)
        of_log_var = of_log_var if ctx.same else _inward(of_log_var, log_var, used)
        of_parts = of_mean, of_log_var, gradient.sum(0).to(mean.dtype)
        return of_x, None, None, None, None, *(part for whole in of_parts for part in whole.split(ctx.sizes))


class _JoinedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocked: int, *parts: Tensor) -> Tensor:
        n = len(parts) // 2
        weight, bias = _joined(parts[:n]), _joined(parts[n:])
        ctx.sizes, ctx.blocked = [len(part) for part in parts[:n]], blocked
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x = gradient[:, ctx.blocked :] @ weight[ctx.blocked :] if ctx.needs_input_grad[0] else None
        of_parts = gradient.t() @ x, gradient.sum(0)
        return of_x, None, *(part for whole in of_parts for part in whole.split(ctx.sizes))


class _GaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int) -> Tensor:
        used = _clamped(log_var, limit)
        variance = used.exp()
        ctx.same = used is log_var
        ctx.save_for_backward(mean, log_var, used, variance)
        ctx.precision, ctx.copies = precision, copies
        return _kl(mean, used, variance, precision, copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        mean, log_var, used, variance = ctx.saved_tensors
        of_mean = mean * (gradient * (ctx.precision / ctx.copies))
        of_log_var = variance.mul(ctx.precision).sub_(1.0).mul_(0.5 * gradient)
        return of_mean, of_log_var if ctx.same else _inward(of_log_var, log_var, used), None, None, None


def clamp_with_inward_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp `x` to [low, high], with a gradient that vanishes only where descent would lead further out.

    A plain clamp has no gradient outside at all: noise that shrank while every return was 0 could never grow again.
    The rule is that of the lower bound in Balle et al.'s compression library.
    """
    return _Bound.apply(x, low, high)


class _Bound(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x < ctx.low) & (gradient > 0)) | ((x > ctx.high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None
