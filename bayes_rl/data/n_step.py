"""Returns of stored steps: n-step returns in numpy and in torch, with equal bits, and realised returns.

Step t has the reward r_t, the discount gamma and flags. With k the number of steps up to and including the first end
of an episode in the window, and k = n without an end:

    return    r^(n)_t = sum_{i < k} gamma^i r_{t+i}
    discount  gamma^k, or 0 if step t + k - 1 is absorbing

A termination is absorbing, and with `life_loss` "discount" a lost life is, too. A truncation ends the sum, but the
return still bootstraps from the episode's final screen.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.errors import check, check_choice

TERMINATED, TRUNCATED, LIFE_LOST, LAST_SCREEN = 1, 2, 4, 8
"""Bits of a slot's flags. `LAST_SCREEN` marks an episode's final screen, from which no step was taken."""

LIFE_LOSS = ("none", "discount", "penalty")
"""Effects of a lost life: none, a discount of 0, or a penalty of 1, which a termination has as well."""


class NStepReturn(NamedTuple):
    """n-step returns of a minibatch, as numpy arrays or as tensors.

    Attributes:
        reward: r^(n), `[B]` float64.
        discount: gamma^k, or 0 at an absorbing step, `[B]` float64.
        steps: k, `[B]` int64.
    """

    reward: Any
    discount: Any
    steps: Any


def check_return_rules(n_step: int, gamma: float, life_loss: str, reward_clip: float | None) -> None:
    """Raise `ConfigError` unless n-step returns can be computed by these rules."""
    check(n_step >= 1, "data.replay.n_step", n_step, "must be at least 1 step")
    check(0 <= gamma <= 1, "data.replay.gamma", gamma, "must lie in [0, 1]")
    check_choice("data.replay.life_loss", life_loss, LIFE_LOSS)
    check(reward_clip is None or reward_clip > 0, "data.replay.reward_clip", reward_clip, "must be positive, or null")


def return_bounds(gamma: float, life_loss: str, reward_clip: float | None, steps: int) -> tuple[float, float]:
    """Return the smallest and the largest discounted return of an episode, in clipped return units.

    Args:
        gamma: discount per agent step.
        life_loss: one of `LIFE_LOSS`; the penalty of a lost life is not clipped.
        reward_clip: largest size of a reward; None, for raw rewards, makes the bounds infinite.
        steps: largest number of agent steps of an episode.
    """
    if reward_clip is None:
        return -math.inf, math.inf
    discounted_steps = steps if gamma == 1 else (1 - gamma**steps) / (1 - gamma)
    return -(reward_clip + (life_loss == "penalty")) * discounted_steps, reward_clip * discounted_steps


def discount_powers(gamma: float, n_step: int) -> NDArray[np.float64]:
    """Return gamma^0, ..., gamma^n, `[n + 1]` float64."""
    return np.asarray(gamma ** np.arange(n_step + 1), np.float64)


def n_step_return(
    rewards: NDArray[np.float32],
    flags: NDArray[np.uint8],
    powers: NDArray[np.float64],
    life_loss: str,
    reward_clip: float | None,
) -> NStepReturn:
    """Return r^(n)_t = sum_{i < k} gamma^i r_{t+i}, gamma^k and k of windows of n steps, in numpy.

    Args:
        rewards: raw rewards r_t, ..., r_{t+n-1}, `[B, n]`.
        flags: flags of the same steps, `[B, n]`.
        powers: `discount_powers(gamma, n)`, `[n + 1]` float64.
        life_loss: one of `LIFE_LOSS`.
        reward_clip: largest size of a reward; None leaves rewards raw. The penalty of a lost life is not clipped.
    """
    reward, absorbing = _learned_rewards(rewards, flags, life_loss, reward_clip)
    ends = absorbing | ((flags & TRUNCATED) > 0)
    taken: NDArray[np.bool_] = np.cumsum(ends, 1) - ends == 0  # steps up to and including the first end
    k: NDArray[np.int64] = taken.sum(1)
    # Python's sum adds one step after the other, which rounds equally on every device.
    total = sum((reward * taken * powers[:-1]).T, np.zeros(len(k)))
    return NStepReturn(total, powers[k] * ~absorbing[np.arange(len(k)), k - 1], k)


def _learned_rewards(
    rewards: NDArray[np.float32], flags: NDArray[np.uint8], life_loss: str, reward_clip: float | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the rewards as the learner reads them, and whether each step is absorbing, shaped as `rewards`."""
    reward = np.asarray(rewards, np.float64)
    if reward_clip is not None:
        reward = reward.clip(-reward_clip, reward_clip)
    if life_loss == "penalty":
        reward = reward - ((flags & (LIFE_LOST | TERMINATED)) > 0)
    return reward, (flags & (TERMINATED | (LIFE_LOST if life_loss == "discount" else 0))) > 0


def realised_returns(
    rewards: NDArray[np.float32], flags: NDArray[np.uint8], gamma: float, life_loss: str, reward_clip: float | None
) -> NDArray[np.float64]:
    """Return G_t = r_t + gamma G_{t+1} of every step of an episode that has ended, `[T]` float64.

    At an absorbing step G_t = r_t. After the last absorbing step of a truncated episode G_t is NaN, because the rewards
    that would have followed are not known.

    Args:
        rewards: raw rewards of the episode's steps, in order, `[T]`.
        flags: flags of the same steps, `[T]`.
        gamma: discount per agent step.
        life_loss: one of `LIFE_LOSS`.
        reward_clip: largest size of a reward; None leaves rewards raw.
    """
    reward, absorbing = _learned_rewards(rewards, flags, life_loss, reward_clip)
    value, returns = math.nan, []
    for r, last in zip(reward[::-1].tolist(), absorbing[::-1].tolist(), strict=True):
        value = r if last else r + gamma * value
        returns.append(value)
    return np.array(returns[::-1], np.float64)


def n_step_return_torch(
    rewards: Tensor, flags: Tensor, powers: Tensor, life_loss: str, reward_clip: float | None
) -> NStepReturn:
    """Return r^(n)_t = sum_{i < k} gamma^i r_{t+i}, gamma^k and k of windows of n steps, in torch on any device.

    Args:
        rewards: raw rewards r_t, ..., r_{t+n-1}, `[B, n]` float64.
        flags: flags of the same steps, `[B, n]` uint8.
        powers: `discount_powers(gamma, n)`, `[n + 1]` float64.
        life_loss: one of `LIFE_LOSS`.
        reward_clip: largest size of a reward; None leaves rewards raw. The penalty of a lost life is not clipped.
    """
    reward = rewards
    if reward_clip is not None:
        reward = reward.clamp(-reward_clip, reward_clip)
    if life_loss == "penalty":
        reward = reward - ((flags & (LIFE_LOST | TERMINATED)) > 0).to(reward.dtype)
    absorbing = (flags & (TERMINATED | (LIFE_LOST if life_loss == "discount" else 0))) > 0
    ends = (absorbing | ((flags & TRUNCATED) > 0)).long()
    taken = ends.cumsum(1) - ends == 0
    k = taken.sum(1)
    total = sum((reward * taken * powers[:-1]).unbind(1), torch.zeros_like(reward[:, 0]))
    return NStepReturn(total, powers[k] * ~absorbing.gather(1, k[:, None] - 1)[:, 0], k)
