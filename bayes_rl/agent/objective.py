"""The objective of one update, from the networks and a minibatch to the terms of the loss.

Read it from top to bottom, after `bayes_rl/losses.py`, which holds the formulas. Every function here is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.agent.settings import ObjectiveSettings
from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput
from bayes_rl.types import Transition


class ObjectiveTerms(NamedTuple):
    """Terms of the loss of one update; `targets` and `output` are detached, for logging.

    Attributes:
        nll: -log likelihood of the targets in nats, summed over the trained pairs, mean over draws and batch; a scalar.
        kl: KL(q || prior) in nats, summed over all Bayesian weights of the trained pairs; a scalar.
        actor_loss: loss of the actors, summed over the trained pairs; a scalar.
        targets: TD targets `[2, (D,) B]` in clipped return units, of both pairs.
        output: outputs of the twin for the observations, by sampled weights, without the heads' posterior.
    """

    nll: Tensor
    kl: Tensor
    actor_loss: Tensor
    targets: Tensor
    output: TwinOutput


def objective_terms(
    twin: TwinActorCritic,
    target_twin: TwinActorCritic | None,
    transition: Transition,
    weights: WeightMode,
    pairs: Sequence[int],
    task: int,
    settings: ObjectiveSettings,
) -> ObjectiveTerms:
    """Return all terms that have one graph at every update, so that `compile_update` can capture this function.

    Args:
        twin: the networks that learn.
        target_twin: moving average of `twin`, or None to take each pair's targets from the other pair.
        transition: the minibatch.
        weights: treatment of the weight distributions, from `PosteriorFamily.training_mode`.
        pairs: pairs that learn: (0, 1), (0,) or (1,).
        task: number of the task that the minibatch comes from.
        settings: of the objective.
    """
    targets = td_targets(twin, target_twin, transition, weights, task, settings)
    output: TwinOutput = twin(_with_draw_axis(transition.observation, weights), weights, task)
    nll = critic_nll(twin, output, transition, targets, pairs)
    kl = twin.kl_divergence(pairs, output, task)
    return ObjectiveTerms(nll, kl, actor_loss(output, pairs, settings), targets, _detached(output))


@torch.no_grad()
def td_targets(
    twin: TwinActorCritic,
    target_twin: TwinActorCritic | None,
    transition: Transition,
    weights: WeightMode,
    task: int,
    settings: ObjectiveSettings,
) -> Tensor:
    """Return TD targets `[2, (D,) B]` of both pairs, in clipped return units.

    With `Draws` every draw has targets of its own, by the draw that its values come from; otherwise the targets come
    from mean weights.

    Args:
        twin: the networks that learn.
        target_twin: moving average of `twin`, or None to take each pair's targets from the other pair.
        transition: the minibatch.
        weights: treatment of the weight distributions of the values.
        task: number of the task that the minibatch comes from.
        settings: of the objective.
    """
    weights = replace(weights, noise={}) if isinstance(weights, Draws) else "mean"
    source = twin if target_twin is None else target_twin
    output: TwinOutput = source(_with_draw_axis(transition.next_observation, weights), weights, task)
    probs, q_values = output.action_logits.softmax(-1), output.q_values
    if target_twin is None:
        probs, q_values = probs.flip(0), q_values.flip(0)  # pair 0 learns from pair 1, and pair 1 from pair 0
    else:
        probs, q_values = (x.mean(0, keepdim=True) for x in (probs, q_values))  # both pairs have one target
    if settings.bootstrap == "greedy":
        probs = losses.greedy(q_values)
    reward, discount = (x.expand(q_values.shape[:-1]) for x in (transition.reward, transition.discount))
    return losses.td_target(reward, discount, probs, q_values).expand(2, *q_values.shape[1:-1])


def critic_nll(
    twin: TwinActorCritic, output: TwinOutput, transition: Transition, targets: Tensor, pairs: Sequence[int]
) -> Tensor:
    """Return -log likelihood of the targets in nats: summed over the trained pairs, mean over draws and batch.

    Args:
        twin: the networks, whose likelihood is taken.
        output: outputs of the twin for the observations of `transition`.
        transition: the minibatch.
        targets: TD targets `[2, (D,) B]` in clipped return units.
        pairs: pairs that learn.
    """
    action = transition.action.expand(targets.shape)[..., None, None]
    raw = output.raw.gather(-2, action.expand(*action.shape[:-1], output.raw.shape[-1])).squeeze(-2)
    if output.prior is not None:  # the learned part explains the target less the prior function's value
        targets = targets - output.prior.expand_as(output.q_values).gather(-1, action[..., 0]).squeeze(-1)
    return len(pairs) * _of_pairs(pairs, twin.likelihood.nll(raw, targets)).mean()


def actor_loss(output: TwinOutput, pairs: Sequence[int], settings: ObjectiveSettings) -> Tensor:
    """Return the loss with which the actors climb the mean of both critics: a scalar, summed over the trained pairs.

    Args:
        output: outputs of the twin for the observations of the minibatch.
        pairs: pairs that learn.
        settings: of the objective.
    """
    logits = _of_pairs(pairs, output.action_logits)
    q_values = output.q_values.detach().mean(0).expand_as(logits)
    if settings.actor_loss == "dpg":
        mean = losses.dpg_loss(logits, q_values)
    else:
        flat = logits.flatten(0, -2), q_values.flatten(0, -2)
        mean = losses.cross_entropy_loss(*flat, settings.policy_temperature)
    if settings.entropy_weight:
        mean = mean - settings.entropy_weight * losses.entropy(logits)
    return len(pairs) * mean


def _of_pairs(pairs: Sequence[int], values: Tensor) -> Tensor:
    return values if len(pairs) == 2 else values.narrow(0, pairs[0], 1)


def _with_draw_axis(observation: Tensor, weights: WeightMode) -> Tensor:
    return observation[None] if isinstance(weights, Draws) else observation


def _detached(output: TwinOutput) -> TwinOutput:
    """Return the output without gradients and without the posterior."""
    prior = None if output.prior is None else output.prior.detach()
    return TwinOutput(output.action_logits.detach(), output.raw.detach(), output.q_values.detach(), prior)
