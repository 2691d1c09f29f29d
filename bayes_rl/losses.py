"""Formulas of the objective as pure functions of tensors: read this file first.

`total_loss` in `agent/objective.py` adds the terms up; `agent/module.py` adds the gradient of the EWC penalty.

The other formulas: KL divergences from the prior are in `bayes/priors.py` (and families in `bayes/posteriors/`),
likelihoods in `bayes/likelihoods.py`, n-step returns in `data/n_step.py`, EWC in `continual/ewc.py`.

The whole loss::

    loss = nll + (temperature / num_data) * kl      (the critics' negative ELBO)
         + actor_loss                               (gradients kept apart by `detach`)
         + ewc_penalty                              (by its gradient, added after the backward pass)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bayes_rl.errors import check_same_shape


def expected_value(action_probs: Tensor, q_values: Tensor) -> Tensor:
    """Return Q(s, a) = <a, Q(s, .)> for a point a of the action simplex: two `[..., A]` to `[...]`."""
    check_same_shape(action_probs=action_probs, q_values=q_values)
    return (action_probs * q_values).sum(-1)


def td_target(reward: Tensor, discount: Tensor, next_action_probs: Tensor, next_q_values: Tensor) -> Tensor:
    """Return the n-step target r^(n) + discount * <mu'(s'), Q'(s', .)>; no gradient flows through it.

    Args:
        reward: `[...]`, discounted n-step sum.
        discount: `[...]`, gamma^k, 0 where the episode terminated.
        next_action_probs: `[..., A]`, the target actor at s_{t+k}.
        next_q_values: `[..., A]`, the target critic at s_{t+k}.

    Returns:
        `[...]` float32.

    Raises:
        ValueError: if shapes do not agree.
    """
    bootstrap = expected_value(next_action_probs, next_q_values)
    check_same_shape(reward=reward, discount=discount, bootstrap=bootstrap)
    return (reward + discount * bootstrap).detach()


def bootstrapped_variance(
    discount: Tensor, next_action_probs: Tensor, next_q_values: Tensor, next_std: Tensor
) -> Tensor:
    """Return the variance of the return around its TD target, from the variances of the next state's returns.

    The return after s' is a mixture over actions: its variance is the mean of the actions' variances plus the variance
    of the actions' values. No gradient flows through the result.

    Args:
        discount: `[...]`, gamma^k, 0 where the episode terminated.
        next_action_probs: `[..., A]`, the target actor at s_{t+k}.
        next_q_values: `[..., A]`, the target critic at s_{t+k}.
        next_std: `[..., A]`, standard deviations of the returns at s_{t+k}.

    Returns:
        `[...]` float32, >= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    check_same_shape(next_q_values=next_q_values, next_std=next_std)
    value = expected_value(next_action_probs, next_q_values)
    variance = expected_value(next_action_probs, next_std.square() + (next_q_values - value[..., None]).square())
    check_same_shape(discount=discount, variance=variance)
    return (discount.square() * variance).detach()


def greedy(q_values: Tensor) -> Tensor:
    """Return the corner of the simplex with the greatest value: `[..., A]` to a one-hot `[..., A]`."""
    return F.one_hot(q_values.argmax(-1), q_values.shape[-1]).to(q_values.dtype)


def dpg_loss(action_logits: Tensor, q_values: Tensor) -> Tensor:
    """Return the loss of the deterministic policy gradient: minus the batch mean of <softmax(logits), Q>.

    Its gradient is the exact all-action gradient sum_a grad mu_a Q_a; `q_values` `[B, A]` are constants.
    """
    return -expected_value(action_logits.softmax(-1), q_values.detach()).mean()


def cross_entropy_loss(action_logits: Tensor, q_values: Tensor, policy_temperature: float) -> Tensor:
    """Return the cross-entropy from softmax(Q / policy_temperature) to the actor, in nats: a scalar, the batch mean.

    Unlike `dpg_loss` its gradient has no factor mu_a, so a saturated actor still learns. `q_values` `[B, A]`
    are constants, in return units, as is `policy_temperature`.
    """
    check_same_shape(action_logits=action_logits, q_values=q_values)
    return F.cross_entropy(action_logits, (q_values.detach() / policy_temperature).softmax(-1))


def entropy(action_logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats, mean over the leading axes: a scalar in [0, log A]."""
    log_probs = action_logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def negative_elbo(nll: Tensor, kl: Tensor, num_data: int, temperature: float) -> Tensor:
    """Return the negative ELBO per datum: mean nll + (temperature / num_data) KL(q || p), in nats.

    `nll` is a mean over the batch, `kl` a sum over all weights; with `temperature` 1 and `num_data` = N this is
    -ELBO / N exactly (Blundell et al. 2015, arXiv:1505.05424, written per datum), that of the regression on the present
    TD targets, which move with the networks.
    """
    return nll + (temperature / num_data) * kl


def quadratic_penalty(parameter: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    """Return half of sum_i F_i (w_i - w*_i)^2: the EWC term of one tensor, before lambda. A scalar >= 0."""
    check_same_shape(parameter=parameter, anchor=anchor, fisher=fisher)
    return 0.5 * (fisher * (parameter - anchor).square()).sum()
