"""The data: environments, replay and stream for training; whole games by seed for everything else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from bayes_rl.envs import Envs, EnvSettings, check_env, episode_seed, game_name, make_envs
from bayes_rl.exploration import EpsilonSchedule
from bayes_rl.games import GameLoader, Games
from bayes_rl.replay import ReplayBuffer
from bayes_rl.stream import ReplayStream
from bayes_rl.types import Batch, check

STAGES = {"validate": 1_000_001, "test": 1_000_002, "predict": 1_000_003}
"""Stand where training has the rank in an episode's seed, so that no stage plays another's games."""

JUDGE_EVERY = 4  # steps between the states of a validation game that the agent is asked about: neighbours are alike


class StreamLoader:
    """The stream as Lightning's training loader.

    Its state is the data module's: Lightning restores that of loaders in the middle of an epoch only. An empty one
    tells Lightning that stopping there is safe.
    """

    def __init__(self, stream: ReplayStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class ReplayDataModule(pl.LightningDataModule):
    """Streams n-step transitions from an env-stepping replay; validation batches are whole games.

    Args:
        env: any Gymnasium id with discrete actions, or the short name of a bundled Atari game (`breakout`).
        env_kwargs: keyword arguments of the environment's constructor, e.g. '{size: 20}' of bayes_rl/DeepSea-v0.
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
        self.settings = EnvSettings(
            env,
            frame_skip,
            sticky_actions,
            crop,
            max_episode_frames,
            full_action_space,
            auto_fire,
            env_kwargs=env_kwargs or {},
        )
        self.epsilon = EpsilonSchedule(epsilon_start, epsilon_end, epsilon_decay_frames)
        self.directory: Path | None = None  # of the replay's files; in memory without one
        self.refill_replay, self.seed = refill_replay, seed
        self.frame_stack, self.num_envs, self.batch_size = frame_stack, num_envs, batch_size
        self.min_replay_size, self.updates_per_step = min_replay_size, updates_per_step
        self.frames_per_epoch = frames_per_epoch
        self.eval_games, self.eval_idle_frames = eval_games, eval_idle_frames
        self.render, self.fps = render, fps
        check(replay_capacity >= 1, "data.replay_capacity", replay_capacity, "must be a positive number of transitions")
        check(batch_size >= 1, "data.batch_size", batch_size, "must be a positive number of transitions")
        check(
            replay_capacity >= batch_size,
            "data.batch_size",
            batch_size,
            f"exceeds the replay of {replay_capacity} slots",
        )
        limit = f"must lie between 1 and the replay's capacity, {replay_capacity}"
        check(1 <= min_replay_size <= replay_capacity, "data.min_replay_size", min_replay_size, limit)
        check(updates_per_step > 0, "data.updates_per_step", updates_per_step, "must be positive")
        check(eval_games >= 1, "data.eval_games", eval_games, "must be at least 1 game")
        check(eval_idle_frames >= 0, "data.eval_idle_frames", eval_idle_frames, "must be zero or more frames")
        check(render in (None, "human"), "data.render", render, "must be null or 'human'")
        check(fps >= 1, "data.fps", fps, "must be at least 1 picture per second")
        check_env(self.settings)
        self.batches_per_epoch = int(frames_per_epoch / frame_skip * updates_per_step)
        rule = f"makes an epoch of no update at {updates_per_step} updates per step and {frame_skip} frames per step"
        check(self.batches_per_epoch >= 1, "data.frames_per_epoch", frames_per_epoch, rule)
        # A small ring finds bad settings and the shapes before anything is written.
        probe = make_envs(self.settings, num_envs)
        self._replay(probe)
        self.num_actions, self.num_categories = probe.num_actions, probe.num_categories
        self.pixel_scale = probe.pixel_scale
        channels, *rest = probe.screen_shape
        self.observation_shape = (frame_stack * channels, *rest)
        probe.close()

    @property
    def game(self) -> str:
        """Short name of the game, or the Gymnasium id."""
        return game_name(self.settings.env)

    def _replay(self, envs: Envs, directory: Path | None = None) -> ReplayBuffer:
        options = self.hparams
        steps_per_epoch = -(-self.frames_per_epoch // (self.settings.frame_skip * envs.num_envs))
        return ReplayBuffer(
            options.replay_capacity,
            envs.num_envs,
            envs.screen_shape,
            envs.screen_dtype,
            frame_stack=self.frame_stack,
            n_step=options.n_step,
            gamma=options.gamma,
            life_loss=options.life_loss,
            reward_clip=options.reward_clip,
            # A quarter more than the steps of an epoch, for the final screens of its episodes.
            slack=steps_per_epoch + steps_per_epoch // 4,
            directory=directory,
        )

    def setup(self, stage: str) -> None:
        """Build environments, replay and stream before training; nothing is needed for playing games."""
        if stage != "fit" or self.trainer is None:
            return
        trainer = self.trainer
        agent: Any = trainer.lightning_module
        envs = make_envs(self.settings, self.num_envs)
        directory = self.directory / f"rank{trainer.global_rank}" if self.directory else None
        self._check_disk(envs, directory)
        self.stream = ReplayStream(
            envs,
            self._replay(envs, directory),
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
        )

    def _check_disk(self, envs: Envs, directory: Path | None) -> None:
        if directory is None:
            return
        capacity = self.hparams.replay_capacity
        screen = int(np.prod(envs.screen_shape)) * envs.screen_dtype.itemsize
        parent = next(p for p in [directory, *directory.absolute().parents] if p.exists())
        held = sum(f.stat().st_blocks * 512 for f in directory.glob("*")) if directory.is_dir() else 0
        need, free = capacity * screen - held, shutil.disk_usage(parent).free
        check(
            need < free, "data.replay_capacity", capacity, f"needs {need >> 20} MiB of disk, {free >> 20} MiB are free"
        )

    def train_dataloader(self) -> StreamLoader:
        """The stream: no DataLoader, because a worker process would act with a stale copy of the policy."""
        return StreamLoader(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Counters, environments and the replay's positions; part of every checkpoint."""
        return {"stream": self.stream.state_dict()} if hasattr(self, "stream") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was made; games by a trained agent need none of it."""
        if self.trainer is not None and self.trainer.state.fn == "fit" and "stream" in state_dict:
            self.stream.load_state_dict(state_dict["stream"])

    def games(self, stage: str, count: int | None = None) -> Games:
        """The games of a stage (`validate`, `test` or `predict`), split over ranks."""
        count = count or self.eval_games
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        seeds = [episode_seed(self.seed, STAGES[stage], 0, game) for game in range(count)][rank::world_size]
        options = self.hparams
        every = 1 if stage == "predict" else JUDGE_EVERY
        return Games(
            self.settings,
            seeds,
            self.frame_stack,
            self.eval_idle_frames,
            options.life_loss,
            options.reward_clip,
            every,
        )

    @property
    def gamma(self) -> float:
        """Discount per agent step."""
        return self.hparams.gamma

    def _loader(self, stage: str) -> GameLoader:
        quick = self.trainer is not None and getattr(self.trainer, "fast_dev_run", False)
        return GameLoader(self.games(stage, 1 if quick else None))

    def val_dataloader(self) -> GameLoader:
        """One batch: the validation games."""
        return self._loader("validate")

    def test_dataloader(self) -> GameLoader:
        """One batch: the test games."""
        return self._loader("test")

    def predict_dataloader(self) -> GameLoader:
        """One batch: the games to be shown."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Close the training environments."""
        if stage == "fit" and hasattr(self, "stream"):
            self.stream.finish_step()
            self.stream.envs.close()
