"""Task switches: what the agent resets at one, and the sample of a task that consolidation needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.types import Transition

TARGETS_CHUNK = 250
"""Transitions whose targets are computed at once, so that memory does not grow with the sample."""


def consolidation_is_due(update: int, every: int) -> bool:
    """Return whether the current task is registered after this update, as the original system does.

    Args:
        update: number of the update, counted from 1.
        every: updates between two registrations within a task; 0 registers at its end only.
    """
    return bool(every) and update % every == 0


def targets_of_sample(
    transition: Transition, td_targets: Callable[[Transition], Tensor], device: torch.device
) -> Tensor:
    """Return TD targets `[2, M]` of a sample of M transitions, on the CPU.

    Args:
        transition: the sample, on the CPU.
        td_targets: computes the targets `[2, m]` of at most `TARGETS_CHUNK` transitions on `device`.
        device: of the networks.
    """
    chunks = transition.split(TARGETS_CHUNK)
    return torch.cat([td_targets(chunk.map(lambda x: x.to(device))) for chunk in chunks], -1).cpu()


def reset_for_task(
    twin: TwinActorCritic,
    target_twin: TwinActorCritic | None,
    optimizer: torch.optim.Optimizer,
    task: int,
    settings: ConsolidationSettings,
) -> None:
    """Reset the optimizer state and the critic heads at a task switch, as configured.

    Args:
        twin: the networks that learn.
        target_twin: moving average of `twin`, or None.
        optimizer: of `twin`.
        task: number of the task that begins.
        settings: whether to clear Adam's averages (`optimizer_at_switch`), and whether to give the critics of both
            pairs fresh heads with fresh averages (`critic_at_switch`).
    """
    if settings.optimizer_at_switch == "reset":
        optimizer.state.clear()
    if settings.critic_at_switch == "reset":
        fresh = TwinActorCritic(twin.settings, twin.likelihood).to(twin.device)
        for pair in range(2):
            state = fresh.heads_of(pair, task)[1].state_dict()
            for network in (twin, target_twin):
                if network is not None:
                    network.heads_of(pair, task)[1].load_state_dict(state)
            for parameter in twin.heads_of(pair, task)[1].parameters():
                optimizer.state.pop(parameter, None)
