"""Backward pass of an encoder on two threads: gradients of weights beside those of activations.

The backward pass goes from layer to layer by the gradients of their inputs. The gradients of the weights, half of its
work, are ends: no other gradient needs them. `SIDE_THREAD` computes them meanwhile, by the operations of torch's own
backward pass, so that all gradients keep their bits.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bayes_rl.bayes.draws import WeightMode
from bayes_rl.utils.side_thread import SIDE_THREAD, Work

Gradients = list[tuple[tuple[int, ...], "Work[tuple[Tensor, ...]]"]]
"""Parameters of a layer, by `id`, and the work that computes their gradients."""


class _ThisThread(threading.local):
    """List of each thread, to which a forward pass adds work for its backward pass.

    None means that torch's own backward pass is used.
    """

    gradients: Gradients | None = None


_THREAD = _ThisThread()


def evaluate(encoder: nn.Module, x: Tensor, weight_mode: WeightMode) -> Tensor:
    """Return the features of an encoder, with the backward pass of this file where it pays.

    Args:
        encoder: encoder without Bayesian layers.
        x: observations that `TwinActorCritic.prepare` returned.
        weight_mode: passed on to the encoder.
    """
    parameters = [p for p in encoder.parameters() if p.requires_grad] if _pays(x) else []
    if not parameters:
        features: Tensor = encoder(x, weight_mode)
        return features
    features = _Encoder.apply(encoder, x, weight_mode, *parameters)
    return features


def _pays(x: Tensor) -> bool:
    """Return whether there will be a backward pass by torch's engine on this processor, and a core for the thread."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.is_cuda or x.requires_grad:
        return False
    if torch.is_autocast_enabled("cpu") or torch._C._functorch.maybe_current_level() is not None:
        return False
    return SIDE_THREAD.has_core()


class _Encoder(torch.autograd.Function):
    """Features of an encoder, whose own graph is inside."""

    @staticmethod
    def forward(ctx: Any, encoder: nn.Module, x: Tensor, weight_mode: WeightMode, *parameters: Tensor) -> Tensor:
        ctx.gradients = _THREAD.gradients = []
        try:
            with torch.enable_grad():
                ctx.features = encoder(x, weight_mode)
        finally:
            _THREAD.gradients = None
        ctx.parameters = parameters
        features: Tensor = ctx.features.detach()
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_features: Tensor) -> Any:
        ctx.gradients.clear()  # a backward pass that failed may have left work
        # The inner graph is retained, because the caller may retain the outer graph and run its backward pass again.
        found = torch.autograd.grad(ctx.features, ctx.parameters, grad_features, retain_graph=True, allow_unused=True)
        gradients = dict(zip(map(id, ctx.parameters), found, strict=True))
        # The newest work first, because this thread does what the other one has not begun.
        for keys, work in reversed(ctx.gradients):
            for key, gradient in zip(keys, work.result(), strict=True):
                earlier = gradients[key]
                gradients[key] = gradient if earlier is None else earlier + gradient
        ctx.gradients.clear()
        return None, None, None, *gradients.values()


def _both_learn(layer: nn.Conv2d | nn.Linear) -> bool:
    """Return whether weights and biases both have gradients, which one piece of work computes."""
    return layer.weight.requires_grad and layer.bias is not None and layer.bias.requires_grad


class Convolution(nn.Conv2d):
    """Convolution whose weights' gradient may be computed by the second thread."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x` `[B, C, H, W]`."""
        if _THREAD.gradients is None or not _both_learn(self) or not self._is_plain:
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight, self.bias, self.stride, self.padding, _THREAD.gradients)
        return y

    @property
    def _is_plain(self) -> bool:
        """True if `_Convolution` has all options of the layer."""
        numbers = self.dilation, self.groups
        return numbers == ((1, 1), 1) and self.padding_mode == "zeros" and not isinstance(self.padding, str)


class _Convolution(torch.autograd.Function):
    """Convolution with the weights' gradient as work of `gradients`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: Any, padding: Any, gradients: Gradients
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keys, ctx.shape, ctx.gradients = (id(weight), id(bias)), (stride, padding), gradients
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.shape

        def gradients(mask: list[bool]) -> tuple[Tensor, ...]:
            shape = [len(weight)], stride, padding, [1, 1], False, [0, 0], 1
            found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(grad_y, x, weight, *shape, mask)
            return found

        ctx.gradients.append((ctx.keys, SIDE_THREAD.begin(lambda: gradients([False, True, True])[1:])))
        grad_x = gradients([True, False, False])[0] if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None, None


class Linear(nn.Linear):
    """Linear layer whose weights' gradient may be computed by the second thread."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for `x` `[B, in_features]`."""
        if _THREAD.gradients is None or not _both_learn(self) or x.ndim != 2:
            return super().forward(x)
        y: Tensor = _Linear.apply(x, self.weight, self.bias, _THREAD.gradients)
        return y


class _Linear(torch.autograd.Function):
    """Linear layer with the weights' gradient as work of `gradients`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gradients: Gradients) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keys, ctx.gradients = (id(weight), id(bias)), gradients
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        ctx.gradients.append((ctx.keys, SIDE_THREAD.begin(lambda: (grad_y.t() @ x, grad_y.sum(0)))))
        grad_x = grad_y @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None
