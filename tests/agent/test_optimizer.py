"""The optimizer: which parameters learn, and at which step size and weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bayes_rl.agent.optimizer import parameter_groups
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.networks.layer_factory import BAYESIAN
from tests.helpers.agents import (
    EVERYTHING,
    EWC,
    FEATURES,
    MEMBERS,
    make_module,
    of_actors,
)
from tests.helpers.networks import (
    RATES,
    make_twin,
    observations,
)
from tests.helpers.options import merged


@pytest.mark.parametrize("bayesian", BAYESIAN)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_every_trained_parameter_is_in_one_group_with_its_step_size_and_decay(
    bayesian: str, posterior: str, shared_trunk: bool
) -> None:
    scale = 1.0 if posterior != "mean_field" and bayesian != "none" else 0.0
    twin = make_twin("minatar", shared_trunk, bayesian, posterior, "learned_gaussian", prior_function_scale=scale)
    groups = parameter_groups(twin, RATES, 0.1)
    grouped = [(id(p), group) for group in groups for p in group["params"]]
    trained = {name: p for name, p in twin.named_parameters() if not name.startswith("prior.")}
    assert len(grouped) == len(trained)
    assert {i for i, _ in grouped} == {id(p) for p in trained.values()}
    group_of = dict(grouped)
    decayed = set()
    for name, parameter in trained.items():
        group = group_of[id(parameter)]
        own_trunk = not shared_trunk and name.split(".")[:2] in (["trunks", "0"], ["trunks", "1"])
        assert group["name"] == ("actor" if name.startswith("actors.") or own_trunk else "critic")
        assert group["lr"] == RATES[group["name"]]
        assert group["weight_decay"] in (0.0, 0.1)
        if group["weight_decay"]:
            decayed.add(name)
    # Neither Bayesian weights nor biases (members have several) nor scales and shifts nor the noise.
    plain = {name for name, module in twin.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert decayed == {f"{name}.weight" for name in plain if not name.startswith("prior.")}


def test_the_noise_is_learned_with_the_critics() -> None:
    twin = make_twin(likelihood="learned_gaussian")
    optimizer = torch.optim.AdamW(parameter_groups(twin, {"actor": 0.0, "critic": 0.01}, 0.1))
    before = twin.likelihood.std(torch.zeros(1)).item()
    output = twin(observations("mlp"), "sample")
    twin.likelihood.nll(output.raw, torch.full(output.q_values.shape, 30.0)).mean().backward()
    optimizer.step()
    after = twin.likelihood.std(torch.zeros(1)).item()
    assert after > 1.005 * before  # Adam's first step: 0.01 in the logarithm


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("settings", [{}, {"objective": {"target": "other"}}, EWC, EVERYTHING])
def test_every_trainable_parameter_is_in_the_optimizer_exactly_once(
    shared_trunk: bool, settings: dict[str, Any]
) -> None:
    module = make_module(settings, network={"shared_trunk": shared_trunk})
    optimized = [id(p) for group in module.configure_optimizers().param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(p) for p in module.parameters() if p.requires_grad}
    fixed = {name for name, p in module.twin.named_parameters() if id(p) not in optimized}
    assert all(name.startswith("prior.") for name in fixed)
    assert bool(fixed) == ("network" in settings)  # a prior function


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [
        ("mlp", {}),
        ("mlp", EVERYTHING),
        ("mlp", merged(MEMBERS, {"network": {"bayesian": "all"}})),
        ("minatar", {}),
        ("pseudo_resnet", {}),
    ],
)
@pytest.mark.parametrize("shared_trunk", [True, False])
def test_learning_rates_and_decay_are_as_configured(encoder: str, settings: dict[str, Any], shared_trunk: bool) -> None:
    shape = {"mlp": (FEATURES,), "minatar": (2, 8, 8), "pseudo_resnet": (1, 44, 44)}[encoder]
    module = make_module(
        settings,
        network={"encoder": encoder, "shared_trunk": shared_trunk},
        observation_shape=shape,
        optimizer={"actor_lr": 0.001, "critic_lr": 0.02, "weight_decay": 0.3, "adam_eps": 1e-3},
    )
    names = {id(p): name for name, p in module.twin.named_parameters()}
    named = dict(module.twin.named_parameters())
    actors = of_actors(named, shared_trunk)
    for group in module.configure_optimizers().param_groups:
        assert group["eps"] == 1e-3
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (0.001 if name in actors else 0.02), name
            bayesian = name.endswith(("weight_mu", "weight_log_var", "weight_factor"))  # the prior is their decay
            matrix = parameter.ndim > 1 and not name.endswith("bias")  # members have several biases
            assert group["weight_decay"] == (0.3 if matrix and not bayesian else 0.0), name
