"""Interface and registry of consolidation methods, which protect earlier tasks while a later task is learned."""

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
    """Sample of M transitions of a task, drawn at its end.

    Attributes:
        observation: `[M, *observation_shape]`, as stored, on any device.
        action: executed actions, `[M]` int64.
        targets: TD targets of both pairs, `[2, M]`, without the prior function's part; None unless the method's
            `needs_targets` is set.
        generator: generator of the CPU. A method draws all its random numbers from this generator, so that a resumed
            run draws the same numbers.
        task: number of the task.
    """

    observation: Tensor
    action: Tensor
    targets: Tensor | None
    generator: torch.Generator
    task: int = 0


class ConsolidationMethod(nn.Module, ABC):
    """Protection of earlier tasks while a later task is learned.

    A user adds a method by registering a subclass:

    ```python
    @METHODS.register("my_method")
    class MyMethod(ConsolidationMethod): ...
    ```

    `--model.consolidation.method my_method` selects the method. State that a checkpoint must hold goes into buffers.
    `tests/continual/method_case.py` is a base class of tests that every method should pass.

    Args:
        twin: the networks; the constructor reads the names and shapes of their parameters only.
        settings: settings of consolidation.

    Attributes:
        default_strength: value of `ewc_lambda` where the user gives none.
        posterior_becomes_prior: whether the posterior of each Bayesian weight becomes the prior of that weight. Each
            weight then has buffers for its prior.
        repetition_obstacle: reason why `consolidate_every` must be 0, for the error message; empty if the method allows
            that `end_task` is called again and again within a task.
    """

    default_strength: float = 0.001
    posterior_becomes_prior: bool = False
    repetition_obstacle: str = ""

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian_part: str) -> None:
        """Raise `ConfigError` unless the method can protect networks of this posterior.

        Args:
            method: name of the method, for the message.
            posterior: settings of the Bayesian layers.
            bayesian_part: part of the networks whose layers are Bayesian: `heads`, `trunk`, `all` or `none`.
        """

    @classmethod
    def ignored_settings(cls, settings: ConsolidationSettings) -> tuple[str, ...]:
        """Return the fields of `ConsolidationSettings` that the method does not read beside the others."""
        return ()

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
        """Protect what was learned of a task, given the present weights. No parameter of the networks may change.

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
        """Return the share of the protected weights, in [0, 1], that the penalty keeps from changing; 0 if unknown."""
        return 0.0

    def strength_warning(self, penalty: float, loss: float, update: int) -> str | None:
        """Return a warning if the strength does not fit the loss, at most once in the life of this object.

        The agent calls this whenever it logs the penalty.

        Args:
            penalty: penalty of this update, in nats.
            loss: loss of this update without the penalty, in nats.
            update: number of this update.
        """
        return None

    @property
    def memory_bytes(self) -> int:
        """Memory of all buffers, in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers())


METHODS: Registry[type[ConsolidationMethod]] = Registry("model.consolidation.method")
"""Consolidation methods by name."""


@METHODS.register("none")
class NoConsolidation(ConsolidationMethod):
    """Plain fine-tuning, without protection of earlier tasks."""

    default_strength = 0.0

    @classmethod
    def ignored_settings(cls, settings: ConsolidationSettings) -> tuple[str, ...]:
        """Return all settings of a method."""
        fisher = ("fisher", "fisher_samples", "fisher_newest", "fisher_norm")
        return ("ewc_lambda", "protected_networks", *fisher, "online_decay")

    @property
    def active(self) -> bool:
        """False, because there is never a penalty."""
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
    """Return the configured method, or None if the method is `none`.

    Args:
        twin: the networks to protect.
        settings: settings of consolidation.
    """
    return None if settings.method == "none" else METHODS[settings.method](twin, settings)
