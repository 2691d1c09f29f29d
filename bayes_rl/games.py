"""Whole games for evaluation, each named by its seed, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs import AtariEnvs, EnvSettings, ObservationStack, Step, atari_games, make_envs, make_single
from bayes_rl.guards import WatchedEnvs
from bayes_rl.types import Judge, Judgement, Policy, check


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
        judgements: what the agent thought of every `judge_every`-th state, from the first.
        bootstrap: value of the state at which a game was stopped before its end, 0 after an end.
    """

    seed: int
    score: float = 0.0
    frames: int = 0
    actions: list[int] = field(default_factory=list)
    cut: bool = False
    rewards: list[float] = field(default_factory=list)
    discounts: list[float] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
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
        judge_every: steps between two judgements.
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
        judge_every: int = 4,
        parallel: int = 10,
        task: int = 0,
    ) -> None:
        self.task = task
        self.settings, self.seeds, self.frame_stack, self.idle_frames = settings, seeds, frame_stack, idle_frames
        self.life_loss, self.reward_clip, self.judge_every = life_loss, reward_clip, judge_every
        self.parallel = min(parallel, len(seeds))

    def __len__(self) -> int:
        return len(self.seeds)

    def play(self, policy: Policy, judge: Judge | None = None) -> list[Game]:
        """Play every game to its end, greedily, and return them in the order of `seeds`.

        Args:
            policy: chooses the actions.
            judge: is asked what it thinks of the states on the way, and of one at which a game is stopped.
        """
        if not self.seeds:
            return []
        envs = WatchedEnvs(make_envs(self.settings, self.parallel))
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
            if judge is not None:
                self._judge(judge, stack, games, playing)
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
            if judge is not None and len(stopped):
                values = judge(stack.observations()[stopped]).value
                for slot, value in zip(stopped, values.tolist(), strict=True):
                    games[playing[slot]].bootstrap = value
            free = step.terminated | step.truncated | idle
        envs.close()
        return games

    def _judge(self, judge: Judge, stack: ObservationStack, games: list[Game], playing: NDArray[np.int64]) -> None:
        due = [int(s) for s in np.flatnonzero(playing >= 0) if len(games[playing[s]].actions) % self.judge_every == 0]
        if due:
            judgement = judge(stack.observations()[due])
            for row, slot in enumerate(due):
                games[playing[slot]].judgements.append(Judgement(*(part[row] for part in judgement)))

    def _record(self, game: Game, step: Step, slot: int, action: int, life_lost: bool) -> None:
        reward, terminated = float(step.rewards[slot]), bool(step.terminated[slot])
        game.score += reward
        game.frames += self.settings.frame_skip
        game.actions.append(action)
        if self.reward_clip is not None:
            reward = float(np.clip(reward, -self.reward_clip, self.reward_clip))
        game.rewards.append(reward - (self.life_loss == "penalty" and (life_lost or terminated)))
        game.discounts.append(float(not (terminated or (self.life_loss == "discount" and life_lost))))


def pictures(settings: EnvSettings, game: Game) -> Iterator[NDArray[np.uint8]]:
    """RGB pictures `[H, W, 3]` of a game, one per agent step, by playing (seed, actions) again."""
    if settings.env in atari_games():
        envs = AtariEnvs(settings, 1, rgb=True)
        yield envs.reset(np.array([game.seed]), np.ones(1, bool))[0][0].transpose(1, 2, 0)
        for action in game.actions:
            yield envs.step(np.array([action])).screens[0].transpose(1, 2, 0)
        envs.close()
        return
    try:
        env = make_single(settings, render_mode="rgb_array")
        env.reset(seed=game.seed)
        yield _rgb(env.render())
    except gym.error.DependencyNotInstalled as error:
        check(False, "data.env", settings.env, f"cannot be drawn here: {error}")
    for action in game.actions:
        env.step(action)
        yield _rgb(env.render())
    env.close()


def _rgb(picture: Any) -> NDArray[np.uint8]:
    """Rendered pictures as uint8, small ones (MinAtar's 10 x 10) enlarged to at least 160 pixels."""
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        array = (array * 255).astype(np.uint8)
    factor = -(-160 // array.shape[0])
    return array.repeat(factor, 0).repeat(factor, 1)
