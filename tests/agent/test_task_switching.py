"""What belongs to one task in the networks, and what a task switch resets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.optimizer import parameter_groups
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks.encoders import ENCODERS, build_encoder
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.types import Batch, Transition
from tests.helpers.agents import ACTIONS, make_module

FEATURES = 5


def batch_of(task: int) -> Batch:
    n = 6
    state, after = torch.randn(2, n, FEATURES)
    transition = Transition(state, torch.randint(ACTIONS, (n,)), torch.randn(n), torch.full((n,), 0.9), after)
    return Batch(transition, 1000, 0, task)


def agent(conditioning: str, **settings: Any) -> VariationalActorCritic:
    torch.manual_seed(2)
    tasks = {"num_tasks": 3, "task_conditioning": conditioning}
    module = make_module(settings, tasks, observation_shape=(FEATURES,))
    module._trainer = type("Quiet", (), {"log_every_n_steps": 0, "precision": "32", "gradient_clip_val": None})()  # type: ignore[assignment]
    return module


OWN = {"gains": (".gain.", ".shift."), "heads": ("actors.", "critics.")}


@pytest.mark.parametrize("conditioning", ["gains", "heads"])
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("bayesian", ["heads", "all", "none"])
def test_a_task_trains_what_is_shared_and_its_own_and_nothing_of_the_others(
    conditioning: str, shared_trunk: bool, bayesian: str
) -> None:
    module = agent(
        conditioning, network={"shared_trunk": shared_trunk, "bayesian": bayesian}, optimizer={"weight_decay": 0.1}
    )
    optimizer = torch.optim.AdamW(parameter_groups(module.twin, {"actor": 1e-2, "critic": 1e-2}, 0.1))
    for task in (0, 2, 1, 1):
        before = copy.deepcopy(module.twin.state_dict())
        optimizer.zero_grad()
        module.training_step(batch_of(task), 0).backward()
        optimizer.step()
        for name, value in module.twin.state_dict().items():
            if any(word in name for word in OWN[conditioning]):
                number = int(
                    name.split(".gain.")[-1].split(".shift.")[-1].split(".")[-1 if conditioning == "gains" else 1]
                )
                owner = number if conditioning == "gains" else number // 2
                assert torch.equal(value, before[name]) == (owner != task), name
            else:
                assert not torch.equal(value, before[name]), name


def test_gains_start_as_ones_and_belong_to_every_layer_of_the_trunk() -> None:
    plain, gained = agent("none"), agent("gains")
    observation = torch.randn(4, FEATURES)
    for task in range(3):
        assert torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=task).q_values)
    with torch.no_grad():
        for name, value in gained.twin.named_parameters():
            if name.endswith("gain.1"):
                value.mul_(2.0)
    assert not torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=1).q_values)
    assert torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=2).q_values)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_has_gains_of_its_channels(encoder: str) -> None:
    shape = (2, 44, 44) if encoder != "mlp" else (7,)
    layers_with_gains = LayerFactory(PosteriorSettings(), "all", num_tasks=2, conditioning="gains")
    gained = build_encoder(encoder, shape, 8, layers_with_gains)
    bare = build_encoder(encoder, shape, 8, LayerFactory(PosteriorSettings(), "all"))
    layers = [name for name, _ in bare.named_parameters() if name.endswith("weight_mu")]
    assert sum(name.endswith("gain.1") for name, _ in gained.named_parameters()) == len(layers)
    assert gained(torch.randn(3, *shape)).shape == bare(torch.randn(3, *shape)).shape


def test_actions_and_value_estimates_follow_the_task() -> None:
    module = agent("heads")
    module._trainer = None
    observation = torch.randn(50, FEATURES)
    answers = [module.act(observation, task=task) for task in range(3)]
    assert not torch.equal(answers[0], answers[1])
    module.task = 1
    assert torch.equal(module.act(observation), answers[1])
    q = module.estimate_values(observation, task=2).q_mean
    assert not torch.allclose(q, module.estimate_values(observation, task=0).q_mean)


def test_critics_are_reset_at_a_switch_by_the_option() -> None:
    module = agent(
        "none",
        consolidation={"critic_at_switch": "reset", "optimizer_at_switch": "reset"},
        optimizer={"critic_lr": 1.0},
    )
    optimizer = torch.optim.AdamW(parameter_groups(module.twin, {"actor": 1e-2, "critic": 1e-2}, 0.0))
    module._trainer.optimizers = [optimizer]  # type: ignore[union-attr]
    module.training_step(batch_of(0), 0).backward()
    optimizer.step()
    before = copy.deepcopy(module.twin.state_dict())
    module._reset_for_task()
    assert not optimizer.state
    for name, value in module.twin.state_dict().items():
        drawn = name.startswith("critics") and "bias" not in name
        assert torch.equal(value, before[name]) != drawn or "bias" in name, name
        if name.startswith("critics"):
            assert torch.equal(value, module.target_twin.state_dict()[name])
