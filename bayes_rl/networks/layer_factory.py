"""Factory of layers: plain or Bayesian ones, with or without gains for each task."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.layers import BayesConv2d, BayesLayer, BayesLinear, linear
from bayes_rl.bayes.posteriors import MeanField, PosteriorFamily, make_family
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import check, check_choice
from bayes_rl.networks.overlap import Convolution, Linear

BAYESIAN = ("gaussian_process", "heads", "trunk", "all", "none")


PLAIN = ("gaussian_process", "none")
"""Values of `network.bayesian` with which no layer has a distribution over its weights."""


ACTIVATIONS = ("relu", "leaky_relu")


LEAK = 0.2  # slope of a leaky rectifier below zero


FEW_PLANES = 8  # images with more channels are rearranged faster by torch's own copy


class BayesianModule(nn.Module):
    """Module whose `forward(x, weight_mode)` passes the mode on to its Bayesian layers."""


def apply(module: nn.Module, x: Tensor, weight_mode: WeightMode) -> Tensor:
    """Evaluate any module on `x`. A plain layer, which has no draws, flattens the axis of draws into the batch.

    Args:
        module: Bayesian or plain module.
        x: `[B, ...]`; with `Draws`, `[D or 1, B, ...]`.
        weight_mode: how Bayesian layers treat their distributions over weights.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            x = apply(part, x, weight_mode)
        return x
    if isinstance(module, BayesLayer | BayesianModule):
        return module(x, weight_mode)
    if isinstance(weight_mode, Draws):
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return module(x)


class OneHotLinear(nn.Linear):
    """Table of features of integers `[..., 1]`, in the form of a linear layer on their one-hot vectors.

    The features are drawn with unit variance. The weight `[out, in]` is the transpose of a table `[in, out]` that is
    contiguous in memory, so that neither a lookup nor its gradient has to copy a transposed table.
    """

    def reset_parameters(self) -> None:
        """Draw features of unit variance."""
        self.weight = nn.Parameter(torch.randn(self.in_features, self.out_features).t())
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of integers `[..., 1]`."""
        return linear(x, self.weight, self.bias)


class TaskAffine(BayesianModule):
    """Layer whose outputs are multiplied by a gain and shifted by a bias of the task (Kirkpatrick et al. 2017).

    Args:
        layer: any layer.
        features: number of the layer's outputs, or of the channels of its outputs.
        num_tasks: T.
        dimensions: number of axes behind the channels: 0 for vectors, 2 for images.

    Attributes:
        task: number of the task whose gains and biases are used.
    """

    def __init__(self, layer: nn.Module, features: int, num_tasks: int, dimensions: int = 0) -> None:
        super().__init__()
        shape = (features, *[1] * dimensions)
        self.layer, self.task = layer, 0
        # Each task has separate tensors. Those of other tasks have no gradient, so that Adam does not move them; rows
        # of one tensor would have a gradient of zero and move by Adam's momentum.
        self.gain = nn.ParameterList(torch.ones(shape) for _ in range(num_tasks))
        self.shift = nn.ParameterList(torch.zeros(shape) for _ in range(num_tasks))

    def forward(self, x: Tensor, weight_mode: WeightMode = "mean") -> Tensor:
        """Return the layer's outputs with the gains and biases of the current task."""
        return apply(self.layer, x, weight_mode) * self.gain[self.task] + self.shift[self.task]


@dataclass(frozen=True)
class LayerFactory:
    """Factory of layers, some of them Bayesian.

    Args:
        settings: settings of the posterior of the Bayesian layers.
        bayesian: which layers are Bayesian: the output `heads`, the `trunk` below them, `all` or `none`; with
            `gaussian_process` the layers are plain.
        categories: number of values of an integer observation, 0 if observations are arrays.
        num_tasks: T.
        conditioning: how networks depend on the task: `none`, `gains` of every layer of the trunk, or `heads`.
        activation: `relu`, or `leaky_relu`, whose inactive units still have a derivative. With `relu`, the Fisher
            information of the weights into an inactive unit is 0, so that EWC lets a later task activate the unit.
        sequential: whether each Bayesian weight has its own Gaussian prior, for variational continual learning.
        width: multiple of the numbers of channels of the encoder's convolutions, > 0.
    """

    settings: PosteriorSettings
    bayesian: str = "heads"
    categories: int = 0
    num_tasks: int = 1
    conditioning: str = "none"
    activation: str = "relu"
    sequential: bool = False
    width: float = 1.0

    def __post_init__(self) -> None:
        check_choice("model.network.bayesian", self.bayesian, BAYESIAN)
        check_choice("model.network.activation", self.activation, ACTIVATIONS)

    @property
    def family(self) -> PosteriorFamily:
        """Posterior family of the layers; without Bayesian layers the mean field, whose draws have no index."""
        return MeanField(self.settings) if self.bayesian in PLAIN else make_family(self.settings, self.sequential)

    def channels(self, count: int) -> int:
        """Return `width` times a number of channels, rounded, at least 1."""
        return max(1, round(self.width * count))

    def rectifier(self, inplace: bool = True) -> nn.Module:
        """Return the nonlinearity.

        Args:
            inplace: whether the nonlinearity may overwrite its input, which is then not used again. Families whose
                draws have an index ignore it: their layers return views, and autograd copies an overwritten view.
        """
        inplace = inplace and not self.family.index_size
        return nn.ReLU(inplace) if self.activation == "relu" else nn.LeakyReLU(LEAK, inplace)

    def linear(self, in_features: int, out_features: int, head: bool = False) -> nn.Module:
        """Return a linear layer of the trunk.

        Args:
            in_features: number of inputs.
            out_features: number of outputs.
            head: whether the layer is Bayesian with the heads instead of with the trunk.
        """
        return self._gained(self.output(in_features, out_features, head), out_features)

    def output(self, in_features: int, out_features: int, head: bool = True) -> nn.Module:
        """Return a linear layer of the heads, which has no gains."""
        if self.bayesian in ("all", "heads" if head else "trunk"):
            return BayesLinear(in_features, out_features, self.settings, self.sequential)
        return Linear(in_features, out_features)

    def _gained(self, layer: nn.Module, features: int, dimensions: int = 0) -> nn.Module:
        return TaskAffine(layer, features, self.num_tasks, dimensions) if self.conditioning == "gains" else layer

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> nn.Module:
        """Return a convolution, part of the trunk."""
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        bayesian = self.bayesian in ("all", "trunk")
        layer = BayesConv2d(*shape, self.settings, self.sequential) if bayesian else Convolution(*shape)
        return self._gained(layer, out_channels, 2)

    def first(self, shape: tuple[int, ...], out_features: int) -> nn.Module:
        """Return the first layer of an MLP: on flattened arrays, or on the one-hot vector of an integer."""
        if not self.categories:
            return self.linear(math.prod(shape), out_features)
        check(shape == (1,), "data.frame_stack", shape[0], "must be 1 where observations are single integers")
        if self.bayesian in ("all", "trunk"):
            scale = replace(self.settings, init_scale=self.settings.init_scale * math.sqrt(3 * self.categories))
            layer = BayesLinear(self.categories, out_features, scale, self.sequential)
            nn.init.zeros_(layer.bias)  # like that of `OneHotLinear`
            return self._gained(layer, out_features)
        return self._gained(OneHotLinear(self.categories, out_features), out_features)


def channels_last(images: Tensor) -> Tensor:
    """Rearrange bytes `[B, C, H, W]` to channels last in memory.

    Up to `FEW_PLANES` channels are stacked one by one, which is twice as fast as torch's own copy.
    """
    if images.shape[1] > FEW_PLANES:
        return images.contiguous(memory_format=torch.channels_last)
    return torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)
