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


SMALL = 100_000  # a tensor with at most this many numbers is clamped faster than its extremes are found


def sampled_linear(
    x: Tensor,
    means: Sequence[Tensor],
    log_vars: Sequence[Tensor],
    biases: Sequence[Tensor],
    limit: float,
    precision: float,
    detached_outputs: int = 0,
) -> tuple[Tensor, Tensor]:
    """Evaluate linear layers with weights N(mean, exp(log_var)) on one input as one layer, with their divergence.

    y = x mean^T + bias + sqrt(x^2 exp(log_var)^T) eps, eps a fresh standard normal number for each output (local
    reparameterisation); and KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights.

    Args:
        x: `[B, in]`.
        means: means of each layer's weights, `[out, in]`.
        log_vars: log-variances of each layer's weights, `[out, in]`, clamped to +-limit before use; see
            `clamp_with_inward_gradient` for their gradient outside the limits.
        biases: biases of each layer, `[out]`.
        limit: largest absolute value of a log-variance.
        precision: 1 / variance of the prior, > 0.
        detached_outputs: number of leading outputs whose gradient does not reach `x`.

    Returns:
        The outputs `[B, sum of out]`, in autocast's type if autocast is enabled; and the KL divergence, a scalar in
        nats, in the weights' type.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with contextlib.nullcontext() if dtype is None else torch.autocast(device, enabled=False):
        y, kl = _SampledLinear.apply(x, limit, precision, detached_outputs, dtype, *means, *log_vars, *biases)
    return y, kl


def joined_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], detached_outputs: int = 0) -> Tensor:
    """Evaluate linear layers on one input as one layer: y = x weight^T + bias.

    Args:
        x: `[B, in]`.
        weights: weights of each layer, `[out, in]`.
        biases: biases of each layer, `[out]`.
        detached_outputs: number of leading outputs whose gradient does not reach `x`.

    Returns:
        `[B, sum of out]`.
    """
    if not torch.is_grad_enabled():
        return F.linear(
            x, _joined(weights), _joined(biases)
        )  # faster than `_JoinedLinear`, whose backward is not needed
    return _JoinedLinear.apply(x, detached_outputs, *weights, *biases)


def gaussian_kl(mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int = 1) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1 / precision)) summed over weights, a scalar in nats.

    Args:
        mean: means `[*shape]`, or `[copies, *shape]` of several Gaussians with the same variances.
        log_var: log-variances `[*shape]`, clamped to +-limit before use.
        precision: 1 / variance of the prior, > 0.
        limit: largest absolute value of a log-variance.
        copies: number of Gaussians, whose divergences are averaged.
    """
    return _GaussianKL.apply(mean, log_var, precision, limit, copies)


def standard_normal(like: Tensor) -> Tensor:
    """Return standard normal numbers with the shape, type and device of `like`.

    `randn_like` would place the numbers in the order of the strides, and a compiler may choose other strides.
    """
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def add_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """Return a fresh Gaussian draw of every entry.

    Args:
        mean: means of the Gaussians, any shape.
        variance: variances, of the shape of `mean`, >= 0. `VARIANCE_FLOOR` is added, because the gradient of the
            square root is infinite at 0.
    """
    return torch.addcmul(mean, (variance + VARIANCE_FLOOR).sqrt(), standard_normal(mean))


def _kl(mean: Tensor, log_var: Tensor, variance: Tensor, precision: float, copies: int = 1) -> Tensor:
    """Return the divergence, from clamped log-variances and their exponentials.

    No operation changes the returned tensor in place. If one does, torch 2.11 compiles a `Function` whose gradients are
    zero.
    """
    flat = mean.flatten()
    total = variance.sum().sub_(log_var.sum(), alpha=1 / precision).add_(flat.dot(flat), alpha=1 / copies)
    return total.mul_(0.5 * precision) - 0.5 * log_var.numel() * (1.0 + math.log(precision))


def _clamped(log_var: Tensor, limit: float) -> Tensor:
    """Clamp to +-limit.

    On a CPU, a large tensor within the limits is returned itself, without a copy. On a GPU this test would wait for
    the device.
    """
    if log_var.device.type == "cpu" and log_var.numel() > SMALL:
        low, high = log_var.aminmax()
        if -limit <= low and high <= limit:
            return log_var
    return log_var.clamp(-limit, limit)


def _inward(gradient: Tensor, log_var: Tensor, clamped: Tensor) -> Tensor:
    """Clear gradients by which descent would lead further out of the limits: positive below, negative above."""
    return gradient.masked_fill_((log_var - clamped).mul_(gradient) < 0, 0.0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _SampledLinear(torch.autograd.Function):
    """Outputs and KL divergence of `sampled_linear`. `grad_z` is the gradient of the loss by z."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        limit: float,
        precision: float,
        detached_outputs: int,
        autocast_dtype: torch.dtype | None,
        *parts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # The layers are concatenated here: autograd's own splitting of gradients takes a fifth of a small update.
        n = len(parts) // 3
        mean, log_var, bias = (_joined(parts[i : i + n]) for i in (0, n, 2 * n))
        ctx.sizes = [len(part) for part in parts[:n]]
        dtype = autocast_dtype or x.dtype
        ctx.x_dtype, x = x.dtype, x.to(dtype)
        clamped, x_squared = _clamped(log_var, limit), x.square()
        variance = clamped.exp()
        cast_mean, cast_variance = mean.to(dtype), variance.to(dtype)
        std = (x_squared @ cast_variance.t()).add_(VARIANCE_FLOOR).sqrt_()
        noise = standard_normal(std)
        ctx.within_limits = clamped is log_var  # `backward` cannot test it: saved tensors come back as other objects
        ctx.save_for_backward(x, x_squared, mean, log_var, clamped, variance, cast_mean, cast_variance, std, noise)
        ctx.precision, ctx.detached_outputs = precision, detached_outputs
        y = torch.addcmul(torch.addmm(bias.to(dtype), x, cast_mean.t()), std, noise)  # not in place: see `_kl`
        return y, _kl(mean, clamped, variance, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_kl: Tensor) -> Any:
        x, x_squared, mean, log_var, clamped, variance, cast_mean, cast_variance, std, noise = ctx.saved_tensors
        twice_grad_output_variance = (grad_y * noise).div_(std)
        grad_x = None
        if ctx.needs_input_grad[0]:
            k = ctx.detached_outputs
            grad_x = torch.addcmul(
                grad_y[:, k:] @ cast_mean[k:], x, twice_grad_output_variance[:, k:] @ cast_variance[k:]
            )
            grad_x = grad_x.to(ctx.x_dtype)
        half_precision = 0.5 * ctx.precision * grad_kl
        # The operations work in place, because a pass over memory takes as long as a product.
        grad_mean = (grad_y.t() @ x).to(mean.dtype).addcmul_(mean, 2 * half_precision)
        grad_output_variance = twice_grad_output_variance.mul_(0.5)
        grad_log_var = (grad_output_variance.t() @ x_squared).to(mean.dtype).add_(half_precision)
        grad_log_var = grad_log_var.mul_(variance).sub_(0.5 * grad_kl)
        grad_log_var = grad_log_var if ctx.within_limits else _inward(grad_log_var, log_var, clamped)
        gradients = grad_mean, grad_log_var, grad_y.sum(0).to(mean.dtype)
        return grad_x, None, None, None, None, *(part for joined in gradients for part in joined.split(ctx.sizes))


class _JoinedLinear(torch.autograd.Function):
    """Outputs of `joined_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, detached_outputs: int, *parts: Tensor) -> Tensor:
        n = len(parts) // 2
        weight, bias = _joined(parts[:n]), _joined(parts[n:])
        ctx.sizes, ctx.detached_outputs = [len(part) for part in parts[:n]], detached_outputs
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        k = ctx.detached_outputs
        grad_x = grad_y[:, k:] @ weight[k:] if ctx.needs_input_grad[0] else None
        gradients = grad_y.t() @ x, grad_y.sum(0)
        return grad_x, None, *(part for joined in gradients for part in joined.split(ctx.sizes))


class _GaussianKL(torch.autograd.Function):
    """KL divergence of `gaussian_kl`."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, precision: float, limit: float, copies: int) -> Tensor:
        clamped = _clamped(log_var, limit)
        variance = clamped.exp()
        ctx.within_limits = clamped is log_var
        ctx.save_for_backward(mean, log_var, clamped, variance)
        ctx.precision, ctx.copies = precision, copies
        return _kl(mean, clamped, variance, precision, copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_kl: Tensor) -> Any:
        mean, log_var, clamped, variance = ctx.saved_tensors
        grad_mean = mean * (grad_kl * (ctx.precision / ctx.copies))
        grad_log_var = variance.mul(ctx.precision).sub_(1.0).mul_(0.5 * grad_kl)
        grad_log_var = grad_log_var if ctx.within_limits else _inward(grad_log_var, log_var, clamped)
        return grad_mean, grad_log_var, None, None, None


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
