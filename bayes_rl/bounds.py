"""Clamping parameters so that they can come back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """`x` clamped to [low, high], with a gradient that vanishes only where descent would lead further out.

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
