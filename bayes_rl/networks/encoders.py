"""Encoders from observations to features; every layer of them can be Bayesian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.errors import ConfigError, check
from bayes_rl.networks.layer_factory import BayesianModule, LayerFactory, apply
from bayes_rl.utils.registry import Registry


class Encoder(BayesianModule):
    """Network from observations `[B, *observation_shape]` to features `[B, out_features]`.

    With `Draws`, observations and features have an axis of draws in front. Its length is D, or 1 if draws are equal.
    """

    out_features: int


Builder = Callable[[tuple[int, ...], int, LayerFactory], Encoder]
"""Observation shape (channels first), hidden dimension and layer factory to an encoder."""


@dataclass(frozen=True)
class EncoderKind:
    """Registered encoder and its properties.

    Attributes:
        build: makes the encoder.
        needs_images: whether observations must be images `[C, H, W]`.
        mostly_products: whether most of an update's time goes into products of matrices (or convolutions), so that
            a shorter floating-point format pays.
    """

    build: Builder
    needs_images: bool
    mostly_products: bool


ENCODERS: Registry[EncoderKind] = Registry("model.network.encoder")
"""Encoders by the value of the option `model.network.encoder`."""


def register_encoder(
    name: str, needs_images: bool = True, mostly_products: bool = False
) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a function (or class) a value of the option `model.network.encoder`.

    The function takes the observation shape (channels first), the hidden dimension and a `LayerFactory`, and returns
    an `Encoder`. Layers from the factory are Bayesian, or have gains for each task, as the user asks.

    Args:
        name: value of the option.
        needs_images: whether observations must be images `[C, H, W]`.
        mostly_products: whether most of an update's time goes into products of matrices (or convolutions). Only then
            does the command line recommend a shorter floating-point format where a processor gains by it.
    """

    def add(build: Builder) -> Builder:
        ENCODERS.register(name, origin=build)(EncoderKind(build, needs_images, mostly_products))
        return build

    return add


def _flat_size(layers: nn.Module, shape: tuple[int, ...], key: str) -> int:
    """Return the number of features of one observation of `shape`; name the encoder if the observation is too small."""
    try:
        with torch.no_grad():
            return apply(layers, torch.zeros(1, *shape), "mean").flatten(1).shape[1]
    except RuntimeError:
        raise ConfigError("model.network.encoder", key, f"does not fit observations of shape {list(shape)}") from None


def _flatten(x: Tensor, weight_mode: WeightMode) -> Tensor:
    return x.flatten(2 if isinstance(weight_mode, Draws) else 1)


class PlainEncoder(Encoder):
    """Stack of layers, flattened, then linear -> LayerNorm -> ReLU."""

    def __init__(self, stack: nn.Module, flat_size: int, hidden_dim: int, layers: LayerFactory) -> None:
        super().__init__()
        self.layers = stack
        self.project = layers.linear(flat_size, hidden_dim)
        self.norm, self.rectifier = nn.LayerNorm(hidden_dim), layers.rectifier()
        self.out_features = hidden_dim

    def forward(self, x: Tensor, weight_mode: WeightMode = "mean") -> Tensor:
        """Return the features."""
        features = _flatten(apply(self.layers, x, weight_mode), weight_mode)
        return self.rectifier(self.norm(apply(self.project, features, weight_mode)))


@register_encoder("pseudo_resnet", mostly_products=True)
class PseudoResNet(Encoder):
    """Trunk of the original system: an early block skips to the classifier; its linear layers count among the heads.

    With `hidden_dim` 1024 and 84 x 84 input its sizes are those of SEED's table: 64 x 19 x 19, 256 x 17 x 17,
    a pooled skip of 4096 and a pooled third block of 9216 features, two Bayesian layers to 1024 each.

    Deviation: group normalisation over all channels stands where the original has batch normalisation, whose
    batch statistics make acting depend on the other environments.
    """

    def __init__(self, shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> None:
        super().__init__()
        a, b, c = (layers.channels(count) for count in (64, 256, 1024))
        self.block1 = nn.Sequential(
            layers.conv(shape[0], a, 8, 2), nn.GroupNorm(1, a), layers.rectifier(), nn.MaxPool2d(2)
        )
        self.block2 = nn.Sequential(layers.conv(a, b, 3), nn.GroupNorm(1, b))
        self.block3 = nn.Sequential(layers.conv(b, c, 3), nn.GroupNorm(1, c), nn.MaxPool2d(4))
        self.pool = nn.MaxPool2d(4)
        early = nn.Sequential(self.block1, self.block2)
        skip_size = _flat_size(nn.Sequential(early, self.pool), shape, "pseudo_resnet")
        deep_size = _flat_size(nn.Sequential(early, self.block3), shape, "pseudo_resnet")
        self.skip = layers.linear(skip_size, hidden_dim, head=True)
        self.deep = layers.linear(deep_size, hidden_dim, head=True)
        self.out_features = 2 * hidden_dim

    def forward(self, x: Tensor, weight_mode: WeightMode = "mean") -> Tensor:
        """Return the features."""
        early = apply(self.block2, apply(self.block1, x, weight_mode), weight_mode)
        skip = apply(self.skip, _flatten(apply(self.pool, early, weight_mode), weight_mode), weight_mode)
        deep = torch.sigmoid(
            apply(self.deep, _flatten(apply(self.block3, early, weight_mode), weight_mode), weight_mode)
        )
        return torch.cat([skip, deep], dim=-1)


@register_encoder("nature", mostly_products=True)
def nature(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return the three convolutions of Mnih et al. (2015), with a LayerNorm after the projection."""
    first, second = layers.channels(32), layers.channels(64)
    stack = nn.Sequential(
        layers.conv(shape[0], first, 8, 4),
        layers.rectifier(),
        layers.conv(first, second, 4, 2),
        layers.rectifier(),
        layers.conv(second, second, 3),
        layers.rectifier(),
    )
    return PlainEncoder(stack, _flat_size(stack, shape, "nature"), hidden_dim, layers)


class ResidualBlock(BayesianModule):
    """Block x + conv(relu(conv(relu(x)))) of 3 x 3 convolutions that keep the size."""

    def __init__(self, channels: int, layers: LayerFactory) -> None:
        super().__init__()
        self.rectifier, self.inner_rectifier = layers.rectifier(inplace=False), layers.rectifier()
        self.first = layers.conv(channels, channels, 3, padding=1)
        self.second = layers.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, weight_mode: WeightMode = "mean") -> Tensor:
        """Return the features."""
        inner = apply(self.first, self.rectifier(x), weight_mode)
        return x + apply(self.second, apply(self.inner_rectifier, inner, weight_mode), weight_mode)


@register_encoder("impala", mostly_products=True)
def impala(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return the residual network of IMPALA (Espeholt et al. 2018): 16, 32, 32 channels, two blocks each."""
    stack: list[nn.Module] = []
    channels = shape[0]
    for count in map(layers.channels, (16, 32, 32)):
        stack += [layers.conv(channels, count, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
        stack += [ResidualBlock(count, layers), ResidualBlock(count, layers)]
        channels = count
    whole = nn.Sequential(*stack, layers.rectifier())
    return PlainEncoder(whole, _flat_size(whole, shape, "impala"), hidden_dim, layers)


@register_encoder("minatar")
def minatar(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return one 3x3 convolution with 16 channels, as in the MinAtar paper (Young and Tian 2019)."""
    stack = nn.Sequential(layers.conv(shape[0], layers.channels(16), 3), layers.rectifier())
    return PlainEncoder(stack, _flat_size(stack, shape, "minatar"), hidden_dim, layers)


@register_encoder("mlp", needs_images=False)
def mlp(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return two layers for vector and integer observations (or anything, flattened)."""
    flat = [] if layers.categories else [nn.Flatten()]
    stack = nn.Sequential(*flat, layers.first(shape, hidden_dim), nn.LayerNorm(hidden_dim), layers.rectifier())
    return PlainEncoder(stack, hidden_dim, hidden_dim, layers)


def build_encoder(encoder: str, observation_shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return the encoder that is registered as `encoder`.

    Args:
        encoder: name of the encoder.
        observation_shape: of one observation, channels first for images.
        hidden_dim: number of features of the encoder's projection.
        layers: makes the layers, some of them Bayesian.

    Raises:
        ConfigError: if there is no such encoder, or it does not fit the observations.
    """
    kind = ENCODERS[encoder]
    check(hidden_dim > 0, "model.network.hidden_dim", hidden_dim, "must be a positive number of features")
    images = len(observation_shape) == 3
    flat = next(name for name, other in ENCODERS.items() if not other.needs_images)
    own = "" if kind.build.__module__.startswith("bayes_rl.") else ", or register the encoder with needs_images=False"
    message = f"needs images, got shape {list(observation_shape)}; nearest: {flat!r}{own}"
    check(images or not kind.needs_images, ENCODERS.key, encoder, message)
    return kind.build(tuple(observation_shape), hidden_dim, layers)
