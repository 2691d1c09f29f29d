"""Settings of the networks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of the actor-critic networks that a user chooses. They are checked where the networks are made.

    Args:
        encoder: pseudo_resnet (the original's), nature, impala, minatar (10 x 10 planes) or mlp (vectors). Or an
            encoder registered by the user.
        hidden_dim: features of the encoder's projection.
        shared_trunk: whether both actors and both critics share one encoder, which is trained by the critics. If false,
            each of the four has its own encoder.
        activation: of the encoder: relu, or leaky_relu, whose inactive units have a Fisher information.
        bayesian: which layers have distributions over weights: the output `heads` (and the linear layers of
            pseudo_resnet), the `trunk` below them, `all` or `none`.
        prior_function_scale: standard deviation of the fixed random prior function added to Q, in return units, >= 0.
    """

    encoder: str = "nature"
    hidden_dim: int = 512
    shared_trunk: bool = True
    activation: str = "relu"
    bayesian: str = "heads"
    prior_function_scale: float = 0.0
    epinet_features: int = 512
    epinet_length_scale: float = 1.0
