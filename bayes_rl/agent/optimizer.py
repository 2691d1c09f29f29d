"""The one optimizer of all networks, and the moving average of what it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.networks.actor_critic import TwinActorCritic


def make_optimizer(
    twin: TwinActorCritic, rates: dict[str, float], weight_decay: float, eps: float, fused: bool
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay.

    Args:
        twin: whose parameters it trains.
        rates: step sizes of `actor` and `critic`.
        weight_decay: of deterministic matrices and kernels.
        eps: offset of the denominator.
        fused: one pass over memory for all parameters of a group.
    """
    return torch.optim.AdamW(parameter_groups(twin, rates, weight_decay), eps=eps, fused=fused)


def can_fuse(precision: str, clipped: bool, penalised: bool) -> bool:
    """Whether Lightning can do with a fused optimizer.

    Under mixed precision it refuses to clip the gradients of one; and with 16-mixed it leaves them scaled until within
    the optimizer's step, where nothing could be added to them.

    Args:
        precision: of the trainer.
        clipped: whether gradients are clipped.
        penalised: whether the EWC penalty's gradient is added before the step.
    """
    return not (clipped and "mixed" in precision) and not (penalised and precision == "16-mixed")


def parameter_groups(twin: TwinActorCritic, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups, called `actor` or `critic` and decayed or not; every trained parameter is in exactly one.

    Args:
        twin: whose parameters; a shared trunk belongs to the critics.
        rates: step sizes of `actor` and `critic`.
        weight_decay: of deterministic matrices and kernels; Bayesian weights have their prior.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    bayesian = {id(p) for layer in bayesian_layers(twin).values() for p in layer.parameters()}
    for name, parameter in twin.named_parameters():
        if not parameter.requires_grad:
            continue  # a prior function stays what it is
        own_actor_trunk = name.startswith(("trunks.0", "trunks.1")) and not twin.shared_trunk
        owner = "actor" if name.startswith("actors") or own_actor_trunk else "critic"
        spared = id(parameter) in bayesian or name.endswith("bias") or ".gain." in name or ".shift." in name
        decayed = parameter.ndim > 1 and not spared
        groups.setdefault((owner, decayed and weight_decay > 0), []).append(parameter)  # each group is a call
    return [
        {"params": parameters, "lr": rates[owner], "weight_decay": weight_decay * decayed, "name": owner}
        for (owner, decayed), parameters in groups.items()
    ]


def moving_average_pairs(average: TwinActorCritic, newest: TwinActorCritic) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of a moving average and of what it follows, pair by pair; a prior function stays what it is."""
    pairs = zip(average.parameters(), newest.parameters(), strict=True)
    trained = [(old, new) for old, new in pairs if new.requires_grad]
    return [old for old, _ in trained], [new for _, new in trained]
