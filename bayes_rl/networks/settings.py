"""Settings of the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes_rl.errors import check


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of the actor-critic networks that a user chooses. Most are checked where the networks are made.

    Args:
        encoder: pseudo_resnet (the original's), nature, impala, minatar (10 x 10 planes) or mlp (vectors). Or an
            encoder registered by the user.
        hidden_dim: features of the encoder's projection.
        width: multiple of the numbers of channels of the encoder's convolutions, > 0. Half of `nature`'s channels take
            0.4 times the arithmetic.
        shared_trunk: whether both actors and both critics share one encoder, which is trained by the critics. If false,
            each of the four has its own encoder.
        activation: of the encoder: relu, or leaky_relu, whose inactive units have a Fisher information.
        bayesian: what has a distribution: a `gaussian_process` beside plain networks, or the weights of the output
            `heads` (and the linear layers of pseudo_resnet), of the `trunk` below them, of `all` or `none`.
        prior_function_scale: standard deviation of the fixed random prior function added to Q, in return units; or of a
            Gaussian process where nothing is known, in units of the mean noise of a return; >= 0.
        random_features: number of random features of the state that a Gaussian process is linear in, >= 1.
        length_scale: distance at which the kernel of a Gaussian process is 0.61, > 0; two states of the replay are
            about 1.4 apart.
    """

    encoder: str = "nature"
    hidden_dim: int = 512
    shared_trunk: bool = True
    activation: str = "relu"
    bayesian: str = "heads"
    prior_function_scale: float = 0.0
    random_features: int = 256
    length_scale: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        key, value = "model.network.random_features", self.random_features
        check(value >= 1, key, value, "must be at least 1")
        key, length = "model.network.length_scale", self.length_scale
        check(0 < length < math.inf, key, length, "must be positive and finite")
        key, width = "model.network.width", self.width
        check(0 < width < math.inf, key, width, "must be positive and finite")
