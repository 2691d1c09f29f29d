"""Variational Bayesian layers, and the KL divergence of any module that has some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.fused import sampled_linear
from bayes_rl.layers import BayesLayer, Moments, half_log_det, joint_moments
from bayes_rl.posterior import Variational, Weights

__all__ = [
    "BayesConv2d",
    "BayesLayer",
    "BayesLinear",
    "Moments",
    "bayesian_layers",
    "joint_forward",
    "joint_kl",
    "joint_moments",
    "kl_divergence",
    "linear",
]


class BayesLinear(BayesLayer):
    """Linear layer y = x W^T + b with weights `[out, in]`; integer x `[..., 1]` stands for its one-hot vector."""

    def __init__(self, in_features: int, out_features: int, settings: Variational | None = None) -> None:
        super().__init__((out_features, in_features), settings or Variational())

    def evaluate(self, x: Tensor, weights: Weights, m: Moments, blocked: int = 0) -> Tensor:
        """The forward pass by given moments; so many of the first outputs have no gradient with respect to `x`."""
        plain = x.is_floating_point() and x.ndim == 2
        if weights == "sample" and self.settings.posterior == "mean_field" and plain:
            precision = self.settings.prior_precision
            y, kl = sampled_linear(x, m.means, m.raws, m.biases, m.limit, precision, blocked)
            if self.settings.prior == "gaussian" and m.prior is None:
                m.kl = kl
            return y
        if not blocked:
            return super().evaluate(x, weights, m)
        parts = zip((x.detach(), x), m.split([blocked, m.bias.shape[-1] - blocked]), strict=True)
        return torch.cat([super(BayesLinear, self).evaluate(f, weights, part) for f, part in parts], -1)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not x.is_floating_point():
            draw = torch.arange(len(weight), device=x.device)[:, None]
            y = weight[draw, :, x[..., 0].long()] if len(x) > 1 else weight[:, :, x[0, :, 0].long()].transpose(1, 2)
        else:
            y = x @ weight.transpose(1, 2)
        return y if bias is None else y + bias[:, None]


class BayesConv2d(BayesLayer):
    """Convolution of images `[B, C, H, W]` with weights `[out, in, kernel, kernel]`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        settings: Variational | None = None,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), settings or Variational())
        self.stride, self.padding = stride, padding

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(weight) == 1:  # one weight for all draws
            y = self.product(x.flatten(0, 1), weight[0], None).unflatten(0, x.shape[:2])
        elif len(x) == 1:  # one image for all draws: the draws are so many output channels
            y = self.product(x[0], weight.flatten(0, 1), None).unflatten(1, weight.shape[:2]).transpose(0, 1)
        else:  # each draw is a group of channels
            images = x.transpose(0, 1).flatten(1, 2)
            y = F.conv2d(images, weight.flatten(0, 1), None, self.stride, self.padding, 1, len(weight))
            y = y.unflatten(1, weight.shape[:2]).transpose(0, 1)
        return y if bias is None else y + bias[:, None, :, None, None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b; an integer x `[..., 1]` is the place of the one in a one-hot vector."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    column = F.embedding(x[..., 0].long(), weight.t())
    return column if bias is None else column + bias


def joint_forward(layers: Sequence[BayesLinear], x: Tensor, weights: Weights) -> list[Tensor]:
    """Several layers of equal settings on the same input, by one matrix product; each one's output."""
    sizes = [len(layer.weight_log_var) for layer in layers]
    return list(layers[0].evaluate(x, weights, joint_moments(layers, weights)).split(sizes, -1))


def bayesian_layers(module: nn.Module) -> dict[str, BayesLayer]:
    """All variational layers in the tree below `module` by name, in registration order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BayesLayer)}


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q || prior) of the tree below `module`: a scalar in nats, summed over layers, 0 without any."""
    return joint_kl(bayesian_layers(module).values())


def joint_kl(layers: Iterable[BayesLayer], known: Iterable[tuple[BayesLayer, Moments]] = ()) -> Tensor:
    """KL(q || prior) of all `layers` jointly: a scalar in nats.

    `low_rank` layers share their index, so that their determinant is taken jointly: the whole exceeds the sum of the
    layers' own divergences by what they tell about each other.

    Args:
        layers: in any number and of any settings.
        known: more layers, or groups of equal ones by their first, with their moments.
    """
    groups: dict[Any, list[BayesLayer]] = {}
    for layer in layers:  # linear layers of equal inputs at once: many small operations take longer than few
        alone = not isinstance(layer, BayesLinear)
        groups.setdefault((layer.settings, layer.weight_mu.shape[-1], id(layer) if alone else 0), []).append(layer)
    parts = [layer.kl_terms(moments) for layer, moments in known]
    parts += [group[0].kl_terms(joint_moments(group)) for group in groups.values()]
    if not parts:
        return torch.zeros(())
    total = torch.stack([part for part, _ in parts]).sum() if len(parts) > 1 else parts[0][0]
    grams = [gram for _, gram in parts if gram is not None]
    return total - half_log_det(torch.stack(grams).sum(0)) if grams else total
