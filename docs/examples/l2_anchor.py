"""L2 anchor: a consolidation method that pulls every mean weight towards its value at the end of the latest task.

Kirkpatrick et al. (2017, arXiv:1612.00796) compare EWC with it. Use it by

    agent = VariationalActorCritic(consolidation={"method": "l2_anchor", "ewc_lambda": 0.1}, ...)
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_rl.continual import METHODS, ConsolidationMethod, ConsolidationSettings, TaskSamples
from bayes_rl.networks.actor_critic import TwinActorCritic


@METHODS.register("l2_anchor")
class L2Anchor(ConsolidationMethod):
    """Penalty (lambda / 2) sum_i (w_i - w*_i)^2, in nats, with w* the weights at the end of the latest task.

    Args:
        twin: the networks.
        settings: of consolidation; only `ewc_lambda` has an effect.
    """

    default_strength = 0.1
    tasks: Tensor

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__(twin, settings)
        self.names = [name for name, p in twin.named_parameters() if p.requires_grad and "log_var" not in name]
        for name in self.names:  # buffers, so that a checkpoint holds them
            self.register_buffer(self._key(name), torch.zeros_like(twin.get_parameter(name)))
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))

    @property
    def active(self) -> bool:
        """Whether a task has ended."""
        return bool(self.tasks > 0)

    @torch.no_grad()
    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Move the anchors to the present weights."""
        for name in self.names:
            self._anchor(name).copy_(twin.get_parameter(name))
        self.tasks += 1

    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """Return the penalty, a scalar in nats."""
        if not self.active:
            return torch.zeros((), device=twin.device)
        parts = [(twin.get_parameter(name) - self._anchor(name)).square().sum() for name in self.names]
        return 0.5 * self.settings.strength * torch.stack(parts).sum()

    @torch.no_grad()
    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Add lambda (w - w*) to the gradient of every parameter that learns."""
        if self.active:
            for name in self.names:
                parameter = twin.get_parameter(name)
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - self._anchor(name), alpha=self.settings.strength)

    def describe(self) -> str:
        """Return one line for the user."""
        size = f"{self.memory_bytes / 2**20:.1f} MiB"
        return f"consolidation: {self.settings.method}, lambda {self.settings.strength:g}, {size}"

    def _anchor(self, name: str) -> Tensor:
        return self.get_buffer(self._key(name))

    @staticmethod
    def _key(name: str) -> str:
        return f"anchor_{name.replace('.', '__')}"  # a buffer's name has no dots
