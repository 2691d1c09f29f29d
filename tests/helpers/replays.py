"""Small replays with random episodes, and what they must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.types import Transition
from tests.helpers.replay_oracle import Recorder, Rules

UINT8 = np.dtype(np.uint8)
SHAPE = (1, 2, 2)
# Returns are summed in float64 and rounded once to float32 (relative error 2^-24).
RTOL, ATOL = 2.0**-22, 2.0**-40


class Seen(ReplayBuffer):
    """A replay that remembers which slots it was asked for last."""

    asked: tuple[NDArray[np.int64], NDArray[np.int64]]

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        self.asked = (env.copy(), number.copy())
        return super().transitions(env, number)


class EveryIndex:
    """Stands in for a generator: draws 0, 1, 2, ... in turn, so that a large enough sample holds every slot."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.next = 0
        self.limit = limit

    def integers(self, low: int, high: int, size: int) -> NDArray[np.int64]:
        self.next += size
        if self.next > self.limit:
            raise AssertionError("sampling never ends: there is no slot that a step was taken from")
        return low + np.arange(self.next - size, self.next) % (high - low)


def every_slot(replay: Seen) -> tuple[list[tuple[int, int]], Transition]:
    """All slots that `sample` can return, each at least once, and their transitions."""
    transition = replay.sample(int(replay._window()[1].sum()), EveryIndex())  # type: ignore[arg-type]
    env, number = replay.asked
    return list(zip(env.tolist(), number.tolist(), strict=True)), transition


def screen(identity: int) -> NDArray[np.uint8]:
    """A screen unlike any other and unlike the zeros before a start: its own number in base 256."""
    return np.frombuffer((identity + 1).to_bytes(4, "little"), np.uint8).reshape(SHAPE)


def screens_of(identities: list[int]) -> NDArray[np.uint8]:
    return np.stack([screen(i) for i in identities])


def add(sinks: list[Any], rows: list[tuple[int, int, float, str]], after: list[int]) -> None:
    """One step of every environment: (screen, action, reward, events among `T`, `U`, `L`) and the screen after."""
    ids, actions, rewards, events = zip(*rows, strict=True)
    flag = {c: np.array([c in e for e in events]) for c in "TUL"}
    for sink in sinks:
        sink.add(
            screens_of(list(ids)),
            np.array(actions, np.int64),
            np.array(rewards, np.float32),
            flag["T"],
            flag["U"],
            flag["L"],
            screens_of(after),
        )


def play(
    sinks: list[Any],
    steps: int,
    seed: int,
    num_envs: int,
    p_end: float | tuple[float, ...] = 0.1,
    p_life: float = 0.1,
    start: int = 0,
) -> int:
    """Random episodes into every sink; returns the number of screens made, for the next call's `start`."""
    rng = np.random.default_rng(seed)
    ends = np.broadcast_to(p_end, num_envs)
    fresh = start
    now = list(range(fresh, fresh + num_envs))
    fresh += num_envs
    for _ in range(steps):
        rows, after = [], []
        for e in range(num_envs):
            ended = rng.random() < ends[e]
            events = str(rng.choice(["T", "U", "TU"])) if ended else ""
            events += "L" if rng.random() < p_life else ""
            rows.append((now[e], int(rng.integers(0, 18)), float(rng.choice([-3, -1, -0.5, 0, 0.25, 1, 2.5])), events))
            after.append(fresh)
            now[e] = fresh + 1 if ended else fresh  # a new episode begins with a screen of its own
            fresh += 2
        add(sinks, rows, after)
    return fresh


def replay_of(rules: Rules, num_envs: int, ring: int, slack: int = 0, directory: Path | None = None) -> Seen:
    return Seen(
        ring * num_envs,
        num_envs,
        SHAPE,
        UINT8,
        frame_stack=rules.frame_stack,
        n_step=rules.n_step,
        gamma=rules.gamma,
        life_loss=rules.life_loss,
        reward_clip=rules.reward_clip,
        slack=slack,
        directory=directory,
    )


def assert_agrees(recorder: Recorder, rules: Rules, slots: list[tuple[int, int]], got: Transition) -> None:
    """Every transition of a sample is the one that the definition gives for its slot."""
    wanted = [recorder.expected(e, m, rules) for e, m in slots]
    np.testing.assert_array_equal(got.observation.numpy(), np.stack([w.observation for w in wanted]))
    np.testing.assert_array_equal(got.next_observation.numpy(), np.stack([w.next_observation for w in wanted]))
    np.testing.assert_array_equal(got.action.numpy(), [w.action for w in wanted])
    np.testing.assert_allclose(got.reward.numpy(), [w.reward for w in wanted], RTOL, ATOL)
    np.testing.assert_allclose(got.discount.numpy(), [w.discount for w in wanted], RTOL, ATOL)
    np.testing.assert_array_equal(got.discount.numpy() == 0, [w.discount == 0 for w in wanted])
    if got.realised_return is not None:
        np.testing.assert_allclose(got.realised_return.numpy(), [w.realised_return for w in wanted], 1e-6, 1e-6)


def same_transitions(a: Transition, b: Transition) -> bool:
    """Whether all bits are equal; returns that are not known are equal to each other."""
    parts = [x.nan_to_num(nan=1e30) if x.is_floating_point() else x for t in (a, b) for x in t if x is not None]
    half = len(parts) // 2
    return all(torch.equal(x, y) for x, y in zip(parts[:half], parts[half:], strict=True))


def same_contents(a: Seen, b: Seen) -> bool:
    (slots_a, got_a), (slots_b, got_b) = every_slot(a), every_slot(b)
    return slots_a == slots_b and same_transitions(got_a, got_b)


def copy_of_window(replay: Seen) -> tuple[list[tuple[int, int]], Transition]:
    slots, got = every_slot(replay)
    return slots, got.map(torch.clone)
