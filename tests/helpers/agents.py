"""Small agents, minibatches and trainers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.types import Batch, Transition
from bayes_rl.utils.ranks import num_ranks, own_rank
from tests.helpers.options import merged

ACTIONS = 3
FEATURES = 4

# Options of the agent. Every family of posterior distributions has a small one.
LOW_RANK: dict[str, Any] = {"posterior": {"family": "low_rank", "size": 2, "num_draws": 3}}
MEMBERS: dict[str, Any] = {"posterior": {"family": "members", "size": 3}}
PROCESS: dict[str, Any] = {
    "network": {"bayesian": "gaussian_process", "prior_function_scale": 1.0, "random_features": 8}
}
EVERYTHING: dict[str, Any] = merged(
    LOW_RANK, {"network": {"prior_function_scale": 1.0}, "likelihood": {"family": "learned_gaussian"}}
)
NATURAL: dict[str, Any] = {
    "network": {"bayesian": "none"},
    "optimizer": {"family": "ivon", "actor_lr": 0.02, "critic_lr": 0.02, "precision_rate": 0.01},
}
EWC: dict[str, Any] = {
    "consolidation": {
        "method": "online_ewc",
        "ewc_lambda": 1.0,
        "fisher": "empirical",
        "fisher_samples": 20,
        "consolidate_every": 2,
    }
}
FAMILIES = pytest.mark.parametrize("family", [{}, MEMBERS, LOW_RANK], ids=["mean_field", "members", "low_rank"])
WITH_DRAWS = pytest.mark.parametrize("family", [MEMBERS, LOW_RANK], ids=["members", "low_rank"])


class Stream:
    """A finite stream of given batches (a bare list means several loaders to Lightning)."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class SampleData(pl.LightningDataModule):
    """Data module of one task, with a stream of given batches, and the same samples for every Fisher."""

    visit = 0
    return_bounds = (-math.inf, math.inf)
    curriculum = SimpleNamespace(visit=lambda _: 0, task=lambda _: 0, ends=lambda _: False)

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def train_dataloader(self) -> Stream:
        return self.stream

    def val_dataloader(self) -> Stream:
        return Stream([])

    def sample_transitions(self, count: int, newest_share: float) -> Transition:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return make_batch(count).transition

    def sample_own_transitions(self, count: int, newest_share: float) -> Transition:
        """Return this rank's part of the samples."""
        part = slice(own_rank() * count // num_ranks(), (own_rank() + 1) * count // num_ranks())
        return self.sample_transitions(count, newest_share).map(lambda x: x[part])


class EachUpdate(pl.Callback):
    """Calls a function after every update."""

    def __init__(self, call: Callable[[pl.Trainer, VariationalActorCritic], None]) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.call(trainer, module)


def make_trainer(*callbacks: pl.Callback, log_every: int = 10**6, **settings: Any) -> pl.Trainer:
    """Return a quiet trainer of one epoch on the CPU; `settings` replace its defaults."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "limit_val_batches": 0,
        "log_every_n_steps": log_every,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def fit(
    module: VariationalActorCritic,
    batches: list[Batch],
    *callbacks: pl.Callback,
    data: Callable[[Stream], pl.LightningDataModule] = SampleData,
    **settings: Any,
) -> pl.Trainer:
    """Train on the batches, in order, for one epoch."""
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, datamodule=data(Stream(batches)))
    return trainer


def make_module(*options: Mapping[str, Any], **more: Any) -> VariationalActorCritic:
    """Make a small agent with the given options."""
    defaults = {
        "network": {"encoder": "mlp", "hidden_dim": 8},
        "observation_shape": (FEATURES,),
        "num_actions": ACTIONS,
    }
    return VariationalActorCritic(**merged(defaults, *options, more))


def make_batch(size: int = 6, discount: float = 0.9, num_data: int = 1000, **fields: Tensor) -> Batch:
    values = {
        "observation": torch.randn(size, FEATURES),
        "action": torch.randint(ACTIONS, (size,)),
        "reward": torch.randn(size),
        "discount": torch.full((size,), discount),
        "next_observation": torch.randn(size, FEATURES),
    }
    return Batch(Transition(**{**values, **fields}), num_data=num_data, frames=4)


def step(module: VariationalActorCritic, batch: Batch, seed: int = 0) -> Tensor:
    """The loss of one update under fixed noise, with gradients in the parameters, without an optimizer."""
    module.trainer = make_trainer()
    module.zero_grad()
    torch.manual_seed(seed)
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, zero where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit; a number that is not known yet is NaN in both."""
    return all(torch.allclose(value, second[name], rtol=0, atol=0, equal_nan=True) for name, value in first.items())


def of_actors(named: dict[str, Tensor], shared_trunk: bool) -> dict[str, Tensor]:
    own = () if shared_trunk else ("trunks.0.", "trunks.1.")
    return {name: value for name, value in named.items() if name.removeprefix("twin.").startswith(("actors.", *own))}


def of_critics(named: dict[str, Tensor], shared_trunk: bool) -> dict[str, Tensor]:
    own = ("trunks.0.",) if shared_trunk else ("trunks.2.", "trunks.3.")
    return {name: value for name, value in named.items() if name.removeprefix("twin.").startswith(("critics.", *own))}


@torch.no_grad()
def make_constant(twin: nn.Module, logits: Tensor, q_values: Tensor) -> None:
    """Make a twin answer `logits` and `q_values`, both `[2, A]` (or `[2, K, A]` of members), for every observation.

    Features are zero; biases are given.
    """
    for parameter in twin.trunks.parameters():
        parameter.zero_()
    for heads, biases in ((twin.actors, logits), (twin.critics, q_values)):
        for head, bias in zip(heads, biases, strict=True):
            head.bias.copy_(bias)
