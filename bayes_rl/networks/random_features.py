"""Fixed random features of observations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bayes.layers import linear
from bayes_rl.utils.ranks import average_over_ranks, num_ranks

LARGEST_SIDE = 24
"""Images with a longer side are averaged over squares first: a feature of every pixel would cost as much as a trunk."""
SMALLEST_VARIANCE = {"image": 0.01, "vector": 1e-4}
"""Smallest variance of a component, as a share of the mean variance. Without it, a component that never changed would
have a unit of 0. All pixels have one range, but the components of a vector may have very different ones."""


class RandomFourierFeatures(nn.Module):
    """Random Fourier features sqrt(2 / m) cos(W x + b) of arrays (Rahimi and Recht 2007).

    W is normal and b uniform. The inner product of the features of x and y approximates the Gaussian kernel
    exp(-|x - y|^2 / (2 length_scale^2)), so that features of length 1 on average are alike where states are close.

    Each component has a unit of its own, such that components vary alike, and two random states of the replay have a
    mean squared distance of 2. What never changed in the replay moves a state far away when it changes. `measure`
    chooses the units.

    Args:
        observation_shape: shape of one observation, channels first for images.
        count: m, the number of features, >= 1.
        length_scale: distance at which the kernel is exp(-1/2) = 0.61, > 0.

    Attributes:
        inverse_unit: reciprocal of the unit of each component, `[inputs]`.
    """

    inverse_unit: Tensor

    def __init__(self, observation_shape: tuple[int, ...], count: int, length_scale: float) -> None:
        super().__init__()
        is_image = len(observation_shape) == 3
        self.pooling = math.ceil(max(observation_shape[1:]) / LARGEST_SIDE) if is_image else 1
        # A side that is shorter than the square becomes one mean.
        self.square = [min(self.pooling, side) for side in observation_shape[1:]]
        sides = [side // length for side, length in zip(observation_shape[1:], self.square, strict=True)]
        inputs = math.prod([observation_shape[0], *sides])
        self.weight = nn.Parameter(torch.randn(count, inputs) / length_scale, requires_grad=False)
        self.phase = nn.Parameter(2 * math.pi * torch.rand(count), requires_grad=False)
        self._smallest_variance = SMALLEST_VARIANCE["image" if is_image else "vector"]
        self.register_buffer("inverse_unit", torch.ones(inputs))

    def _inputs(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.pooling > 1:  # by a convolution, which is faster than torch's pooling where channels are last
            channels = x.shape[1]
            kernel = x.new_full((channels, 1, *self.square), 1 / math.prod(self.square))
            x = F.conv2d(x, kernel, stride=self.square, groups=channels)
        return x.flatten(1)

    @torch.no_grad()
    def measure(self, states: Sequence[Tensor]) -> None:
        """Choose the units. The states of all ranks are one sample.

        Args:
            states: observations of this rank that `TwinActorCritic.prepare` returned, `[B, ...]` each. Every rank has
                two or more observations, and as many as the others.
        """
        with torch.autocast(self.inverse_unit.device.type, enabled=False):
            variance = variance_over_ranks(torch.cat([self._inputs(x) for x in states]))
        # Equal states have no distance: differences of rounding must not become features.
        variance = torch.where(variance.sum() > 1e-12, variance, 1 / len(variance))
        inverse_unit = variance.maximum(self._smallest_variance * variance.mean()).rsqrt()
        self.inverse_unit.copy_(inverse_unit / (variance * inverse_unit.square()).sum().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Return the features: `[B, ...]` that `TwinActorCritic.prepare` returned, to `[B, m]` float32."""
        with torch.autocast(x.device.type, enabled=False):
            phases = linear(self._inputs(x) * self.inverse_unit, self.weight, self.phase)
            return math.sqrt(2 / len(self.weight)) * phases.cos()


def variance_over_ranks(x: Tensor) -> Tensor:
    """Return the unbiased variance of each column, over the rows of all ranks.

    With n rows on each of R ranks, whose variances have the mean V and whose means have the biased variance B, it is
    ((n - 1) R V + n R B) / (n R - 1). For one rank it has the bits of `Tensor.var`.

    Args:
        x: `[n, columns]`, n >= 2, of as many rows on all ranks.
    """
    ranks, rows = num_ranks(), num_ranks() * len(x)
    variance, mean = torch.var_mean(x, 0)
    within, middle = average_over_ranks(variance, mean)
    (between,) = average_over_ranks((mean - middle).square())
    return within + (rows * between - (ranks - 1) * within) / (rows - 1)
