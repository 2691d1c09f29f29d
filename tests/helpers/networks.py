"""Small networks with wide posteriors, their observations and their draws."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode, draws_by_seed
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.likelihoods import Likelihood, LikelihoodSettings, make_likelihood
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.settings import NetworkSettings

SHAPES = {  # small: the sizes at 84 x 84 have a test of their own
    "pseudo_resnet": (2, 38, 38),
    "nature": (2, 36, 36),
    "impala": (3, 8, 8),
    "minatar": (4, 6, 6),
    "mlp": (5,),
}
ACTIONS, BATCH, DRAWS = 3, 4, 3
LOW, HIGH, BINS = -2.0, 6.0, 11
RATES = {"actor": 1e-3, "critic": 2e-3}


def make(likelihood: str) -> Likelihood:
    return make_likelihood(LikelihoodSettings(likelihood, 0.5, (LOW, HIGH), BINS))


def make_twin(
    name: str = "mlp",
    shared_trunk: bool = True,
    bayesian: str = "heads",
    posterior: str = "mean_field",
    likelihood: str = "gaussian",
    hidden_dim: int = 12,
    num_actions: int = ACTIONS,
    prior_function_scale: float = 0.0,
    pixel_scale: float = 255.0,
) -> TwinActorCritic:
    # A wide posterior: a draw that is lost would show. A dimension of its own: no axis passes for another.
    layers = LayerFactory(PosteriorSettings(posterior, size=2, init_log_var=-4.0), bayesian)
    network = NetworkSettings(name, hidden_dim, shared_trunk, prior_function_scale=prior_function_scale)
    twin = TwinActorCritic(TwinSettings(network, SHAPES[name], num_actions, layers, pixel_scale), make(likelihood))
    for layer in bayesian_layers(twin).values():
        nn.init.normal_(layer.bias)
    return twin


def observations(name: str, *batch: int) -> Tensor:
    """Random bytes for images, standard normal vectors otherwise."""
    shape = (*(batch or (BATCH,)), *SHAPES[name])
    return torch.randint(0, 256, shape, dtype=torch.uint8) if len(SHAPES[name]) == 3 else torch.randn(shape)


def make_draws(twin: TwinActorCritic, count: int = DRAWS) -> Draws:
    return draws_by_seed(twin.posterior, twin.draw_shapes(), [*range(count)])


def every_mode(twin: TwinActorCritic, name: str) -> list[tuple[Tensor, WeightMode]]:
    """An observation and weights for each way to evaluate a twin."""
    x = observations(name)
    local = twin.posterior.fresh_draws(DRAWS, torch.device("cpu"))
    return [
        (x, "mean"),
        (x, "sample"),
        (x[None], local),
        (x[None], replace(local, noise={})),
        (x[None], make_draws(twin)),
    ]


def move(module: nn.Module, by: float = 0.1) -> None:
    """Change all parameters a little, in place, as an optimizer does."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
