"""Optimizers of all networks, and pairs of parameters for the moving average of the networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.agent.natural_gradient import IVON
from bayes_rl.agent.settings import OptimizerSettings
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.weight_posterior import WeightPosterior
from bayes_rl.networks.actor_critic import TwinActorCritic


def make_optimizer(
    twin: TwinActorCritic, rates: dict[str, float], weight_decay: float, eps: float, fused: bool
) -> torch.optim.AdamW:
    """Build Adam with decoupled weight decay (AdamW) for all trained parameters.

    Args:
        twin: networks to train.
        rates: learning rates, keys `actor` and `critic`.
        weight_decay: decay of deterministic matrices and kernels per step, as a multiple of the learning rate.
        eps: number that Adam adds to the denominator, >= 0.
        fused: whether one pass over memory updates all parameters of a group.

    Returns:
        The optimizer, with the groups of `parameter_groups`.
    """
    return torch.optim.AdamW(parameter_groups(twin, rates, weight_decay), eps=eps, fused=fused)


def make_ivon(
    twin: TwinActorCritic, posterior: WeightPosterior, rates: dict[str, float], precision_rate: float
) -> IVON:
    """Build the natural-gradient optimizer of means and variances for all trained parameters.

    Args:
        twin: networks to train, whose parameters are the means.
        posterior: distribution over the trained parameters.
        rates: step sizes, keys `actor` and `critic`, as shares of a Newton step.
        precision_rate: weight of the newest estimate in the curvature.

    Returns:
        The optimizer, with the groups of `parameter_groups`.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in trained_parameters(twin).items()}
    return IVON(parameter_groups(twin, rates, 0.0), names, posterior, precision_rate)


def trained_parameters(twin: TwinActorCritic) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimizer changes, by name. Those of a prior function are fixed."""
    return {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}


def can_fuse(precision: str, clipped: bool, penalised: bool) -> bool:
    """Return whether Lightning supports a fused optimizer with these settings.

    Under mixed precision, Lightning refuses to clip the gradients of a fused optimizer. With 16-mixed, the gradients
    of a fused optimizer remain scaled until its step begins, so that the penalty's gradient cannot be added to them.

    Args:
        precision: the trainer's precision, for example `32-true` or `16-mixed`.
        clipped: whether gradients are clipped.
        penalised: whether the EWC penalty's gradient is added before the step.

    Returns:
        True if the optimizer can be fused.
    """
    return not (clipped and "mixed" in precision) and not (penalised and precision == "16-mixed")


def parameter_groups(twin: TwinActorCritic, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Return groups of parameters by owner and weight decay. Every trained parameter is in exactly one group.

    Args:
        twin: networks to train. A shared trunk belongs to the critics.
        rates: learning rates, keys `actor` and `critic`.
        weight_decay: decay of deterministic matrices and kernels. Bayesian weights have a prior instead.

    Returns:
        Dictionaries with `params`, `lr`, `weight_decay` and `name` (`actor` or `critic`). No group is empty.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    bayesian = {id(p) for layer in bayesian_layers(twin).values() for p in layer.parameters()}
    for name, parameter in trained_parameters(twin).items():
        in_actor_trunk = name.startswith(("trunks.0", "trunks.1")) and not twin.shared_trunk
        owner = "actor" if name.startswith("actors") or in_actor_trunk else "critic"
        exempt = id(parameter) in bayesian or name.endswith("bias") or ".gain." in name or ".shift." in name
        decayed = parameter.ndim > 1 and not exempt
        # Without weight decay, the key ignores `decayed`: fewer groups mean fewer calls in a step.
        groups.setdefault((owner, decayed and weight_decay > 0), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[owner], "weight_decay": weight_decay * decayed, "name": owner}
        for (owner, decayed), parameters in groups.items()
    ]


@torch.no_grad()
def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Copy Adam's averages of each parameter into the memory layout of the parameter.

    A fused step walks a parameter and its averages in the order of memory, without comparing their strides. A
    checkpoint of another version can hold averages with other strides.

    Args:
        optimizer: whose state a checkpoint may have restored.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def scheduled_share(settings: OptimizerSettings, frames: int) -> float:
    """Return the share of the step sizes that the schedule leaves, in [0, 1].

    Args:
        settings: of the optimizer.
        frames: environment frames since learning began.
    """
    warm_up = min(1.0, frames / settings.warmup_frames) if settings.warmup_frames else 1.0
    if settings.schedule == "constant":
        return warm_up
    falling = max(0, frames - settings.warmup_frames - settings.hold_frames)
    progress = min(1.0, falling / settings.decay_frames)
    fall = progress if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return warm_up * (1 + fall * (settings.final_share - 1))


def set_rates(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, frames: int) -> None:
    """Set the step sizes of all groups by the schedule. They are a function of the frames: there is no state to save.

    Args:
        optimizer: with the groups of `parameter_groups`.
        settings: of the optimizer.
        frames: environment frames since learning began.
    """
    share = scheduled_share(settings, frames)
    rates = {"actor": settings.actor_lr, "critic": settings.critic_lr}
    for group in optimizer.param_groups:
        group["lr"] = share * rates[group["name"]]


def moving_average_pairs(average: TwinActorCritic, newest: TwinActorCritic) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trained parameters of a moving average and those of the networks that it averages.

    Parameters of prior functions and of random features are fixed and left out.

    Args:
        average: networks whose parameters are the moving average.
        newest: networks that the optimizer trains, with the trained parameters of `average`.

    Returns:
        Two lists of equal length: parameters of `average`, and the corresponding parameters of `newest`.

    Raises:
        ValueError: if the networks have different trained parameters.
    """
    trained = {name: p for name, p in newest.named_parameters() if p.requires_grad}
    averages = {name: p for name, p in average.named_parameters() if name in trained}
    if averages.keys() != trained.keys():
        raise ValueError(f"the moving average has other parameters: {sorted(averages.keys() ^ trained.keys())}")
    return [averages[name] for name in trained], list(trained.values())
