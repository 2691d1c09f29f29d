"""Encoders from observations to features, actor and critic heads, and the twin of two actor-critic pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bayes import BayesLinear, Weights
from bayes_rl.types import ConfigError, check, check_choice


class Encoder(nn.Module):
    """Observation `[B, *observation_shape]`, float, to features `[B, out_features]`."""

    out_features: int

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        raise NotImplementedError  # the interface; every encoder below defines it


def _flat_size(layers: nn.Module, shape: tuple[int, ...], key: str) -> int:
    """Features that `layers` makes of one observation of `shape`; names the encoder if the observation is too small."""
    try:
        with torch.no_grad():
            return layers(torch.zeros(1, *shape)).flatten(1).shape[1]
    except RuntimeError:
        raise ConfigError("model.encoder", key, f"does not fit observations of shape {list(shape)}") from None


class PlainEncoder(Encoder):
    """Any stack of deterministic layers, flattened, then Linear -> LayerNorm -> ReLU."""

    def __init__(self, layers: nn.Module, shape: tuple[int, ...], hidden_dim: int, key: str) -> None:
        super().__init__()
        self.layers = layers
        self.project = nn.Linear(_flat_size(layers, shape, key), hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.out_features = hidden_dim

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        return F.relu(self.norm(self.project(self.layers(x).flatten(1))))


def nature(shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float) -> Encoder:
    """The three convolutions of Mnih et al. (2015), with a LayerNorm after the projection."""
    layers = nn.Sequential(
        nn.Conv2d(shape[0], 32, 8, 4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, 2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
    )
    return PlainEncoder(layers, shape, hidden_dim, "nature")


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3, same size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def impala(shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float) -> Encoder:
    """The residual network of IMPALA (Espeholt et al. 2018): 16, 32, 32 channels, two blocks each."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
        layers += [ResidualBlock(width), ResidualBlock(width)]
        channels = width
    return PlainEncoder(nn.Sequential(*layers, nn.ReLU()), shape, hidden_dim, "impala")


def minatar(shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float) -> Encoder:
    """One 3x3 convolution with 16 channels, as in the MinAtar paper (Young and Tian 2019)."""
    return PlainEncoder(nn.Sequential(nn.Conv2d(shape[0], 16, 3), nn.ReLU()), shape, hidden_dim, "minatar")


def mlp(shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float) -> Encoder:
    """Two layers for vector observations (or anything, flattened)."""
    size = int(torch.tensor(shape).prod())
    layers = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU())
    return PlainEncoder(layers, shape, hidden_dim, "mlp")


class PseudoResNet(Encoder):
    """The original system's trunk: an early block skips to the classifier; its linear layers are Bayesian.

    With `hidden_dim` 1024 and 84 x 84 input its sizes are those of SEED's table: 64 x 19 x 19, 256 x 17 x 17,
    a pooled skip of 4096 and a pooled third block of 9216 features, two Bayesian layers to 1024 each.

    Deviation: group normalisation over all channels stands where the original has batch normalisation, whose
    batch statistics make acting depend on the other environments.
    """

    def __init__(self, shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(shape[0], 64, 8, 2), nn.GroupNorm(1, 64), nn.ReLU(), nn.MaxPool2d(2))
        self.block2 = nn.Sequential(nn.Conv2d(64, 256, 3), nn.GroupNorm(1, 256))
        self.block3 = nn.Sequential(nn.Conv2d(256, 1024, 3), nn.GroupNorm(1, 1024), nn.MaxPool2d(4))
        self.pool = nn.MaxPool2d(4)
        early = nn.Sequential(self.block1, self.block2)
        skip_size = _flat_size(nn.Sequential(early, self.pool), shape, "pseudo_resnet")
        deep_size = _flat_size(nn.Sequential(early, self.block3), shape, "pseudo_resnet")
        self.skip = BayesLinear(skip_size, hidden_dim, prior_precision, init_log_var)
        self.deep = BayesLinear(deep_size, hidden_dim, prior_precision, init_log_var)
        self.out_features = 2 * hidden_dim

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        early = self.block2(self.block1(x))
        skip = self.skip(self.pool(early).flatten(1), weights)
        deep = torch.sigmoid(self.deep(self.block3(early).flatten(1), weights))
        return torch.cat([skip, deep], dim=1)


ENCODERS = {"pseudo_resnet": PseudoResNet, "nature": nature, "impala": impala, "minatar": minatar, "mlp": mlp}


def build_encoder(
    encoder: str, observation_shape: tuple[int, ...], hidden_dim: int, prior_precision: float, init_log_var: float
) -> Encoder:
    """The encoder called `encoder`, for observations of `observation_shape` (channels first)."""
    check_choice("model.encoder", encoder, ENCODERS)
    check(hidden_dim > 0, "model.hidden_dim", hidden_dim, "must be a positive number of features")
    if encoder != "mlp" and len(observation_shape) != 3:
        raise ConfigError(
            "model.encoder", encoder, f"needs images, got shape {list(observation_shape)}; nearest: 'mlp'"
        )
    return ENCODERS[encoder](tuple(observation_shape), hidden_dim, prior_precision, init_log_var)


class TwinOutput(NamedTuple):
    """What both pairs say of a batch of observations; pair first.

    Attributes:
        action_logits: `[2, B, A]` float32.
        q_values: `[2, B, A]` float32, in (clipped) return units.
    """

    action_logits: Tensor
    q_values: Tensor

    def mean_action_probs(self) -> Tensor:
        """The acting policy: the mean of both actors, `[B, A]`, rows summing to 1."""
        return self.action_logits.softmax(-1).mean(0)


class Twin(nn.Module):
    """Two actor-critic pairs with Bayesian heads: logits and Q(s, .) in R^A from each.

    Args:
        encoder: name of the encoder.
        observation_shape: of one observation, channels first for images.
        num_actions: A.
        hidden_dim: width of the encoder's projection.
        shared_trunk: one encoder for all four networks, trained by the critics alone; otherwise each actor
            and each critic has its own, as in the original.
        prior_precision: of every Bayesian layer.
        init_log_var: of every Bayesian layer.
        pixel_scale: integer observations are divided by it (255 for screens, 1 for binary planes).
    """

    def __init__(
        self,
        encoder: str,
        observation_shape: tuple[int, ...],
        num_actions: int,
        hidden_dim: int,
        shared_trunk: bool,
        prior_precision: float,
        init_log_var: float,
        pixel_scale: float,
    ) -> None:
        super().__init__()
        self.shared_trunk = shared_trunk
        self.pixel_scale = pixel_scale
        # Order: actor 0, actor 1, critic 0, critic 1; or one for all.
        self.trunks = nn.ModuleList(
            build_encoder(encoder, observation_shape, hidden_dim, prior_precision, init_log_var)
            for _ in range(1 if shared_trunk else 4)
        )
        width: int = self.trunks[0].out_features  # type: ignore[assignment]
        self.actors, self.critics = (
            nn.ModuleList(BayesLinear(width, num_actions, prior_precision, init_log_var) for _ in range(2))
            for _ in range(2)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def networks(self, pairs: list[int]) -> nn.ModuleList:
        """Trunks and heads of the given pairs (0, 1), for sums over their layers."""
        trunks = [self.trunks[0]] if self.shared_trunk else [self.trunks[i + j] for i in pairs for j in (0, 2)]
        return nn.ModuleList([*trunks, *(head[i] for i in pairs for head in (self.actors, self.critics))])

    def critic_prefixes(self, pair: int) -> tuple[str, str]:
        """Names of critic `pair`'s trunk and head, as prefixes of parameter names."""
        return f"trunks.{0 if self.shared_trunk else 2 + pair}.", f"critics.{pair}."

    def critic(self, pair: int, prepared: Tensor) -> Tensor:
        """Q(s, .) of one critic alone, from mean weights and an observation out of `prepare`: `[B, A]` float32."""
        trunk = self.trunks[0 if self.shared_trunk else 2 + pair]
        return self.critics[pair](trunk(prepared))

    def prepare(self, observation: Tensor) -> Tensor:
        """Observation as the encoders take it: floating, pixels scaled to [0, 1], channels last in memory."""
        if observation.dtype == torch.uint8:
            device = observation.device.type
            # Under autocast straight to its type: every pixel value is exact in bfloat16.
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            layout = torch.channels_last if observation.ndim == 4 else torch.contiguous_format
            return observation.to(dtype, memory_format=layout).mul_(1.0 / self.pixel_scale)
        return observation.contiguous(memory_format=torch.channels_last) if observation.ndim == 4 else observation

    def forward(self, observation: Tensor, weights: Weights = "mean") -> TwinOutput:
        """Evaluate both pairs on `[B, *observation_shape]`; with a shared trunk the actors' gradient stops there."""
        x = self.prepare(observation)
        if self.shared_trunk:
            features = self.trunks[0](x, weights)
            actor_features = [features.detach()] * 2
            critic_features = [features] * 2
        else:
            outputs = [trunk(x, weights) for trunk in self.trunks]
            actor_features, critic_features = outputs[:2], outputs[2:]
        # Heads stay in float32: eight bits of mantissa are too few to tell neighbouring actions apart.
        with torch.autocast(x.device.type, enabled=False):
            logits = [head(f.float(), weights) for head, f in zip(self.actors, actor_features, strict=True)]
            q_values = [head(f.float(), weights) for head, f in zip(self.critics, critic_features, strict=True)]
        return TwinOutput(torch.stack(logits), torch.stack(q_values))


def parameter_groups(twin: Twin, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups, called `actor` or `critic` and decayed or not; every parameter is in exactly one.

    Args:
        twin: whose parameters; a shared trunk belongs to the critics.
        rates: step sizes of `actor` and `critic`.
        weight_decay: of deterministic matrices and kernels; Bayesian weights have their prior.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in twin.named_parameters():
        own_actor_trunk = name.startswith(("trunks.0", "trunks.1")) and not twin.shared_trunk
        owner = "actor" if name.startswith("actors") or own_actor_trunk else "critic"
        decayed = parameter.ndim > 1 and not name.endswith(("weight_mu", "weight_log_var"))
        groups.setdefault((owner, decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[owner], "weight_decay": weight_decay * decayed, "name": owner}
        for (owner, decayed), parameters in groups.items()
    ]
