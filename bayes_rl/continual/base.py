"""Interface and registry of consolidation methods, which protect earlier tasks while a later one is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.utils.registry import Registry

if TYPE_CHECKING:
    from bayes_rl.continual.settings import ConsolidationSettings


class TaskSamples(NamedTuple):
    """Sample of M transitions of a task that ends.

    Attributes:
        observation: `[M, *observation_shape]`, as stored, on any device.
        action: as executed, `[M]` int64.
        targets: TD targets of both pairs, `[2, M]`, without the prior function's part; None unless the method's
            `needs_targets` is set.
        generator: of the CPU. A method draws all its random numbers from it, and none from the global generator.
        task: number of the task.
    """

    observation: Tensor
    action: Tensor
    targets: Tensor | None
    generator: torch.Generator
    task: int = 0


class ConsolidationMethod(nn.Module, ABC):
    """Protection of earlier tasks while a later one is learned.

    A method of one's own is a subclass that is registered by name:

    ```python
    @METHODS.register("my_method")
    class MyMethod(ConsolidationMethod): ...
    ```

    `--model.consolidation.method my_method` selects it. State that a checkpoint must hold goes into buffers.
    `tests/continual/method_case.py` is a base class of tests that every method should pass.

    Args:
        twin: the networks; only names and shapes are taken from it.
        settings: of consolidation.

    Attributes:
        default_strength: value of `ewc_lambda` where the user gives none.
        posterior_becomes_prior: whether each Bayesian weight needs a prior of its own, which its posterior can become.
        repetition_obstacle: why a task cannot be registered repeatedly while it is learned, put behind the value of
            `consolidate_every`; empty if it can.
    """

    default_strength: float = 0.001
    posterior_becomes_prior: bool = False
    repetition_obstacle: str = ""

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian: str) -> None:
        """Raise `ConfigError` unless the method can protect networks of this posterior.

        Args:
            method: name of the method, for the message.
            posterior: settings of the Bayesian layers.
            bayesian: which layers are Bayesian, `none` if no layer is.
        """

    @property
    def needs_targets(self) -> bool:
        """True if `end_task` needs the TD targets of its samples."""
        return False

    @property
    @abstractmethod
    def active(self) -> bool:
        """True once there is a penalty."""

    @abstractmethod
    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Register a task with the present weights. No parameter of the networks may change.

        Args:
            twin: the networks at the end of the task.
            samples: transitions of the task.
        """

    @abstractmethod
    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """Return the penalty of the present weights: a scalar >= 0 in nats, for logging."""

    @abstractmethod
    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Add the penalty's gradient to `.grad` of every protected parameter whose `.grad` is set.

        The agent calls this after the backward pass of every update. A parameter without `.grad` belongs to a network
        that does not learn in this update.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return one line for the user: the method, its strength, what it protects, and in how much memory."""

    def frozen_share(self, twin: TwinActorCritic, optimizer: torch.optim.Optimizer) -> float:
        """Return the share of the protected weights, in [0, 1], that the penalty holds in place; 0 if unknown."""
        return 0.0

    def out_of_scale(self, penalty: float, loss: float, update: int) -> str | None:
        """Return a message if the strength does not fit the loss, once in the life of this object.

        Args:
            penalty: of this update, in nats.
            loss: of this update without the penalty.
            update: number of this update. Not every update has to be asked about.
        """
        return None

    @property
    def memory_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())


METHODS: Registry[type[ConsolidationMethod]] = Registry("model.consolidation.method")
"""Consolidation methods by name."""


@METHODS.register("none")
class NoConsolidation(ConsolidationMethod):
    """Plain fine-tuning: nothing is protected."""

    default_strength = 0.0

    @property
    def active(self) -> bool:
        """False: there is never a penalty."""
        return False

    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Do nothing."""

    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """Return zero."""
        return torch.zeros((), device=twin.device)

    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Do nothing."""

    def describe(self) -> str:
        """Return one line for the user."""
        return "consolidation: none, no penalty"


def make_consolidation(twin: TwinActorCritic, settings: ConsolidationSettings) -> ConsolidationMethod | None:
    """Return the configured method, or None where nothing is protected.

    Args:
        twin: the networks to protect.
        settings: of consolidation.
    """
    return None if settings.method == "none" else METHODS[settings.method](twin, settings)
