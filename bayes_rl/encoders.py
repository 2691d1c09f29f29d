"""Encoders from observations to features; every layer of them can be Bayesian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bayes_rl.bayes import BayesConv2d, BayesLayer, BayesLinear, linear
from bayes_rl.posterior import Draws, Variational, Weights
from bayes_rl.types import ConfigError, check, check_choice

BAYESIAN = ("heads", "trunk", "all", "none")
ACTIVATIONS = ("relu", "leaky_relu")
LEAK = 0.2  # slope of a leaky rectifier below zero
FEW_PLANES = 8  # more are rearranged faster by torch's own copy


class Weighted(nn.Module):
    """A module whose `forward(x, weights)` hands `weights` on to the Bayesian layers inside."""


class Encoder(Weighted):
    """Observation `[B, *observation_shape]` to features `[B, out_features]`; with `Draws` both have one more axis, in
    front, of length D (or 1 where nothing differs between draws).
    """

    out_features: int


def apply(module: nn.Module, x: Tensor, weights: Weights) -> Tensor:
    """Pass `x` through any module, plain layers once for all draws."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = apply(part, x, weights)
        return x
    if isinstance(module, BayesLayer | Weighted):
        return module(x, weights)
    if isinstance(weights, Draws):
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return module(x)


class OneHotLinear(nn.Linear):
    """Linear layer on the one-hot vector of an integer `[..., 1]`: a table of features, each of unit variance."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Gained(Weighted):
    """A layer whose outputs have a gain and a bias of their own for each task (Kirkpatrick et al. 2017).

    Args:
        layer: any.
        features: outputs, or channels of its outputs.
        num_tasks: T.
        dimensions: axes behind the channels.

    Attributes:
        task: whose gains and biases are used.
    """

    def __init__(self, layer: nn.Module, features: int, num_tasks: int, dimensions: int = 0) -> None:
        super().__init__()
        shape = (features, *[1] * dimensions)
        self.layer, self.task = layer, 0
        # Tensors of their own, not rows of one: those of other tasks have no gradient, so that no momentum moves them.
        self.gain = nn.ParameterList(torch.ones(shape) for _ in range(num_tasks))
        self.shift = nn.ParameterList(torch.zeros(shape) for _ in range(num_tasks))

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        return apply(self.layer, x, weights) * self.gain[self.task] + self.shift[self.task]


@dataclass(frozen=True)
class Layers:
    """Makes layers, Bayesian ones where `bayesian` says so.

    Args:
        settings: of the Bayesian layers.
        bayesian: which are: the output `heads`, the `trunk` below them, `all` or `none`.
        categories: number of values of an integer observation, 0 if observations are arrays.
        num_tasks: T.
        conditioning: what is told of the task: `none`, `gains` of every layer of the trunk, or `heads`.
        activation: `relu`, or `leaky_relu`, whose inactive units still have a derivative: the Fisher information of
            a weight into a unit that is off would be 0, and nothing would keep a later task from switching it on.
    """

    settings: Variational
    bayesian: str = "heads"
    categories: int = 0
    num_tasks: int = 1
    conditioning: str = "none"
    activation: str = "relu"

    def __post_init__(self) -> None:
        check_choice("model.bayesian", self.bayesian, BAYESIAN)
        check_choice("model.activation", self.activation, ACTIVATIONS)

    def rectifier(self, inplace: bool = True) -> nn.Module:
        """The nonlinearity; `inplace` where what goes in is not needed again: what a layer or a norm returns is not.

        Never for draws of whole networks, whose layers return views: autograd copies a view that is written to.
        """
        inplace = inplace and self.settings.posterior == "mean_field"
        return nn.ReLU(inplace) if self.activation == "relu" else nn.LeakyReLU(LEAK, inplace)

    def linear(self, in_features: int, out_features: int, head: bool = False) -> nn.Module:
        """A linear layer of the trunk; Bayesian with the heads if it counts among them."""
        return self._gained(self.output(in_features, out_features, head), out_features)

    def output(self, in_features: int, out_features: int, head: bool = True) -> nn.Module:
        """A linear layer of the heads, which has no gains."""
        if self.bayesian in ("all", "heads" if head else "trunk"):
            return BayesLinear(in_features, out_features, self.settings)
        return nn.Linear(in_features, out_features)

    def _gained(self, layer: nn.Module, features: int, dimensions: int = 0) -> nn.Module:
        return Gained(layer, features, self.num_tasks, dimensions) if self.conditioning == "gains" else layer

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> nn.Module:
        """A convolution, part of the trunk."""
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        layer = BayesConv2d(*shape, self.settings) if self.bayesian in ("all", "trunk") else nn.Conv2d(*shape)
        return self._gained(layer, out_channels, 2)

    def first(self, shape: tuple[int, ...], out_features: int) -> nn.Module:
        """The first layer of an MLP: on flattened arrays, or on the one-hot vector of an integer."""
        if not self.categories:
            return self.linear(math.prod(shape), out_features)
        check(shape == (1,), "data.frame_stack", shape[0], "must be 1 where observations are single integers")
        if self.bayesian in ("all", "trunk"):
            scale = replace(self.settings, init_scale=self.settings.init_scale * math.sqrt(self.categories))
            return self._gained(BayesLinear(self.categories, out_features, scale), out_features)
        return self._gained(OneHotLinear(self.categories, out_features), out_features)


def channels_last(images: Tensor) -> Tensor:
    """Bytes `[B, C, H, W]` with channels last in memory; plane by plane, which for a few of them is twice as fast."""
    if images.shape[1] > FEW_PLANES:
        return images.contiguous(memory_format=torch.channels_last)
    return torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)


def _flat_size(layers: nn.Module, shape: tuple[int, ...], key: str) -> int:
    """Features that `layers` makes of one observation of `shape`; names the encoder if the observation is too small."""
    try:
        with torch.no_grad():
            return apply(layers, torch.zeros(1, *shape), "mean").flatten(1).shape[1]
    except RuntimeError:
        raise ConfigError("model.encoder", key, f"does not fit observations of shape {list(shape)}") from None


def _flatten(x: Tensor, weights: Weights) -> Tensor:
    return x.flatten(2 if isinstance(weights, Draws) else 1)


class PlainEncoder(Encoder):
    """Any stack of layers, flattened, then linear -> LayerNorm -> ReLU."""

    def __init__(self, stack: nn.Module, flat_size: int, hidden_dim: int, layers: Layers) -> None:
        super().__init__()
        self.layers = stack
        self.project = layers.linear(flat_size, hidden_dim)
        self.norm, self.rectifier = nn.LayerNorm(hidden_dim), layers.rectifier()
        self.out_features = hidden_dim

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        features = _flatten(apply(self.layers, x, weights), weights)
        return self.rectifier(self.norm(apply(self.project, features, weights)))


def nature(shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> Encoder:
    """The three convolutions of Mnih et al. (2015), with a LayerNorm after the projection."""
    stack = nn.Sequential(
        layers.conv(shape[0], 32, 8, 4),
        layers.rectifier(),
        layers.conv(32, 64, 4, 2),
        layers.rectifier(),
        layers.conv(64, 64, 3),
        layers.rectifier(),
    )
    return PlainEncoder(stack, _flat_size(stack, shape, "nature"), hidden_dim, layers)


class ResidualBlock(Weighted):
    """x + conv(relu(conv(relu(x)))), 3 x 3, same size."""

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.rectifier, self.inner_rectifier = layers.rectifier(inplace=False), layers.rectifier()
        self.first = layers.conv(channels, channels, 3, padding=1)
        self.second = layers.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        inner = apply(self.first, self.rectifier(x), weights)
        return x + apply(self.second, apply(self.inner_rectifier, inner, weights), weights)


def impala(shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> Encoder:
    """The residual network of IMPALA (Espeholt et al. 2018): 16, 32, 32 channels, two blocks each."""
    stack: list[nn.Module] = []
    channels = shape[0]
    for width in (16, 32, 32):
        stack += [layers.conv(channels, width, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
        stack += [ResidualBlock(width, layers), ResidualBlock(width, layers)]
        channels = width
    whole = nn.Sequential(*stack, layers.rectifier())
    return PlainEncoder(whole, _flat_size(whole, shape, "impala"), hidden_dim, layers)


def minatar(shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> Encoder:
    """One 3x3 convolution with 16 channels, as in the MinAtar paper (Young and Tian 2019)."""
    stack = nn.Sequential(layers.conv(shape[0], 16, 3), layers.rectifier())
    return PlainEncoder(stack, _flat_size(stack, shape, "minatar"), hidden_dim, layers)


def mlp(shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> Encoder:
    """Two layers for vector and integer observations (or anything, flattened)."""
    flat = [] if layers.categories else [nn.Flatten()]
    stack = nn.Sequential(*flat, layers.first(shape, hidden_dim), nn.LayerNorm(hidden_dim), layers.rectifier())
    return PlainEncoder(stack, hidden_dim, hidden_dim, layers)


class PseudoResNet(Encoder):
    """The original system's trunk: an early block skips to the classifier; its linear layers count among the heads.

    With `hidden_dim` 1024 and 84 x 84 input its sizes are those of SEED's table: 64 x 19 x 19, 256 x 17 x 17,
    a pooled skip of 4096 and a pooled third block of 9216 features, two Bayesian layers to 1024 each.

    Deviation: group normalisation over all channels stands where the original has batch normalisation, whose
    batch statistics make acting depend on the other environments.
    """

    def __init__(self, shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> None:
        super().__init__()
        self.block1 = nn.Sequential(
            layers.conv(shape[0], 64, 8, 2), nn.GroupNorm(1, 64), layers.rectifier(), nn.MaxPool2d(2)
        )
        self.block2 = nn.Sequential(layers.conv(64, 256, 3), nn.GroupNorm(1, 256))
        self.block3 = nn.Sequential(layers.conv(256, 1024, 3), nn.GroupNorm(1, 1024), nn.MaxPool2d(4))
        self.pool = nn.MaxPool2d(4)
        early = nn.Sequential(self.block1, self.block2)
        skip_size = _flat_size(nn.Sequential(early, self.pool), shape, "pseudo_resnet")
        deep_size = _flat_size(nn.Sequential(early, self.block3), shape, "pseudo_resnet")
        self.skip = layers.linear(skip_size, hidden_dim, head=True)
        self.deep = layers.linear(deep_size, hidden_dim, head=True)
        self.out_features = 2 * hidden_dim

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        early = apply(self.block2, apply(self.block1, x, weights), weights)
        skip = apply(self.skip, _flatten(apply(self.pool, early, weights), weights), weights)
        deep = torch.sigmoid(apply(self.deep, _flatten(apply(self.block3, early, weights), weights), weights))
        return torch.cat([skip, deep], dim=-1)


Builder = Callable[[tuple[int, ...], int, Layers], Encoder]
ENCODERS: dict[str, Builder] = {
    "pseudo_resnet": PseudoResNet,
    "nature": nature,
    "impala": impala,
    "minatar": minatar,
    "mlp": mlp,
}


def build_encoder(encoder: str, observation_shape: tuple[int, ...], hidden_dim: int, layers: Layers) -> Encoder:
    """The encoder called `encoder`, for observations of `observation_shape` (channels first)."""
    check_choice("model.encoder", encoder, ENCODERS)
    check(hidden_dim > 0, "model.hidden_dim", hidden_dim, "must be a positive number of features")
    if encoder != "mlp" and len(observation_shape) != 3:
        raise ConfigError(
            "model.encoder", encoder, f"needs images, got shape {list(observation_shape)}; nearest: 'mlp'"
        )
    return ENCODERS[encoder](tuple(observation_shape), hidden_dim, layers)
