"""n-step returns against tables that read as their definition, and numpy against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bayes_rl.data.n_step import (
    LIFE_LOSS,
    LIFE_LOST,
    TERMINATED,
    TRUNCATED,
    discount_powers,
    n_step_return,
    n_step_return_torch,
    realised_returns,
)
from tests.helpers.replay_oracle import Recorder, Rules
from tests.helpers.replays import (
    add,
    every_slot,
    replay_of,
    screen,
    screens_of,
)

# Rewards of an episode's steps, events of its steps; then for n = 3 and gamma = 1/2, per step: return, discount,
# index of the screen bootstrapped from. T terminated, U truncated, L life lost. Letters stand at their step.
#   r^(n)_t = sum_{i < k} gamma^i r_{t+i}; discount = gamma^k; k = 3 or less where the episode ends.
EPISODES = {
    # name: (life_loss, rewards, events, [(return, discount, next screen), ...])
    "running": ("none", [1, 2, 4, 8, 16], ["", "", "", "", ""], [(3, 1 / 8, 3), (6, 1 / 8, 4)]),
    "terminated": (
        "none",
        [1, 2, 4, 8],
        ["", "", "", "T"],
        [(3, 1 / 8, 3), (6, 0, 4), (8, 0, 4), (8, 0, 4)],
    ),
    "truncated": (
        "none",
        [1, 2, 4, 8],
        ["", "", "", "U"],
        [(3, 1 / 8, 3), (6, 1 / 8, 4), (8, 1 / 4, 4), (8, 1 / 2, 4)],
    ),
    "terminated at the limit": ("none", [1, 2], ["", "TU"], [(2, 0, 2), (2, 0, 2)]),
    "one step, terminated": ("none", [5], ["T"], [(5, 0, 1)]),
    "one step, truncated": ("none", [5], ["U"], [(5, 1 / 2, 1)]),
    "life lost, ignored": (
        "none",
        [1, 2, 4, 8, 16],
        ["", "L", "", "", ""],
        [(3, 1 / 8, 3), (6, 1 / 8, 4)],
    ),
    "life lost, discount": (
        "discount",
        [1, 2, 4, 8, 16, 32],
        ["", "L", "", "", "", ""],
        [(2, 0, 2), (2, 0, 2), (12, 1 / 8, 5)],
    ),
    "life lost at truncation, discount": ("discount", [1, 2], ["", "LU"], [(2, 0, 2), (2, 0, 2)]),
    "life lost, penalty": (
        "penalty",
        [1, 2, 4, 8, 16],
        ["", "L", "", "", ""],
        [(1 + 1 / 2 + 1, 1 / 8, 3), (1 + 2 + 2, 1 / 8, 4)],
    ),
    "last life, penalty once": ("penalty", [1, 2], ["", "LT"], [(1.5, 0, 2), (1, 0, 2)]),
    "end without lives, penalty": ("penalty", [1, 2], ["", "T"], [(1.5, 0, 2), (1, 0, 2)]),
    "truncated, no penalty": ("penalty", [1, 2], ["", "U"], [(2, 1 / 4, 2), (2, 1 / 2, 2)]),
}


@pytest.mark.parametrize("name", EPISODES)
def test_truth_table(name: str) -> None:
    life_loss, rewards, events, wanted = EPISODES[name]
    rules = Rules(n_step=3, gamma=0.5, life_loss=life_loss)
    replay, recorder = replay_of(rules, 1, 20), Recorder(1)
    for t, (reward, event) in enumerate(zip(rewards, events, strict=True)):
        add([replay, recorder], [(t, t % 18, reward, event)], [t + 1])
    for t in range(4):  # another episode, whose huge rewards must never be seen
        add([replay], [(50 + t, 0, 1e6, "")], [51 + t])
    count = len(wanted)
    got = replay.transitions(np.zeros(count, np.int64), np.arange(count))
    assert got.reward.tolist() == [w[0] for w in wanted]
    assert got.discount.tolist() == [w[1] for w in wanted]
    assert got.observation.numpy().tolist() == screens_of(list(range(count))).tolist()
    assert got.next_observation.numpy().tolist() == screens_of([w[2] for w in wanted]).tolist()
    assert got.action.tolist() == list(range(count))
    oracle = [recorder.expected(0, t, rules) for t in range(count)]
    assert [(w.reward, w.discount) for w in oracle] == [w[:2] for w in wanted], "the oracle itself is wrong"


@pytest.mark.parametrize(
    ("clip", "rewards", "wanted"),
    [(None, [-5, 0.5, 5], 0.5), (1.0, [-5, 0.5, 5], 0.5), (2.0, [-5, 0.5, 7], 0.5), (1.0, [-5, -5, 7], -1.0)],
)
def test_each_reward_is_clipped_before_the_sum(clip: float | None, rewards: list[float], wanted: float) -> None:
    replay = replay_of(Rules(n_step=3, gamma=1.0, reward_clip=clip), 1, 20)
    for t, reward in enumerate(rewards):
        add([replay], [(t, 0, reward, "")], [t + 1])
    assert replay.transitions(np.array([0]), np.array([0])).reward.tolist() == [wanted]


def test_the_penalty_is_not_clipped_away() -> None:
    replay = replay_of(Rules(n_step=1, life_loss="penalty", reward_clip=1.0), 1, 20)
    add([replay], [(0, 0, -7.0, "L")], [1])
    assert replay.transitions(np.array([0]), np.array([0])).reward.tolist() == [-2.0]


def test_the_extremes_of_gamma() -> None:
    for gamma, reward, discount in ((0.0, 1.0, 0.0), (1.0, 7.0, 1.0)):
        replay = replay_of(Rules(n_step=3, gamma=gamma), 1, 20)
        for t, r in enumerate([1.0, 2.0, 4.0]):
            add([replay], [(t, 0, r, "")], [t + 1])
        got = replay.transitions(np.array([0]), np.array([0]))
        assert (got.reward.item(), got.discount.item()) == (reward, discount)


def test_seed_defect_4_no_bootstrap_across_episode_ends() -> None:
    """Whatever n is, a transition whose window meets a termination has discount 0 and no later reward."""
    rewards, after = [1.0, 1.0, 1.0], 1e6
    for n_step in (1, 2, 3, 4, 8):
        replay = replay_of(Rules(n_step=n_step, gamma=0.9), 1, 40)
        for t, reward in enumerate(rewards):
            add([replay], [(t, 0, reward, "T" if t == 2 else "")], [t + 1])
        for t in range(9):
            add([replay], [(10 + t, 0, after, "")], [11 + t])
        got = replay.transitions(np.zeros(3, np.int64), np.arange(3))
        reaches_the_end = np.arange(3) + n_step >= 3
        assert ((got.discount.numpy() == 0) == reaches_the_end).all()
        assert got.reward.max() <= 3


def test_seed_defect_5_a_return_is_folded_over_its_own_window_with_its_own_power_of_gamma() -> None:
    """The return of step t uses rewards t .. t+k-1 alone, its discount is gamma^k and its next screen is t+k."""
    gamma = 0.5
    for n_step in (1, 2, 4):
        replay = replay_of(Rules(n_step=n_step, gamma=gamma), 1, 40)
        for t in range(20):
            add([replay], [(t, 0, float(2**t), "")], [t + 1])
        (slots, got) = every_slot(replay)
        for i, (_, t) in enumerate(slots):
            assert got.reward[i] == sum(gamma**j * 2 ** (t + j) for j in range(n_step)) == n_step * 2**t
            assert got.discount[i] == gamma**n_step
            assert got.observation[i].tolist() == screen(t).tolist()
            assert got.next_observation[i].tolist() == screen(t + n_step).tolist()


# ------------------------------------------------------------------ the pure functions
def windows(n: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Rewards and flags of random windows, `[500, n]`: every combination of events, ends at every place."""
    rng = np.random.default_rng(n)
    flags = rng.integers(0, 8, (500, n)) * (rng.random((500, n)) < 0.3)
    return rng.normal(0, 3, (500, n)).astype(np.float32), flags.astype(np.uint8)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("life_loss", LIFE_LOSS)
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_returns_in_numpy_and_torch_are_the_equation_to_the_same_bits(
    n: int, life_loss: str, clip: float | None
) -> None:
    rewards, flags = windows(n)
    powers = discount_powers(0.97, n)
    assert powers.tolist() == [0.97**i for i in range(n + 1)]
    got = n_step_return(rewards, flags, powers, life_loss, clip)
    tensors = [torch.from_numpy(x) for x in (rewards.astype(np.float64), flags, powers)]
    other = n_step_return_torch(*tensors, life_loss, clip)
    for a, b in zip(got, other, strict=True):
        assert a.dtype == b.numpy().dtype
        assert a.tobytes() == b.numpy().tobytes()
    for row in range(500):
        total, k, discount = 0.0, 0, None
        for reward, flag in zip(rewards[row].astype(float), flags[row], strict=True):
            size = np.inf if clip is None else clip
            penalty = life_loss == "penalty" and bool(flag & (LIFE_LOST | TERMINATED))
            total += 0.97**k * (min(max(reward, -size), size) - penalty)
            k += 1
            if flag & TERMINATED or (life_loss == "discount" and flag & LIFE_LOST):
                discount = 0.0
            if discount == 0 or flag & TRUNCATED:
                break
        assert got.steps[row] == k
        assert got.discount[row] == (0.97**k if discount is None else discount)
        assert got.reward[row] == pytest.approx(total, rel=1e-13, abs=1e-13)


def test_realised_returns_by_hand() -> None:
    """After the last absorbing step of a truncated episode the return is not known."""
    rewards = np.array([1, 2, 4, 8], np.float32)
    flags = np.array([0, LIFE_LOST, 0, TRUNCATED], np.uint8)
    nan = math.nan
    np.testing.assert_array_equal(realised_returns(rewards, flags, 0.5, "discount", None), [2, 2, nan, nan])
    np.testing.assert_array_equal(realised_returns(rewards, flags, 0.5, "none", None), [nan] * 4)
    flags[-1] = TERMINATED
    np.testing.assert_array_equal(realised_returns(rewards, flags, 0.5, "none", None), [4, 6, 8, 8])
    np.testing.assert_array_equal(realised_returns(rewards, flags, 0.5, "penalty", 3), [2.5, 3, 4, 2])
