"""Whole games for evaluation, each named by its seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import EnvSettings, Step
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.types import Policy, ValueEstimate, ValueEstimator


class GameLoader:
    """A loader whose batches are sets of games, one of each task."""

    def __init__(self, games: Sequence[Games]) -> None:
        self.games = games

    def __len__(self) -> int:
        return len(self.games)

    def __iter__(self) -> Iterator[Games]:
        return iter(self.games)


@dataclass
class Game:
    """One finished game.

    Attributes:
        seed: that names it.
        score: raw, undiscounted return.
        frames: length in environment frames.
        actions: every action, so that (seed, actions) is the game.
        cut: ended because no reward came for too long.
        rewards: of every step, as the learner reads them (clipped, lost lives counted).
        discounts: of every step, 0 where the learner's return ends, else 1.
        judgements: what the agent thought of every `estimate_every`-th state, from the first.
        bootstrap: value of the state at which a game was stopped before its end, 0 after an end.
    """

    seed: int
    score: float = 0.0
    frames: int = 0
    actions: list[int] = field(default_factory=list)
    cut: bool = False
    rewards: list[float] = field(default_factory=list)
    discounts: list[float] = field(default_factory=list)
    estimates: list[ValueEstimate] = field(default_factory=list)
    bootstrap: float = 0.0


class Games:
    """A set of games given by their seeds: one validation batch.

    Args:
        settings: what to play.
        seeds: one per game.
        frame_stack: screens per observation.
        idle_frames: a game without any reward for so long ends where it stands (a stuck greedy policy would
            otherwise play to the frame limit); 0 never ends one.
        life_loss: what a lost life is to the learner (see `ReplayBuffer`).
        reward_clip: of the learner, or None.
        estimate_every: steps between two judgements.
        parallel: games played at once.
        task: number of the task they belong to.
    """

    def __init__(
        self,
        settings: EnvSettings,
        seeds: list[int],
        frame_stack: int,
        idle_frames: int,
        life_loss: str = "none",
        reward_clip: float | None = None,
        estimate_every: int = 4,
        parallel: int = 10,
        task: int = 0,
    ) -> None:
        self.task = task
        self.settings, self.seeds, self.frame_stack, self.idle_frames = settings, seeds, frame_stack, idle_frames
        self.life_loss, self.reward_clip, self.estimate_every = life_loss, reward_clip, estimate_every
        self.parallel = min(parallel, len(seeds))

    def __len__(self) -> int:
        return len(self.seeds)

    def play(self, policy: Policy, estimator: ValueEstimator | None = None) -> list[Game]:
        """Play every game to its end, greedily, and return them in the order of `seeds`.

        Args:
            policy: chooses the actions.
            judge: is asked what it thinks of the states on the way, and of one at which a game is stopped.
        """
        if not self.seeds:
            return []
        envs = MonitoredEnvs(make_envs(self.settings, self.parallel))
        stack = ObservationStack(self.parallel, self.frame_stack, envs.screen_shape, envs.screen_dtype)
        games = [Game(seed) for seed in self.seeds]
        waiting = list(range(len(games)))
        playing = np.full(self.parallel, -1)  # index into `games`, or -1
        rewarded_at = np.zeros(self.parallel, np.int64)
        lives = np.zeros(self.parallel, np.int64)
        free = np.ones(self.parallel, bool)
        while True:
            for slot in np.flatnonzero(free):
                playing[slot] = waiting.pop(0) if waiting else -1
            # Slots without a game are kept legal by a reset too.
            seeds = np.array([games[g].seed if g >= 0 else 0 for g in playing[free]], np.int64)
            if free.any():
                screens, new_lives = envs.reset(seeds, free)
                stack.begin(screens, free)
                rewarded_at[free] = 0
                lives = np.where(free, new_lives, lives)
            if (playing < 0).all():
                break
            if estimator is not None:
                self._estimate(estimator, stack, games, playing)
            executed = envs.send(policy(stack.observations()).numpy())
            step = envs.recv()
            stack.push(step.screens)
            for slot in np.flatnonzero(playing >= 0):
                game = games[playing[slot]]
                self._record(game, step, int(slot), int(executed[slot]), bool(step.lives[slot] < lives[slot]))
                if step.rewards[slot] != 0:
                    rewarded_at[slot] = game.frames
            lives = step.lives
            lengths = np.array([games[g].frames if g >= 0 else 0 for g in playing])
            idle = (lengths - rewarded_at >= self.idle_frames) & (self.idle_frames > 0)
            idle &= (playing >= 0) & ~(step.terminated | step.truncated)
            for slot in np.flatnonzero(idle):
                games[playing[slot]].cut = True
            stopped = np.flatnonzero((step.truncated | idle) & ~step.terminated & (playing >= 0))
            if estimator is not None and len(stopped):
                values = estimator(stack.observations()[stopped]).value
                for slot, value in zip(stopped, values.tolist(), strict=True):
                    games[playing[slot]].bootstrap = value
            free = step.terminated | step.truncated | idle
        envs.close()
        return games

    def _estimate(
        self, estimator: ValueEstimator, stack: ObservationStack, games: list[Game], playing: NDArray[np.int64]
    ) -> None:
        due = [
            int(s) for s in np.flatnonzero(playing >= 0) if len(games[playing[s]].actions) % self.estimate_every == 0
        ]
        if due:
            estimate = estimator(stack.observations()[due])
            for row, slot in enumerate(due):
                games[playing[slot]].estimates.append(ValueEstimate(*(part[row] for part in estimate)))

    def _record(self, game: Game, step: Step, slot: int, action: int, life_lost: bool) -> None:
        reward, terminated = float(step.rewards[slot]), bool(step.terminated[slot])
        game.score += reward
        game.frames += self.settings.frame_skip
        game.actions.append(action)
        if self.reward_clip is not None:
            reward = float(np.clip(reward, -self.reward_clip, self.reward_clip))
        game.rewards.append(reward - (self.life_loss == "penalty" and (life_lost or terminated)))
        game.discounts.append(float(not (terminated or (self.life_loss == "discount" and life_lost))))
