"""Whole games for evaluation, each named by its seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import BoolArray, EnvSettings, Step
from bayes_rl.envs.kinds import game_name, make_envs
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.evaluation.novel_states import NovelStates
from bayes_rl.evaluation.screen_record import ScreenRecord
from bayes_rl.evaluation.state_sample import StateSample
from bayes_rl.metrics.atari_scores import most_if_stopped
from bayes_rl.types import Policy, ValueEstimate, ValueEstimator


class GameLoader:
    """Loader whose batches are sets of games, one set per task.

    Args:
        games: one set per task.
    """

    def __init__(self, games: Sequence[Games]) -> None:
        self.games = games

    def __len__(self) -> int:
        return len(self.games)

    def __iter__(self) -> Iterator[Games]:
        return iter(self.games)


@dataclass
class Game:
    """Record of one game.

    Attributes:
        seed: of the episode.
        score: raw, undiscounted return.
        frames: length in environment frames.
        actions: executed action of every step; (seed, actions) reproduces the game.
        cut: whether the game was stopped because no reward came for too long.
        truncated: whether the game was stopped at its limit of frames.
        most_if_stopped: greatest score that counts if the game was stopped either way.
        points_lost: size of the sum of the raw negative rewards.
        sample: of the states with an estimate, by their index in `estimates`; None if none are kept.
        record: screens of the game; None if none are kept.
        rewards: of every step, as the learner reads them (clipped, with the penalty of a lost life).
        discounts: of every step, 0 where the learner's return ends, else 1.
        estimates: of every `estimate_every`-th state, from the first.
        bootstrap: estimated value of the last state of a game that was truncated or cut, else 0.
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
    truncated: bool = False
    most_if_stopped: float = math.inf
    points_lost: float = 0.0
    sample: StateSample | None = None
    record: ScreenRecord | None = None

    @property
    def counted(self) -> float:
        """Score that human-normalised scores and the choice of the best checkpoint count."""
        return min(self.score, self.most_if_stopped) if self.cut or self.truncated else self.score


class Games:
    """Set of games given by their seeds: one validation batch.

    Args:
        settings: the game and its rules.
        seeds: one per game.
        frame_stack: screens per observation.
        idle_frames: environment frames without a reward after which a game is cut (a stuck greedy policy would
            otherwise play to the frame limit); 0 cuts none.
        life_loss: what a lost life is to the learner: none, discount or penalty (see `ReplayBuffer`).
        reward_clip: the learner clips rewards to +- this; None leaves them raw.
        estimate_every: agent steps between two estimates.
        parallel: games played at once.
        task: number of the task that the games belong to.
        sampled_states: number of observations to keep of each game, of states with an estimate, at random; an empty
            list keeps none.
        novel: makes novel states, against which the uncertainty in the sampled states is tested; None tests nothing.
        recorded_screens: most screens to keep of the first game; 0 keeps none.
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
        sampled_states: Sequence[int] = (),
        novel: NovelStates | None = None,
        recorded_screens: int = 0,
    ) -> None:
        self.task, self.sampled_states, self.novel = task, sampled_states, novel
        self.recorded_screens = recorded_screens
        self.settings, self.seeds, self.frame_stack, self.idle_frames = settings, seeds, frame_stack, idle_frames
        self.life_loss, self.reward_clip, self.estimate_every = life_loss, reward_clip, estimate_every
        self.parallel = min(parallel, len(seeds))

    def __len__(self) -> int:
        return len(self.seeds)

    def play(self, policy: Policy, estimator: ValueEstimator | None = None) -> list[Game]:
        """Play every game to its end and return the records in the order of `seeds`.

        Args:
            policy: maps observations `[E, C, ...]` to actions `[E]`.
            estimator: estimates the values of every `estimate_every`-th state, and of the last state of a game that
                is truncated or cut; None records no estimates.

        Raises:
            FailedEnvError: if an environment raises, or returns a number that is not finite.
        """
        if not self.seeds:
            return []
        envs = MonitoredEnvs(make_envs(self.settings, self.parallel))
        try:
            return self._play(envs, policy, estimator)
        finally:
            envs.close()

    def _play(self, envs: MonitoredEnvs, policy: Policy, estimator: ValueEstimator | None) -> list[Game]:
        stack = ObservationStack(self.parallel, self.frame_stack, envs.screen_shape, envs.screen_dtype)
        games = self._new_games()
        waiting = list(range(len(games)))
        playing = np.full(self.parallel, -1)  # index into `games`, or -1
        rewarded_at = np.zeros(self.parallel, np.int64)
        lives = np.zeros(self.parallel, np.int64)
        free = np.ones(self.parallel, bool)
        while True:
            for slot in np.flatnonzero(free):
                playing[slot] = waiting.pop(0) if waiting else -1
            # A slot without a game plays on with seed 0, because environments are stepped together.
            seeds = np.array([games[g].seed if g >= 0 else 0 for g in playing[free]], np.int64)
            if free.any():
                screens, new_lives = envs.reset(seeds, free)
                stack.begin(screens, free)
                rewarded_at[free] = 0
                lives = np.where(free, new_lives, lives)
            active = np.flatnonzero(playing >= 0)
            if not len(active):
                return games
            self._record_screen(stack, games[0], playing)
            if estimator is not None:
                self._estimate(estimator, stack, games, playing)
            actions = np.zeros(self.parallel, np.int64)  # 0 where no game is left: the policy is not asked there
            actions[active] = policy(stack.observations()[active]).numpy()
            executed = envs.send(actions)
            step = envs.recv()
            stack.push(step.screens)
            self._record_step(games, playing, step, executed, step.lives < lives, rewarded_at)
            lives = step.lives
            idle = self._cut_idle(games, playing, step, rewarded_at)
            if estimator is not None:
                stopped = np.flatnonzero((step.truncated | idle) & ~step.terminated & (playing >= 0))
                self._bootstrap(estimator, stack, games, playing, stopped)
            free = step.terminated | step.truncated | idle

    def _new_games(self) -> list[Game]:
        """Return the records of games that have not begun, in the order of `seeds`."""
        most = most_if_stopped(game_name(self.settings.env))
        games = [Game(seed, most_if_stopped=most) for seed in self.seeds]
        if self.sampled_states:
            for game, size in zip(games, self.sampled_states, strict=True):
                game.sample = StateSample(size, game.seed)
        if self.recorded_screens:
            games[0].record = ScreenRecord(self.recorded_screens)
        return games

    def _record_step(
        self,
        games: list[Game],
        playing: NDArray[np.int64],
        step: Step,
        executed: NDArray[np.int64],
        life_lost: BoolArray,
        rewarded_at: NDArray[np.int64],
    ) -> None:
        """Add a step to the record of every game that is played, and set `rewarded_at` to its frame if rewarded."""
        for slot in np.flatnonzero(playing >= 0):
            game = games[playing[slot]]
            self._record(game, step, int(slot), int(executed[slot]), bool(life_lost[slot]))
            if step.rewards[slot] != 0:
                rewarded_at[slot] = game.frames

    def _cut_idle(
        self, games: list[Game], playing: NDArray[np.int64], step: Step, rewarded_at: NDArray[np.int64]
    ) -> BoolArray:
        """Mark games without a reward for `idle_frames` as cut, and return where they are, `[E]`."""
        lengths = np.array([games[g].frames if g >= 0 else 0 for g in playing])
        idle = (lengths - rewarded_at >= self.idle_frames) & (self.idle_frames > 0)
        idle &= (playing >= 0) & ~(step.terminated | step.truncated)
        for slot in np.flatnonzero(idle):
            games[playing[slot]].cut = True
        return idle

    def _bootstrap(
        self,
        estimator: ValueEstimator,
        stack: ObservationStack,
        games: list[Game],
        playing: NDArray[np.int64],
        stopped: NDArray[np.int64],
    ) -> None:
        """Record the value of the last state of the games in the slots `stopped`."""
        if len(stopped):
            values = estimator(stack.observations()[stopped]).value
            for slot, value in zip(stopped, values.tolist(), strict=True):
                games[playing[slot]].bootstrap = value

    def _estimate(
        self, estimator: ValueEstimator, stack: ObservationStack, games: list[Game], playing: NDArray[np.int64]
    ) -> None:
        due = [
            int(s) for s in np.flatnonzero(playing >= 0) if len(games[playing[s]].actions) % self.estimate_every == 0
        ]
        if due:
            observations = stack.observations()[due]
            estimate = estimator(observations)
            for row, slot in enumerate(due):
                game = games[playing[slot]]
                game.estimates.append(ValueEstimate(*(part[row] for part in estimate)))
                if game.sample is not None:
                    game.sample.add(observations[row])

    def _record_screen(self, stack: ObservationStack, game: Game, playing: NDArray[np.int64]) -> None:
        """Add the newest screen of the first game to its record, if the game has one and is played."""
        if game.record is not None:
            for slot in np.flatnonzero(playing == 0):
                game.record.add(len(game.actions), stack.array[slot, -1])

    def _record(self, game: Game, step: Step, slot: int, action: int, life_lost: bool) -> None:
        reward, terminated = float(step.rewards[slot]), bool(step.terminated[slot])
        game.score += reward
        game.points_lost += max(-reward, 0.0)
        game.truncated = bool(step.truncated[slot]) and not terminated
        game.frames += self.settings.frame_skip
        game.actions.append(action)
        if self.reward_clip is not None:
            reward = float(np.clip(reward, -self.reward_clip, self.reward_clip))
        game.rewards.append(reward - (self.life_loss == "penalty" and (life_lost or terminated)))
        game.discounts.append(float(not (terminated or (self.life_loss == "discount" and life_lost))))
