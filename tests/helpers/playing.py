"""Steps of environments with scripted actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.envs.base import Step, VectorEnvs
from bayes_rl.types import Policy


def everyone(envs: VectorEnvs) -> NDArray[np.bool_]:
    return np.ones(envs.num_envs, bool)


def script(envs: VectorEnvs, steps: int, seed: int = 0) -> NDArray[np.int64]:
    """Random actions `[steps, E]`."""
    return np.random.default_rng(seed).integers(0, envs.num_actions, (steps, envs.num_envs))


def copied(step: Step) -> Step:
    return Step(*(x.copy() for x in step))


def run(envs: VectorEnvs, seeds: list[int], actions: NDArray[np.int64]) -> tuple[NDArray[Any], list[Step]]:
    """The first screens and every step of new episodes of all environments, ended ones included."""
    first = envs.reset(np.array(seeds), everyone(envs))[0].copy()
    return first, [copied(envs.step(a)) for a in actions]


def equal(a: Step, b: Step, env: int | slice = slice(None), other: int | slice | None = None) -> bool:
    other = env if other is None else other
    return all(np.array_equal(x[env], y[other]) for x, y in zip(a, b, strict=True))


def ended(step: Step) -> NDArray[np.bool_]:
    return step.terminated | step.truncated


def until_reset(envs: VectorEnvs, seeds: list[int], steps: int, salt: int = 0) -> tuple[list[list[int]], list[Step]]:
    """Play `steps` steps at random, resetting each finished environment; histories of the running episodes."""
    envs.reset(np.array(seeds), everyone(envs))
    now = list(seeds)
    histories: list[list[int]] = [[] for _ in seeds]
    record = []
    for actions in script(envs, steps, salt):
        played = envs.send(actions)
        step = copied(envs.recv())
        record.append(step)
        for e in range(envs.num_envs):
            histories[e].append(int(played[e]))
        over = ended(step)
        if over.any():
            for e in np.flatnonzero(over):
                now[e] += 1000
                histories[e] = []
            envs.reset(np.array(now)[over], over)
    seeds[:] = now
    return histories, record


def hashed(num_actions: int) -> Policy:
    """A deterministic policy whose action depends on every number of its observation, and on their order."""

    def policy(observations: Tensor) -> Tensor:
        # A prime factor has no common divisor with the number of actions, so whole numbers give all actions.
        flat = (observations.flatten(1).double() * 1009).round().to(torch.int64)
        return (flat * torch.arange(1, flat.shape[1] + 1)).sum(1) % num_actions

    return policy
