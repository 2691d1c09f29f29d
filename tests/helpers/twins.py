"""Small networks and samples of a task, for tests of consolidation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual import METHODS, ConsolidationSettings, TaskSamples
from bayes_rl.continual.fisher import Parameters
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.settings import NetworkSettings

ACTIONS, BINS = 3, 5
SHAPES = {"mlp": (4,), "minatar": (4, 6, 6), "nature": (2, 36, 36)}
NOISE_STD = 0.5

Samples = tuple[Tensor, Tensor, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_twin(
    encoder: str = "mlp",
    shared_trunk: bool = True,
    bayesian: str = "heads",
    posterior: str = "mean_field",
    likelihood: str = "gaussian",
    prior_function_scale: float = 0.0,
    categories: int = 0,
    sequential: bool = False,
    activation: str = "relu",
) -> TwinActorCritic:
    family = PosteriorSettings(posterior, size=2, init_log_var=-4.0)
    layers = LayerFactory(family, bayesian, categories, activation=activation, sequential=sequential)
    shape = (1,) if categories else SHAPES[encoder]
    network = NetworkSettings(encoder, 6, shared_trunk, prior_function_scale=prior_function_scale)
    settings = TwinSettings(network, shape, ACTIONS, layers)
    return TwinActorCritic(settings, make_likelihood(LikelihoodSettings(likelihood, NOISE_STD, (-2.0, 2.0), BINS)))


def make_samples(twin: TwinActorCritic, size: int = 11) -> Samples:
    """Observations as the replay stores them, actions, and both pairs' TD targets."""
    shape, categories = twin.settings.observation_shape, twin.settings.layers.categories
    observation = torch.randn(size, *shape)
    if len(shape) == 3:
        observation = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    if categories:
        observation = torch.randint(categories, (size, 1), dtype=torch.int32)
    return observation, torch.randint(ACTIONS, (size,)), torch.randn(2, size)


def make_consolidator(
    twin: TwinActorCritic, ewc_lambda: float | None = 2.0, method: str = "ewc", **settings: Any
) -> Any:
    return METHODS[method](twin, ConsolidationSettings(method, ewc_lambda, **{"fisher_norm": "none", **settings}))


def assert_same(ours: Parameters, theirs: Parameters, rtol: float, atol: float) -> None:
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=atol, msg=(name + ": {}").format)


def registered(twin: TwinActorCritic, samples: Samples, seed: int = 0, **settings: Any) -> Parameters:
    """The Fisher diagonal after one consolidation."""
    consolidator = make_consolidator(twin, **settings)
    consolidator.end_task(twin, TaskSamples(*samples, seeded(seed)))
    assert consolidator.ewc.consolidations.item() == 1
    return fisher_of(consolidator)


def fisher_of(consolidator: Any) -> Parameters:
    return {name: consolidator.ewc.fisher(name).clone() for name in consolidator.ewc.names}
