"""What is logged of one update; `docs/metrics.md` lists every tag with its equation."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.bayes import bayesian_layers
from bayes_rl.networks import Twin, TwinOutput
from bayes_rl.types import Batch


@torch.no_grad()
def training_values(
    twin: Twin, batch: Batch, output: TwinOutput, targets: Tensor, temperature: float, parts: dict[str, Tensor]
) -> dict[str, Tensor | float]:
    """Tags and values of one update.

    Args:
        twin: the networks, for a summary of their posterior.
        batch: the minibatch.
        output: what the twin said of it, by sampled weights.
        targets: TD targets, `[2, B]`.
        temperature: T of the ELBO.
        parts: `nll`, `kl`, `ewc_penalty` and `actor_loss`, scalars.
    """
    nll, kl = parts["nll"], parts["kl"]
    q_values = output.q_values.mean(0)
    actions = batch.transition.action.expand(2, -1).unsqueeze(-1)
    q = q_values.gather(-1, actions[0]).squeeze(-1)
    log_var = torch.cat([layer.log_var().flatten() for layer in bayesian_layers(twin)])
    agree = output.mean_action_probs().argmax(-1) == q_values.argmax(-1)
    return {
        **{f"train/{name}": value for name, value in parts.items()},
        "train/elbo_loss": losses.negative_elbo(nll, kl, batch.num_data, temperature),
        "train/num_data": float(batch.num_data),
        "train/temperature": float(temperature),
        "train/kl_to_nll": temperature * kl / batch.num_data / nll.abs(),
        "train/ewc_to_nll": parts["ewc_penalty"] / nll.abs(),
        "train/q": q.mean(),
        "train/q_max": q_values.max(-1).values.mean(),
        "train/td_error": (targets - output.q_values.gather(-1, actions).squeeze(-1)).abs().mean(),
        "train/twin_gap": (output.q_values[0] - output.q_values[1]).abs().mean(),
        "train/actor_agrees": agree.float().mean(),
        "train/policy_entropy": losses.entropy(output.action_logits),
        "posterior/std_mean": (0.5 * log_var).exp().mean(),
        "posterior/log_var_min": log_var.min(),
        "posterior/log_var_max": log_var.max(),
    }
