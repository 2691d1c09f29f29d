"""Environments with scripted episodes, and builders of replays and streams on them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.base import EnvSettings, Step, VectorEnvs
from bayes_rl.types import Batch, Policy
from tests.helpers.replay_oracle import Episode, Recorder, Rules
from tests.helpers.replays import same_transitions

UINT8 = np.dtype(np.uint8)
GREEDY = EpsilonSchedule(0.0, 0.0, 0)
RANDOM = EpsilonSchedule(1.0, 1.0, 0)


# ------------------------------------------------------------------ environments for the stream
class ScriptedEnvs(VectorEnvs):
    """E environments whose screens are (environment + 1, episode, step) and whose episodes have scripted ends.

    Episode number j (from 1) of environment e lasts `lengths[(e + j) % len(lengths)]` steps, and ends terminated if
    e + j is even, truncated if it is odd. Rewards are step + 1. Every call is written to `log`.
    """

    num_actions = 5
    screen_shape = (3,)
    screen_dtype = UINT8

    def __init__(self, num_envs: int, lengths: tuple[int, ...] = (3, 7, 1, 5), lives: int = 0) -> None:
        self.num_envs, self.lengths, self.first_lives = num_envs, lengths, lives
        self.steps_left = 20_000  # so that a loop without end becomes a failure
        self.episode = np.zeros(num_envs, np.int64)
        self.time = np.zeros(num_envs, np.int64)
        self.over = np.ones(num_envs, bool)
        self.seeds: list[dict[int, int]] = [{} for _ in range(num_envs)]
        self.log: list[tuple[str, Any]] = []
        self.pending: NDArray[np.int64] | None = None

    def _screens(self) -> NDArray[np.uint8]:
        return np.stack([np.arange(self.num_envs) + 1, self.episode, self.time], 1).astype(np.uint8)

    def _lives(self) -> NDArray[np.int64]:
        return np.maximum(self.first_lives - (self.time + 1) // 2, 0)

    def reset(self, seeds: NDArray[np.int64], mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        assert self.pending is None, "reset during a step"
        assert len(seeds) == mask.sum()
        assert self.over[mask].all(), "reset of a game that is not over"
        self.episode[mask] += 1
        self.time[mask] = 0
        self.over[mask] = False
        for e, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            self.seeds[e][int(self.episode[e])] = int(seed)
        self.log.append(("reset", mask.copy()))
        screens, lives = self._screens().copy(), self._lives().copy()
        screens[~mask], lives[~mask] = 99, 99  # nothing is promised of the others
        return screens, lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        assert self.pending is None, "two steps at once"
        assert not self.over.any(), "a step beyond an episode's end"
        self.steps_left -= 1
        assert self.steps_left > 0, "this never ends"
        self.pending = actions.copy()
        self.log.append(("send", actions.copy()))
        return actions

    def recv(self) -> Step:
        assert self.pending is not None, "nothing was sent"
        self.pending = None
        self.time += 1
        number = np.arange(self.num_envs) + self.episode
        self.over = self.time == np.array(self.lengths)[number % len(self.lengths)]
        self.log.append(("recv", None))
        even = number % 2 == 0
        return Step(self._screens(), self.time.astype(np.float32), self.over & even, self.over & ~even, self._lives())

    def close(self) -> None:
        pass


class RestartingEnvs(ScriptedEnvs):
    """Begins finished episodes by itself, in place of a step, as AtariEnvs does between two seeds."""

    steps_per_seed = 12

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        self.restart, self.over = self.over, np.zeros_like(self.over)
        return super().send(actions)

    def recv(self) -> Step:
        self.episode[self.restart] += 1
        self.time[self.restart] = -1
        step = super().recv()
        return step._replace(rewards=np.where(self.restart, 0, step.rewards).astype(np.float32))


class SwappingEnvs(ScriptedEnvs):
    """Plays action 4 whatever it is asked to, as auto_fire plays FIRE."""

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        return super().send(np.full_like(actions, 4))


# ------------------------------------------------------------------ replays and streams
class LoggingReplay(ReplayBuffer):
    """Writes every stored step into `log`."""

    log: list[tuple[str, Any]]

    def add(self, *args: NDArray[Any]) -> None:
        self.log.append(("add", tuple(a.copy() for a in args)))
        super().add(*args)


def first_action(observations: Tensor) -> Tensor:
    return torch.zeros(len(observations), dtype=torch.int64)


def hashed(num_actions: int) -> Policy:
    """A deterministic policy that depends on every number of each observation."""

    def policy(observations: Tensor) -> Tensor:
        return (observations.flatten(1).double() * 1000).round().to(torch.int64).sum(1) % num_actions

    return policy


def ring(envs: VectorEnvs, **options: Any) -> ReplayBuffer:
    defaults: dict[str, Any] = {"frame_stack": 2, "n_step": 3, "gamma": 0.5, "reward_clip": None}
    capacity = options.pop("capacity", 400 * envs.num_envs)
    kind = options.pop("kind", ReplayBuffer)
    replay = kind(capacity, envs.num_envs, envs.screen_shape, envs.screen_dtype, **(defaults | options))
    assert isinstance(replay, ReplayBuffer)
    return replay


def stream_of(
    envs: VectorEnvs,
    replay: ReplayBuffer | None = None,
    policy: Policy = first_action,
    epsilon: EpsilonSchedule = GREEDY,
    **options: Any,
) -> ReplayStream:
    defaults: dict[str, Any] = {
        "batch_size": 8,
        "updates_per_step": 1.0,
        "batches_per_epoch": 50,
        "replay_min_size": 20,
        "frame_skip": 4,
        "seed": 3,
    }
    replay = ring(envs) if replay is None else replay  # an empty one is falsy
    return ReplayStream(envs, replay, policy, epsilon, **(defaults | options))


def take(stream: ReplayStream, count: int) -> list[Batch]:
    """The next `count` minibatches, beginning epochs as needed."""
    batches: list[Batch] = []
    while len(batches) < count:
        for batch in stream:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def same(a: list[Batch], b: list[Batch]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(
        same_transitions(p.transition, q.transition) and p[1:] == q[1:] for p, q in zip(a, b, strict=True)
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint holds it: tensors and primitives only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# ------------------------------------------------------------------ games whose script follows from their seed
@dataclass(frozen=True)
class Script:
    """A game that its seed tells: T rewards, lives before and after each step `[T + 1]`, and how it ends."""

    rewards: list[float]
    lives: list[int]
    terminated: bool
    truncated: bool

    @classmethod
    def of(cls, seed: int) -> Script:
        rng = np.random.default_rng(seed)
        steps = int(rng.integers(5, 40)) if seed else 3  # 0 is played where no game is left, and truncated soon
        rewards = rng.choice([-2.5, -1.0, 0.0, 0.0, 0.0, 0.5, 3.0], steps) * (rng.random() < 0.7)
        lives = 9 - np.cumsum(rng.random(steps + 1) < 0.15)
        ends = [(False, True), (True, False), (True, True)][seed % 3]
        return cls(rewards.tolist(), lives.tolist(), *ends)


class ScriptedGames(VectorEnvs):
    """Plays `Script.of(seed)`, whatever the actions; screens are (seed, t) / 10."""

    num_actions = 3
    screen_shape = (2,)
    screen_dtype = np.dtype(np.float32)

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seeds, self.times = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self.scripts = [Script.of(0)] * num_envs

    def _screens(self) -> NDArray[np.float32]:
        return np.stack([self.seeds, self.times], 1).astype(np.float32) / 10

    def _lives(self) -> NDArray[np.int64]:
        return np.array([s.lives[t] for s, t in zip(self.scripts, self.times, strict=True)])

    def reset(self, seeds: NDArray[np.int64], mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        self.seeds[mask], self.times[mask] = seeds, 0
        self.scripts = [Script.of(int(seed)) for seed in self.seeds]
        return self._screens(), self._lives()

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        return actions

    def recv(self) -> Step:
        pairs = list(zip(self.scripts, self.times, strict=True))
        rewards = np.array([s.rewards[t] for s, t in pairs], np.float32)
        self.times += 1
        over = np.array([t + 1 == len(s.rewards) for s, t in pairs])
        terminated, truncated = np.array([(s.terminated, s.truncated) for s in self.scripts]).T
        return Step(self._screens(), rewards, over & terminated, over & truncated, self._lives())

    def close(self) -> None:
        pass


SCRIPTED = EnvSettings("scripted", frame_skip=4)
IDLE_FRAMES = 32


def episode_of(seed: int, actions: list[int]) -> tuple[Episode, bool]:
    """The game of that seed as far as it is played, and whether it is cut, because no reward came for 32 frames."""
    script, last = Script.of(seed), 0
    episode = Episode(screens=[np.array([seed, 0], np.float32) / 10])
    for t, reward in enumerate(script.rewards):
        over = t + 1 == len(script.rewards)
        last = t + 1 if reward else last
        episode.screens.append(np.array([seed, t + 1], np.float32) / 10)
        episode.actions.append(actions[t])
        episode.rewards.append(reward)
        episode.life_lost.append(script.lives[t + 1] < script.lives[t])
        if not over and 4 * (t + 1 - last) >= IDLE_FRAMES:
            episode.truncated = True
            return episode, True
        episode.terminated, episode.truncated = over and script.terminated, over and script.truncated
    return episode, False


def returns_of(episode: Episode, rules: Rules, value: Callable[[Tensor], Tensor]) -> list[float]:
    """What the learner would make of every step with returns of any length: the replay's definition."""
    recorder = Recorder(1)
    recorder.slots[0] = [(episode, t) for t in range(len(episode.screens))]
    steps = [recorder.expected(0, t, rules) for t in range(len(episode.actions))]
    return [s.reward + s.discount * float(value(torch.from_numpy(s.next_observation)[None])[0]) for s in steps]
