"""The objective of one update, from the networks and a minibatch to the terms of the loss and their sum.

`objective_terms` computes the terms, `total_loss` adds them up. The formulas are in `bayes_rl/losses.py`. Every
function here is pure.

Words and shapes:

* A pair is one actor and one critic. The twin holds two pairs, number 0 and number 1.
* The prior function (`networks/prior_functions.py`) is a fixed random function that is added to the learned Q-values.
  It is not the prior distribution of the weights, which is a term of the KL divergence.
* `D` is the number of draws of all weights, `B` the size of the minibatch, `A` the number of actions and `n` the number
  of parameters of the likelihood of one return. In `[2, (D,) B]` the axis of D exists only if the weight mode is
  `Draws`. With `"mean"` and `"sample"` the shape is `[2, B]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.agent.settings import ObjectiveSettings
from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput
from bayes_rl.types import Transition
from bayes_rl.utils.side_thread import begin


class Targets(NamedTuple):
    """Targets of a minibatch, without gradient, in units of the training reward.

    Attributes:
        values: TD targets of both pairs `[2, (D,) B]`.
        variance: variance of the return around its TD target `[2, (D,) B]`, or None if the likelihood does not learn
            it. It serves where the realised return of a transition is not known.
    """

    values: Tensor
    variance: Tensor | None = None


class ObjectiveTerms(NamedTuple):
    """Terms of the loss of one update, and the detached tensors that are logged beside them.

    Attributes:
        nll: -log likelihood of the targets in nats, summed over the trained pairs, mean over draws and batch; a scalar.
        kl: KL(q || prior) in nats, summed over all Bayesian weights; a scalar. If one pair is trained, that of its
            heads and half of that of a shared trunk.
        actor_loss: loss of the actors, summed over the trained pairs; a scalar.
        targets: TD targets of both pairs `[2, (D,) B]` in units of the training reward, without gradient.
        output: logits and Q-values of the twin for the observations, without gradient and without the
            parameters that `TwinOutput` carries for the KL divergence.
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
    weight_mode: WeightMode,
    pairs: Sequence[int],
    task: int,
    settings: ObjectiveSettings,
) -> ObjectiveTerms:
    """Return the terms of the loss.

    `compile_update` captures this function, as one graph for each value of `pairs` and `task`. Whatever has a new value
    in every update enters as a tensor or stands outside, such as the number of data in `total_loss`.

    Args:
        twin: the networks that learn.
        target_twin: moving average of `twin`, or None to take each pair's targets from the other pair.
        transition: the minibatch.
        weight_mode: how the networks treat the distributions over weights, from `PosteriorFamily.training_mode`.
        pairs: numbers of the pairs that are trained: (0, 1), (0,) or (1,).
        task: number of the task that the minibatch comes from.
        settings: settings of the objective.
    """
    # A moving average has networks of its own, so that a second thread can compute the targets beside the values.
    beside = target_twin is not None and twin.uses_side_thread(transition.observation)
    find_targets = begin(partial(td_targets, twin, target_twin, transition, weight_mode, task, settings), beside)
    output: TwinOutput = twin(_with_draw_axis(transition.observation, weight_mode), weight_mode, task)
    targets = find_targets()
    nll = critic_nll(twin, output, transition, targets, pairs)
    kl = twin.kl_divergence(pairs, output, task)
    return ObjectiveTerms(nll, kl, actor_loss(output, pairs, settings), targets.values, _detached(output))


def total_loss(terms: ObjectiveTerms, num_data: int, settings: ObjectiveSettings) -> Tensor:
    """Return the loss of one update, without the EWC penalty: the critics' negative ELBO plus the actors' loss.

    The gradient of the EWC penalty is added after the backward pass, in `VariationalActorCritic`.

    Args:
        terms: terms of the loss.
        num_data: N of the ELBO, the number of transitions in the replay buffer.
        settings: settings of the objective.
    """
    return losses.negative_elbo(terms.nll, terms.kl, num_data, settings.kl_temperature) + terms.actor_loss


@torch.no_grad()
def td_targets(
    twin: TwinActorCritic,
    target_twin: TwinActorCritic | None,
    transition: Transition,
    weight_mode: WeightMode,
    task: int,
    settings: ObjectiveSettings,
) -> Targets:
    """Return the targets of both pairs.

    With `Draws`, the targets of a draw are computed by the index of the same draw, without the diagonal part of the
    weights. Otherwise the targets are computed by the mean weights.

    Args:
        twin: the networks that learn.
        target_twin: moving average of `twin`, or None to take each pair's targets from the other pair.
        transition: the minibatch.
        weight_mode: how the update evaluates the values that learn from these targets.
        task: number of the task that the minibatch comes from.
        settings: settings of the objective.
    """
    # An empty `noise` leaves the diagonal part out; None would draw it afresh for every output.
    target_mode: WeightMode = replace(weight_mode, noise={}) if isinstance(weight_mode, Draws) else "mean"
    source = twin if target_twin is None else target_twin
    output: TwinOutput = source(_with_draw_axis(transition.next_observation, target_mode), target_mode, task)

    def for_pairs(x: Tensor) -> Tensor:
        """Return what each pair learns from: the other pair, or the mean of both pairs of the moving average."""
        return x.flip(0) if target_twin is None else x.mean(0, keepdim=True)

    probs, q_values = for_pairs(output.action_logits.softmax(-1)), for_pairs(output.q_values)
    if settings.bootstrap == "greedy":
        probs = losses.greedy(q_values)
    reward, discount = (x.expand(q_values.shape[:-1]) for x in (transition.reward, transition.discount))
    values = losses.td_target(reward, discount, probs, q_values).expand(2, *q_values.shape[1:-1])
    variance = None
    if twin.likelihood.bootstraps_variance:
        std = for_pairs(twin.likelihood.std(output.raw))
        variance = losses.bootstrapped_variance(discount, probs, q_values, std).expand_as(values)
    return Targets(values, variance)


def learned_targets(output: TwinOutput, action: Tensor, targets: Tensor) -> Tensor:
    """Subtract the prior function from targets of Q: the likelihood describes the learned values alone.

    Args:
        output: outputs of the twin.
        action: actions `[B]`.
        targets: TD targets or returns `[2, (D,) B]` in clipped return units.
    """
    if output.prior_values is None:
        return targets
    prior_values = output.prior_values.expand_as(output.q_values)
    return targets - prior_values.gather(-1, action.expand(targets.shape)[..., None]).squeeze(-1)


def critic_nll(
    twin: TwinActorCritic, output: TwinOutput, transition: Transition, targets: Targets, pairs: Sequence[int]
) -> Tensor:
    """Return -log likelihood of the targets in nats: summed over the trained pairs, mean over draws and batch.

    Args:
        twin: the networks, which hold the likelihood.
        output: outputs of the twin for the observations of `transition`.
        transition: the minibatch.
        targets: targets of the minibatch.
        pairs: numbers of the pairs that are trained.
    """
    action = transition.action.expand(targets.values.shape)[..., None, None]
    raw = output.raw.gather(-2, action.expand(*action.shape[:-1], output.raw.shape[-1])).squeeze(-2)
    values = learned_targets(output, transition.action, targets.values)
    if targets.variance is None:
        nll = twin.likelihood.nll(raw, values)
    else:
        realised = transition.realised_return
        if realised is not None:
            realised = learned_targets(output, transition.action, realised.expand_as(targets.values))
        nll = twin.likelihood.return_nll(raw, values, targets.variance, realised)
    # The mean is over trained pairs, draws and batch. Times the number of pairs, it is a sum over the pairs.
    return len(pairs) * _of_pairs(pairs, nll).mean()


def actor_loss(output: TwinOutput, pairs: Sequence[int], settings: ObjectiveSettings) -> Tensor:
    """Return the loss that trains the actors by the mean of both critics: a scalar, summed over the trained pairs.

    Args:
        output: outputs of the twin for the observations of the minibatch.
        pairs: numbers of the pairs that are trained.
        settings: settings of the objective.
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
    return len(pairs) * mean  # a sum over the trained pairs, as in `critic_nll`


def _of_pairs(pairs: Sequence[int], values: Tensor) -> Tensor:
    """Return the rows of `values` `[2, ...]` that belong to the given pairs."""
    return values if len(pairs) == 2 else values.narrow(0, pairs[0], 1)


def _with_draw_axis(observation: Tensor, weight_mode: WeightMode) -> Tensor:
    """Return `[B, ...]` as `[1, B, ...]` if the mode is `Draws`, whose inputs have an axis of draws in front."""
    return observation[None] if isinstance(weight_mode, Draws) else observation


def _detached(output: TwinOutput) -> TwinOutput:
    """Return the output without gradients, and without the layers that it carries for the KL divergence."""
    prior_values = None if output.prior_values is None else output.prior_values.detach()
    return TwinOutput(output.action_logits.detach(), output.raw.detach(), output.q_values.detach(), prior_values)
