"""Values to log for one update. `docs/reference/metrics.md` lists every tag with its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.agent.objective import learned_targets
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput
from bayes_rl.types import Batch


@torch.no_grad()
def training_values(
    twin: TwinActorCritic,
    batch: Batch,
    output: TwinOutput,
    targets: Tensor,
    temperature: float,
    parts: dict[str, Tensor],
) -> dict[str, Tensor | float]:
    """Return tags and values to log for one update.

    Args:
        twin: networks, whose posterior is summarised.
        batch: minibatch of B transitions.
        output: the twin's output for the minibatch's observations, by sampled weights (D draws).
        targets: TD targets, `[2, (D,) B]`, in (clipped) return units.
        temperature: T, the weight of the KL divergence in the ELBO.
        parts: `nll` (nats, batch mean), `kl` (nats), `ewc_penalty` and `actor_loss`, scalars.

    Returns:
        Tag to scalar: `train/*` for the update, `kl/*` for each Bayesian layer in nats, and `posterior/*` if there is
        a Bayesian layer.
    """
    nll, kl = parts["nll"], parts["kl"]
    q_values = output.mean_q_values()
    actions = batch.transition.action
    q = q_values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    sampled_q = output.q_values.gather(-1, actions.expand(targets.shape).unsqueeze(-1)).squeeze(-1)
    agree = output.mean_action_probs().argmax(-1) == q_values.argmax(-1)
    low, high = twin.likelihood.bounds
    of_likelihood = learned_targets(output, actions, targets)
    values: dict[str, Tensor | float] = {
        **{f"train/{name}": value for name, value in parts.items()},
        "train/elbo_loss": losses.negative_elbo(nll, kl, batch.num_data, temperature),
        "train/num_data": float(batch.num_data),
        "train/temperature": float(temperature),
        "train/kl_to_nll": temperature * kl / batch.num_data / nll.abs(),
        "train/ewc_to_nll": parts["ewc_penalty"] / nll.abs(),
        "train/q": q.mean(),
        "train/q_max": q_values.max(-1).values.mean(),
        "train/td_error": (targets - sampled_q).abs().mean(),
        "train/clamped_targets": ((of_likelihood < low) | (of_likelihood > high)).float().mean(),
        "train/twin_gap": (output.q_values[0] - output.q_values[1]).abs().mean(),
        "train/actor_agrees": agree.float().mean(),
        "train/policy_entropy": losses.entropy(output.action_logits),
        "train/noise_std": twin.likelihood.std(output.raw).mean(),
    }
    layers = bayesian_layers(twin)
    for name, layer in layers.items():
        values[f"kl/{name}"] = layer.kl_divergence()
    if layers:
        values |= posterior_values(torch.cat([layer.log_var().flatten() for layer in layers.values()]))
    return values


def posterior_values(log_var: Tensor) -> dict[str, Tensor]:
    """Return the tags `posterior/*` and their values.

    Args:
        log_var: log s^2 of all weights with a distribution, a vector.
    """
    return {
        "posterior/std_mean": (0.5 * log_var).exp().mean(),
        "posterior/log_var_min": log_var.min(),
        "posterior/log_var_max": log_var.max(),
    }
