"""The data: environments, replay and stream for training; whole games by seed for everything else."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from bayes_rl.data.curriculum import make_curriculum
from bayes_rl.data.device_replay import DeviceReplay
from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.settings import check_data
from bayes_rl.data.stream import ReplayStream, StreamLoader
from bayes_rl.envs.base import EnvSettings, VectorEnvs, episode_seed
from bayes_rl.envs.kinds import check_env, game_name, make_envs
from bayes_rl.errors import check
from bayes_rl.evaluation.games import GameLoader, Games
from bayes_rl.types import AgentArguments, Transition

STAGES = {"validate": 1_000_001, "test": 1_000_002, "predict": 1_000_003}
"""Stand where training has the rank in an episode's seed, so that no stage plays another's games."""


FISHER = 0x46  # domain of the generator of samples for the Fisher information


ESTIMATE_EVERY = 4  # steps between the states of a validation game that the agent is asked about: neighbours are alike


class ReplayDataModule(pl.LightningDataModule):
    """Streams n-step transitions from an env-stepping replay; validation batches are whole games.

    Args:
        env: any Gymnasium id with discrete actions, or the short name of a bundled Atari game (`breakout`).
        env_kwargs: keyword arguments of the environment's constructor, e.g. '{size: 20}' of bayes_rl/DeepSea-v0.
        tasks: several games to learn one after the other, instead of `env`; all Atari games, or all of another kind.
        frames_per_task: environment frames of training on each, a multiple of `frames_per_epoch`.
        cycles: times that all tasks are gone through.
        task_conditioning: what the networks are told of the task: none, gains (a gain and a bias for each feature and
            task, as Kirkpatrick et al. 2017), or heads (output layers for each task).
        epsilon_at_switch: restart its schedule at each task, or continue it.
        keep_replays: go on learning from the replays of earlier tasks too (rehearsal).
        num_envs: environments stepped together.
        frame_stack: newest screens per observation.
        frame_skip: environment frames per agent step.
        sticky_actions: probability that the previous action is repeated, in [0, 1) (Machado et al. 2018: 0.25).
        crop: [top, bottom, left, right] of the 210 x 160 Atari screen to keep, in pixels; null keeps all.
        max_episode_frames: frames after which a game is truncated.
        full_action_space: all 18 Atari actions instead of the game's own.
        auto_fire: press FIRE at the start of a game and after each lost life (Atari games that have FIRE).
        life_loss: what a lost life is to the learner: none, discount (of 0) or penalty (a reward of -1).
        reward_clip: training rewards are clipped to +- this; null leaves them raw. Scores are always raw.
        replay_capacity: transitions kept, over all environments.
        replay_device: where minibatches are made: cpu, or cuda, by a copy of the replay in the GPU's memory.
        min_replay_size: transitions collected at random before the first update.
        batch_size: transitions per minibatch.
        n_step: agent steps of the n-step return.
        gamma: discount per agent step, in [0, 1].
        updates_per_step: updates per agent step; 0.25 is one per four steps.
        frames_per_epoch: environment frames per epoch; an epoch ends with a validation and a checkpoint.
        epsilon_start: probability of a random action after the random prefill.
        epsilon_end: the same at the end of its decay.
        epsilon_decay_frames: frames of the linear decay.
        eval_games: whole games per validation, test and predict.
        eval_idle_frames: a validation game without a reward for so many frames ends there; 0 never ends one.
        refill_replay: on resuming, collect a new replay instead of requiring the old one.
        render: predict only: null writes videos, human opens a window as well.
        fps: pictures per second of videos and of the window.
        seed: of every episode and minibatch; the command line hands it --seed_everything.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    stream: ReplayStream
    hparams: Any  # attribute access to the arguments of `__init__`

    def __init__(
        self,
        env: str = "breakout",
        env_kwargs: dict[str, Any] | None = None,
        tasks: list[str] | None = None,
        frames_per_task: int = 1_000_000,
        cycles: int = 1,
        task_conditioning: str = "none",
        epsilon_at_switch: str = "restart",
        keep_replays: bool = False,
        num_envs: int = 8,
        frame_stack: int = 4,
        frame_skip: int = 4,
        sticky_actions: float = 0.25,
        crop: tuple[int, int, int, int] | None = None,
        max_episode_frames: int = 108_000,
        full_action_space: bool = False,
        auto_fire: bool = False,
        life_loss: str = "discount",
        reward_clip: float | None = 1.0,
        replay_capacity: int = 100_000,
        replay_device: str = "cpu",
        min_replay_size: int = 5_000,
        batch_size: int = 32,
        n_step: int = 4,
        gamma: float = 0.99,
        updates_per_step: float = 0.25,
        frames_per_epoch: int = 100_000,
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.01,
        epsilon_decay_frames: int = 100_000,
        eval_games: int = 20,
        eval_idle_frames: int = 10_000,
        refill_replay: bool = False,
        render: str | None = None,
        fps: int = 15,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_data(self.hparams)
        rules = (frame_skip, sticky_actions, crop, max_episode_frames, full_action_space, auto_fire, env_kwargs or {})
        self.curriculum = make_curriculum(EnvSettings(env, *rules), tasks, frames_per_task, frames_per_epoch, cycles)
        self.settings, self.visit = self.curriculum.settings[0], 0  # of the task at hand
        self.epsilon = EpsilonSchedule(epsilon_start, epsilon_end, epsilon_decay_frames)
        self.directory: Path | None = None  # of the replay's files; in memory without one
        self.refill_replay, self.seed = refill_replay, seed
        self.frame_stack, self.num_envs, self.batch_size = frame_stack, num_envs, batch_size
        self.min_replay_size, self.updates_per_step = min_replay_size, updates_per_step
        self.frames_per_epoch, self.render, self.fps = frames_per_epoch, render, fps
        self.eval_games, self.eval_idle_frames = eval_games, eval_idle_frames
        check_env(self.settings)
        self.batches_per_epoch = int(frames_per_epoch / frame_skip * updates_per_step)
        rule = f"makes an epoch of no update at {updates_per_step} updates per step and {frame_skip} frames per step"
        check(self.batches_per_epoch >= 1, "data.frames_per_epoch", frames_per_epoch, rule)
        # A small ring finds bad settings and the shapes before anything is written.
        probe = make_envs(self.settings, num_envs)
        with contextlib.suppress(MemoryError):  # settings are checked first, and later its place is on disk
            self._replay(probe)
        self.num_actions, self.num_categories = probe.num_actions, probe.num_categories
        self.pixel_scale, self.screen_dtype = probe.pixel_scale, probe.screen_dtype
        channels, *rest = probe.screen_shape
        self.observation_shape = (frame_stack * channels, *rest)
        probe.close()

    def agent_arguments(self) -> AgentArguments:
        """Return the arguments of `VariationalActorCritic` that follow from the environments and the tasks."""
        return {
            "game": self.game,
            "observation_shape": self.observation_shape,
            "num_actions": self.num_actions,
            "pixel_scale": self.pixel_scale,
            "num_categories": self.num_categories,
            "num_tasks": self.num_tasks,
            "task_conditioning": self.task_conditioning,
        }

    @property
    def game(self) -> str:
        """Short name of the game, or the Gymnasium id."""
        return game_name(self.settings.env)

    @property
    def num_tasks(self) -> int:
        """T, 1 without a list of tasks."""
        return len(self.curriculum.settings)

    @property
    def task_conditioning(self) -> str:
        """What the networks are told of the task."""
        return self.hparams.task_conditioning

    def _replay(self, envs: VectorEnvs, directory: Path | None = None) -> ReplayBuffer:
        options, device = self.hparams, self._copy_device
        kept: dict[str, Any] = {"slack": self.slack, "directory": directory}
        kept |= {key: options[key] for key in ("frame_stack", "n_step", "gamma", "life_loss", "reward_clip")}
        arguments = (options.replay_capacity, envs.num_envs, envs.screen_shape, envs.screen_dtype)
        return ReplayBuffer(*arguments, **kept) if device is None else DeviceReplay(*arguments, device=device, **kept)

    @property
    def _copy_device(self) -> torch.device | None:
        """Where a copy of the replay is; None without one, as before training."""
        copied = self.hparams.replay_device == "cuda" and self.trainer is not None
        return self.trainer.strategy.root_device if copied else None  # type: ignore[union-attr]

    def setup(self, stage: str) -> None:
        """Build environments, replay and stream before training; nothing is needed for playing games."""
        if stage != "fit" or self.trainer is None:
            return
        trainer = self.trainer
        agent: Any = trainer.lightning_module
        self.visit, self.settings = 0, self.curriculum.settings[0]
        envs, replay = self._games_and_replay(0)
        self.stream = ReplayStream(
            envs,
            replay,
            agent.act,
            self.epsilon if agent.explores_at_random else EpsilonSchedule(0, 0, 0),
            batch_size=self.batch_size,
            updates_per_step=self.updates_per_step,
            batches_per_epoch=max(1, self.batches_per_epoch // trainer.world_size),
            min_replay_size=self.min_replay_size // trainer.world_size,
            frame_skip=self.settings.frame_skip,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            refill_replay=self.refill_replay,
            draw_policy=agent.act_by_draw if agent.explores_by_draw else None,
            keep_replays=self.hparams.keep_replays,
            restart_epsilon=self.hparams.epsilon_at_switch == "restart",
        )

    def start_visit(self, visit: int) -> None:
        """Go on to another visit of the curriculum: new games, an empty replay.

        The replay that is left stays on disk for one visit more: until the next checkpoint, the last one refers to it.
        """
        task = self.curriculum.task(visit)
        self.visit, self.settings = visit, self.curriculum.settings[task]
        self.stream.switch(task, *self._games_and_replay(visit))
        for old in range(visit - 1):
            directory = self._replay_directory(old)
            if directory is not None and not self.hparams.keep_replays:
                shutil.rmtree(directory, ignore_errors=True)

    def _replay_directory(self, visit: int) -> Path | None:
        if self.directory is None or self.trainer is None:
            return None
        rank = self.directory / f"rank{self.trainer.global_rank}"
        return rank if self.hparams.tasks is None else rank / f"visit{visit}"

    def _games_and_replay(self, visit: int) -> tuple[VectorEnvs, ReplayBuffer]:
        envs = make_envs(self.curriculum.settings[self.curriculum.task(visit)], self.num_envs)
        return envs, self._replay(envs, self._replay_directory(visit))

    def fisher_samples(self, count: int) -> Transition:
        """So many transitions of the task at hand, for its Fisher information; the same ones at the same update."""
        rng = np.random.default_rng([self.seed, self.stream.rank, FISHER, self.stream.updates])
        return self.stream.replay.sample(count, rng)

    @property
    def slack(self) -> int:
        """Slots of a ring that are not sampled: a quarter more than the steps of an epoch, for its final screens."""
        steps = -(-self.frames_per_epoch // (self.settings.frame_skip * self.num_envs))
        return steps + steps // 4

    @property
    def replays(self) -> int:
        """Replays that there are at once: those of all visits, or of one and the one before."""
        return self.curriculum.visits if self.hparams.keep_replays else min(2, self.curriculum.visits)

    def train_dataloader(self) -> StreamLoader:
        """The stream: no DataLoader, because a worker process would act with a stale copy of the policy."""
        return StreamLoader(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Counters, environments and the replay's positions; part of every checkpoint."""
        return {"visit": self.visit, "stream": self.stream.state_dict()} if hasattr(self, "stream") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made; games by a trained agent need none of it."""
        if self.trainer is not None and self.trainer.state.fn == "fit" and "stream" in state_dict:
            for visit in range(1, state_dict["visit"] + 1):
                if visit == state_dict["visit"] or self.hparams.keep_replays:
                    self.start_visit(visit)
            self.stream.load_state_dict(state_dict["stream"])

    def games(self, stage: str, count: int | None = None, task: int = 0) -> Games:
        """The games of a stage (`validate`, `test` or `predict`) and task, split over ranks."""
        count = count or self.eval_games
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        seeds = [episode_seed(self.seed, STAGES[stage], task, game) for game in range(count)][rank::world_size]
        options = self.hparams
        every = 1 if stage == "predict" else ESTIMATE_EVERY
        return Games(
            self.curriculum.settings[task],
            seeds,
            self.frame_stack,
            self.eval_idle_frames,
            options.life_loss,
            options.reward_clip,
            every,
            task=task,
        )

    @property
    def gamma(self) -> float:
        """Discount per agent step."""
        return self.hparams.gamma

    def _loader(self, stage: str) -> GameLoader:
        quick = self.trainer is not None and getattr(self.trainer, "fast_dev_run", False)
        return GameLoader([self.games(stage, 1 if quick else None, task) for task in range(self.num_tasks)])

    def val_dataloader(self) -> GameLoader:
        """One batch for each task: its validation games."""
        return self._loader("validate")

    def test_dataloader(self) -> GameLoader:
        """One batch for each task: its test games."""
        return self._loader("test")

    def predict_dataloader(self) -> GameLoader:
        """One batch for each task: its games to be shown."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Close the training environments."""
        if stage == "fit" and hasattr(self, "stream"):
            self.stream.finish_step()
            self.stream.envs.close()
