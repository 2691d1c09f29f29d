"""Encoders and actor-critic networks."""

from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput, TwinSettings
from bayes_rl.networks.encoders import ENCODERS, Encoder, PlainEncoder, build_encoder, register_encoder
from bayes_rl.networks.gaussian_process import GaussianProcess
from bayes_rl.networks.layer_factory import BayesianModule, LayerFactory, apply
from bayes_rl.networks.prior_functions import PriorFunction
from bayes_rl.networks.random_features import RandomFourierFeatures
from bayes_rl.networks.settings import NetworkSettings

__all__ = [
    "ENCODERS",
    "BayesianModule",
    "Encoder",
    "GaussianProcess",
    "LayerFactory",
    "NetworkSettings",
    "PlainEncoder",
    "PriorFunction",
    "RandomFourierFeatures",
    "TwinActorCritic",
    "TwinOutput",
    "TwinSettings",
    "apply",
    "build_encoder",
    "register_encoder",
]
