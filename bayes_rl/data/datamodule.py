"""Data module: environments, replay and stream for training; whole games by seed for all other stages."""

from __future__ import annotations

import contextlib
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from bayes_rl.data.curriculum import CurriculumSettings, make_curriculum
from bayes_rl.data.device_replay import DeviceReplay
from bayes_rl.data.exploration import DrawSchedule, EpsilonSchedule
from bayes_rl.data.n_step import return_bounds
from bayes_rl.data.replay import ReplayBuffer, ReplaySettings
from bayes_rl.data.stream import ReplayStream, StreamLoader
from bayes_rl.envs.base import EnvSettings, EpisodeRules, VectorEnvs
from bayes_rl.envs.kinds import check_env, game_name, games_repeat, make_envs
from bayes_rl.envs.shared_spaces import task_name, task_settings
from bayes_rl.errors import ConfigError, check
from bayes_rl.evaluation.games import GameLoader, Games
from bayes_rl.evaluation.novel_states import NovelStates
from bayes_rl.evaluation.settings import GameSettings
from bayes_rl.types import AgentArguments, Transition
from bayes_rl.utils.failures import warn_of_failure
from bayes_rl.utils.ranks import gather_from_ranks, num_ranks
from bayes_rl.utils.seeds import Domain, derived_seed, seed_sequence
from bayes_rl.utils.settings import as_settings

STAGES = {"validate": Domain.VALIDATE_GAME, "test": Domain.TEST_GAME, "predict": Domain.PREDICT_GAME}
"""Domains of the seeds of whole games, so that no two stages play the same games."""


ESTIMATE_EVERY = 4
"""Agent steps between two value estimates in a validation game: consecutive states have similar values."""

SAMPLED_STATES = 512
"""States of the games of a validation by which uncertainty is tested."""

RECORDED_SCREENS = 64
"""Most screens of the first game of a validation that are kept for a picture."""


def shares(total: int, count: int) -> list[int]:
    """Return `count` whole numbers with the sum `total` that differ by one at most, the larger ones first."""
    share, rest = divmod(total, count)
    return [share + (number < rest) for number in range(count)]


def single_task_settings(settings: EnvSettings, tasks: list[str] | None, spaces_of: list[str]) -> EnvSettings:
    """Return the settings of a game with the observations and actions that it shares with others.

    Args:
        settings: of the game.
        tasks: the option `data.tasks`, which must be null.
        spaces_of: ids of the games, that of `settings` among them.

    Raises:
        ConfigError: the games cannot share a network, or the game is not among them.
    """
    key = "data.spaces_of"
    check(tasks is None, key, spaces_of, "is for a single --data.env; --data.tasks share their spaces anyway")
    names, name = [task_name(env) for env in spaces_of], task_name(settings.env)
    check(name in names, key, spaces_of, f"does not name --data.env {settings.env}")
    try:
        return task_settings(settings, spaces_of)[names.index(name)]
    except ConfigError as error:
        if error.key == "data.tasks":  # the user typed another option
            error.key, error.args = key, (str(error).replace("--data.tasks", f"--{key}"),)
        raise


def limited(count: int, limit: float) -> int:
    """Return the number of minibatches of an epoch under the trainer's limit.

    Args:
        count: number without the limit.
        limit: `trainer.limit_train_batches`: a float is a share (1.0 is all), an integer a number (1 is one).
    """
    return int(count * limit) if isinstance(limit, float) else min(count, limit)


class ReplayDataModule(pl.LightningDataModule):
    """Data module that streams n-step transitions from an env-stepping replay. Validation batches are whole games.

    Each group of settings is an object of its class, which documents the fields, or a dictionary of the fields.

    A checkpoint holds `state_dict`, with which a resumed run continues: the number of the visit and the stream's state.

    Several processes (ranks) can train one agent, each with its share of the environments, the replay, every minibatch
    and the games. All options are totals over ranks.

    Args:
        env: any Gymnasium id with discrete actions, also as `my_module:My-v0`, or the short name of a bundled Atari
            game (`breakout`).
        env_kwargs: keyword arguments of the environment's constructor, e.g. '{size: 20}' of bayes_rl/DeepSea-v0.
        tasks: several games to learn one after the other, instead of `env`; all are Atari games, or none is.
        spaces_of: several games, `env` among them. `env` is learned alone, with the observations and actions that all
            of them share: a reference for agents that learn all of them as `tasks`.
        observation: reading of observations: auto, image, planes or vector; a line at the start says the reading.
        channels: place of the channels in observations of three axes: auto, first or last.
        grey: average the colours of images; otherwise each colour is a channel.
        num_envs: number of environments that are stepped together.
        frame_stack: newest screens per observation.
        updates_per_step: updates per agent step; 0.25 is one per four steps.
        frames_per_epoch: environment frames per epoch; an epoch ends with a validation and a checkpoint.
        rules: rules of an episode.
        replay: replay, minibatches and n-step returns.
        epsilon: probability of a random action.
        draws: probability that an episode is played by a posterior draw, where the agent explores by draws.
        curriculum: training on several tasks.
        evaluation: whole games per validation, and their videos.
        refill_replay: collect a new replay when a run resumes, instead of requiring the old one.
        seed: seed of every episode and minibatch; the command line sets it to --seed_everything.

    Raises:
        ConfigError: a setting cannot work; the error names it.
    """

    stream: ReplayStream
    hparams: Any  # attribute access to the arguments of `__init__`

    def __init__(
        self,
        env: str = "breakout",
        env_kwargs: dict[str, Any] | None = None,
        tasks: list[str] | None = None,
        spaces_of: list[str] | None = None,
        observation: str = "auto",
        channels: str = "auto",
        grey: bool = True,
        num_envs: int = 8,
        frame_stack: int = 4,
        updates_per_step: float = 0.25,
        frames_per_epoch: int = 100_000,
        rules: EpisodeRules = EpisodeRules(),
        replay: ReplaySettings = ReplaySettings(),
        epsilon: EpsilonSchedule = EpsilonSchedule(),
        draws: DrawSchedule = DrawSchedule(),
        curriculum: CurriculumSettings = CurriculumSettings(),
        evaluation: GameSettings = GameSettings(),
        refill_replay: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rules = as_settings(EpisodeRules, rules, "data.rules")
        self.epsilon = as_settings(EpsilonSchedule, epsilon, "data.epsilon")
        self.draws = as_settings(DrawSchedule, draws, "data.draws")
        self.replay_settings = as_settings(ReplaySettings, replay, "data.replay")
        self.curriculum_settings = as_settings(CurriculumSettings, curriculum, "data.curriculum")
        self.evaluation = as_settings(GameSettings, evaluation, "data.evaluation")
        # Plain dictionaries, so that a checkpoint holds tensors and primitives only.
        groups = {
            "rules": asdict(rules),
            "replay": asdict(self.replay_settings),
            "epsilon": asdict(self.epsilon),
            "draws": asdict(self.draws),
            "curriculum": asdict(self.curriculum_settings),
            "evaluation": asdict(self.evaluation),
        }
        ungrouped = {
            "env": env,
            "observation": observation,
            "channels": channels,
            "grey": grey,
            "env_kwargs": env_kwargs,
            "tasks": tasks,
            "spaces_of": spaces_of,
            "num_envs": num_envs,
            "frame_stack": frame_stack,
            "updates_per_step": updates_per_step,
            "frames_per_epoch": frames_per_epoch,
            "refill_replay": refill_replay,
            "seed": seed,
        }
        self.save_hyperparameters({**ungrouped, **groups})
        check(updates_per_step > 0, "data.updates_per_step", updates_per_step, "must be positive")
        if tasks is None:
            self.curriculum_settings.check_single_task()
        first = EnvSettings(
            env,
            **asdict(rules),
            env_kwargs=env_kwargs or {},
            observation=observation,
            channels=channels,
            grey=grey,
        )
        if spaces_of is not None:
            first = single_task_settings(first, tasks, spaces_of)
        self.curriculum = make_curriculum(first, tasks, self.curriculum_settings, frames_per_epoch)
        self.settings, self.visit = self.curriculum.settings[0], 0  # of the current task
        self.directory: Path | None = None  # of the replay's files; None keeps the replay in memory
        self.refill_replay, self.seed = refill_replay, seed
        self.frame_stack, self.num_envs, self.updates_per_step = frame_stack, num_envs, updates_per_step
        self.tasks, self.frames_per_epoch = tasks, frames_per_epoch
        check_env(self.settings)
        skip = self.settings.frame_skip
        self.batches_per_epoch = int(frames_per_epoch / skip * updates_per_step)
        problem = f"makes an epoch of no update at {updates_per_step} updates per step and {skip} frames per step"
        check(self.batches_per_epoch >= 1, "data.frames_per_epoch", frames_per_epoch, problem)
        # One environment and a replay in memory check the settings, before a run writes anything. One is enough,
        # because emulators load their games one after the other, in 90 ms each.
        probe = make_envs(self.settings, min(num_envs, 1))
        # The replay checks its settings before it takes memory, and the replay of a run is on disk.
        with contextlib.suppress(MemoryError):
            self._replay(probe, num_envs)
        self.num_actions, self.num_categories = probe.num_actions, probe.num_categories
        self.pixel_scale, self.screen_dtype = probe.pixel_scale, probe.screen_dtype
        self.reading = probe.reading
        planes, *height_and_width = probe.screen_shape  # a vector has no height and width
        self.observation_shape = (frame_stack * planes, *height_and_width)
        with warn_of_failure("closing the environments that show the shapes"):
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
        """Number of tasks T, 1 without a list of tasks."""
        return len(self.curriculum.settings)

    @property
    def task_conditioning(self) -> str:
        """Part of the networks that each task has for itself (none, gains or heads)."""
        return self.curriculum_settings.task_conditioning

    def _replay(self, envs: VectorEnvs, num_envs: int, directory: Path | None = None) -> ReplayBuffer:
        """Return an empty replay for `num_envs` environments like `envs`, with its files in `directory`."""
        settings, device = self.replay_settings, self._copy_device
        capacity = settings.capacity * num_envs // self.num_envs  # of this rank
        shapes = (capacity, num_envs, envs.screen_shape, envs.screen_dtype)
        options: dict[str, Any] = {
            "frame_stack": self.frame_stack,
            "n_step": settings.n_step,
            "gamma": settings.gamma,
            "life_loss": settings.life_loss,
            "reward_clip": settings.reward_clip,
            "slack": self.slack,
            "directory": directory,
        }
        return ReplayBuffer(*shapes, **options) if device is None else DeviceReplay(*shapes, device=device, **options)

    @property
    def _copy_device(self) -> torch.device | None:
        """Device of the replay's copy; None without a copy, and before training."""
        copied = self.replay_settings.device == "cuda" and self.trainer is not None
        return self.trainer.strategy.root_device if copied else None  # type: ignore[union-attr]

    def setup(self, stage: str) -> None:
        """Make environments, replay and stream before training. Other stages need none of them."""
        if stage != "fit" or self.trainer is None:
            return
        trainer, ranks = self.trainer, self.trainer.world_size
        agent: Any = trainer.lightning_module
        self.check_ranks(ranks)
        self.directory = trainer.strategy.broadcast(self.directory)  # rank 0 has chosen the directory of the run
        self.visit, self.settings = 0, self.curriculum.settings[0]
        envs, replay = self._envs_and_replay(0)
        self.stream = ReplayStream(
            envs,
            replay,
            agent.act,
            self.epsilon if agent.explores_at_random else EpsilonSchedule(0, 0, 0),
            batch_size=self.replay_settings.batch_size // ranks,
            updates_per_step=self.updates_per_step,
            batches_per_epoch=self.batches_per_epoch,
            replay_min_size=self.replay_settings.min_size,
            frame_skip=self.settings.frame_skip,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=ranks,
            refill_replay=self.refill_replay,
            draw_policy=agent.act_by_draw if agent.explores_by_draw else None,
            draws=self.draws,
            keep_replays=self.curriculum_settings.keep_replays,
            restart_schedules=self.curriculum_settings.epsilon_at_switch == "restart",
            newest_share=self.replay_settings.newest_share,
            newest=-(-self.replay_settings.newest // ranks),
            epoch_limit=limited(self.batches_per_epoch, trainer.limit_train_batches),
        )

    def check_ranks(self, ranks: int, training: bool = True) -> None:
        """Raise `ConfigError` unless the options can be shared out to this number of ranks.

        Args:
            ranks: number of processes.
            training: whether they train one agent; else they play games alone.
        """
        shared = {"evaluation.games": self.evaluation.games}
        if training:
            replay = self.replay_settings
            sizes = {"replay.batch_size": replay.batch_size, "replay.capacity": replay.capacity}
            shared = {"num_envs": self.num_envs} | sizes | shared
        for key, value in shared.items():
            nearest = max(1, round(value / ranks)) * ranks
            problem = f"is not divided by {ranks} ranks; nearest: {nearest}"
            check(value % ranks == 0, f"data.{key}", value, problem)

    def start_visit(self, visit: int) -> None:
        """Switch to another visit of the curriculum, with new environments and an empty replay.

        The replay of the visit before stays on disk for one more visit, because the last checkpoint refers to it until
        the next checkpoint is written.
        """
        task = self.curriculum.task(visit)
        self.visit, self.settings = visit, self.curriculum.settings[task]
        self.stream.switch(task, *self._envs_and_replay(visit))
        for earlier_visit in range(visit - 1):
            directory = self._replay_directory(earlier_visit)
            if directory is not None and not self.curriculum_settings.keep_replays:
                shutil.rmtree(directory, ignore_errors=True)

    def _replay_directory(self, visit: int) -> Path | None:
        """Return the folder of the replay of a visit; None keeps the replay in memory."""
        if self.directory is None or self.trainer is None:
            return None
        directory = self.directory / f"rank{self.trainer.global_rank}"
        return directory if self.tasks is None else directory / f"visit{visit}"

    def _envs_and_replay(self, visit: int) -> tuple[VectorEnvs, ReplayBuffer]:
        """Return new environments and an empty replay for a visit. Warn if games do not repeat."""
        settings = self.curriculum.settings[self.curriculum.task(visit)]
        repeatable = games_repeat(settings)
        if not repeatable and (self.trainer is None or self.trainer.is_global_zero):
            effect = "the run cannot be repeated exactly, and a resumed run starts new games"
            print(f"warning: {settings.env}: games with one seed and the same actions differ: {effect}", flush=True)
        ranks = self.trainer.world_size if self.trainer is not None else 1
        envs = make_envs(settings, self.num_envs // ranks)
        envs.repeatable = repeatable
        return envs, self._replay(envs, envs.num_envs, self._replay_directory(visit))

    def sample_transitions(self, count: int, newest_share: float) -> Transition:
        """Draw transitions of the current task, such as those of its Fisher information, as a function of the update.

        Each rank draws its share from its replay. All ranks get the transitions of all.

        Args:
            count: number of transitions; of several ranks as many of each, or a few more.
            newest_share: share of the replay, its newest part, to draw from, in (0, 1]; at least `count` transitions.
        """
        own = self.sample_own_transitions(count, newest_share)
        return own if num_ranks() == 1 else Transition.cat(gather_from_ranks(own.map(Tensor.cpu)))

    def sample_own_transitions(self, count: int, newest_share: float) -> Transition:
        """Draw this rank's share of what `sample_transitions` returns. The ranks exchange nothing."""
        seed = seed_sequence(Domain.SAMPLED_TRANSITIONS, self.seed, self.stream.rank, self.stream.updates)
        rng = np.random.default_rng(seed)
        replay, share = self.stream.replay, -(-count // num_ranks())
        newest = None if newest_share == 1 else max(share, math.ceil(newest_share * replay.num_windows))
        return replay.sample(share, rng, newest)

    @property
    def slack(self) -> int:
        """Slots of a ring that are not sampled (the steps of an epoch, and a quarter more for final screens)."""
        steps = -(-self.frames_per_epoch // (self.settings.frame_skip * self.num_envs))
        return steps + steps // 4

    @property
    def replays(self) -> int:
        """Number of replays on disk at once (of all visits, or of the current visit and the visit before)."""
        return self.curriculum.visits if self.curriculum_settings.keep_replays else min(2, self.curriculum.visits)

    def train_dataloader(self) -> StreamLoader:
        """Return the stream. A `DataLoader` would act with an outdated copy of the policy in its worker process."""
        return StreamLoader(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Return counters, environments and the replay's positions, which are part of every checkpoint.

        With several ranks, `stream` is the state of this rank, and `common` has the counters of all.
        """
        if not hasattr(self, "stream"):
            return {}
        state = {"visit": self.visit, "stream": self.stream.state_dict()}
        ranks = self.stream.world_size
        of_ranks = {"rank": self.stream.rank, "ranks": ranks, "common": self.stream.common_state()} if ranks > 1 else {}
        return state | of_ranks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the stream of the checkpoint. Only training needs it.

        Raises:
            ConfigError: the checkpoint lacks the state of this rank, and `refill_replay` is not set.
        """
        if self.trainer is None or self.trainer.state.fn != "fit" or "visit" not in state_dict:
            return
        saved, ranks = state_dict.get("ranks", 1), self.stream.world_size
        own = saved == ranks and state_dict.get("rank", 0) == self.stream.rank and "stream" in state_dict
        if not own and not self.refill_replay:
            reason = f"was saved by {saved} ranks, and {ranks} would go on; resume with {saved}"
            if saved == ranks:
                reason = f"lacks the games and replays of its {ranks} ranks, which its manifest seals"
            problem = f"{reason}, or collect again with --data.refill_replay true"
            raise ConfigError("ckpt_path", str(self.trainer.ckpt_path), problem)
        for visit in range(1, state_dict["visit"] + 1):
            if visit == state_dict["visit"] or self.curriculum_settings.keep_replays:
                self.start_visit(visit)
        if own:
            self.stream.load_state_dict(state_dict["stream"])
        else:
            self.stream.load_common_state(state_dict.get("common") or state_dict["stream"])

    def games(self, stage: str, count: int | None = None, task: int = 0) -> Games:
        """Return this rank's games of a stage and a task.

        Args:
            stage: `validate`, `test` or `predict`.
            count: number of games over all ranks; None means `evaluation.games`.
            task: number of the task.
        """
        count = count or self.evaluation.games
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        seeds = [derived_seed(STAGES[stage], self.seed, task, game) for game in range(count)]
        shown = stage == "predict"
        return Games(
            self.curriculum.settings[task],
            seeds[rank::world_size],
            self.frame_stack,
            self.evaluation.idle_frames,
            self.replay_settings.life_loss,
            self.replay_settings.reward_clip,
            1 if shown else ESTIMATE_EVERY,
            task=task,
            sampled_states=[] if shown else shares(SAMPLED_STATES, count)[rank::world_size],
            novel=None if shown else self.novel_states(task),
            recorded_screens=RECORDED_SCREENS if stage == "validate" and rank == 0 else 0,
        )

    def novel_states(self, task: int = 0) -> NovelStates:
        """Return the maker of states that are novel to an agent of a task."""
        trained = [game_name(settings.env) for settings in self.curriculum.settings]
        settings = self.curriculum.settings[task]
        return NovelStates(settings, self.observation_shape, self.frame_stack, self.num_categories, trained)

    @property
    def return_bounds(self) -> tuple[float, float]:
        """Smallest and largest discounted return, in clipped return units; infinite if rewards are not clipped."""
        settings, rules = self.replay_settings, self.settings
        steps = -(-rules.max_episode_frames // rules.frame_skip)
        return return_bounds(settings.gamma, settings.life_loss, settings.reward_clip, steps)

    @property
    def gamma(self) -> float:
        """Discount per agent step, in [0, 1]."""
        return self.replay_settings.gamma

    def _loader(self, stage: str) -> GameLoader:
        quick = self.trainer is not None and getattr(self.trainer, "fast_dev_run", False)
        count = self.trainer.world_size if quick and self.trainer is not None else None
        return GameLoader([self.games(stage, count, task) for task in range(self.num_tasks)])

    def val_dataloader(self) -> GameLoader:
        """Return one batch per task: its validation games."""
        return self._loader("validate")

    def test_dataloader(self) -> GameLoader:
        """Return one batch per task: its test games."""
        return self._loader("test")

    def predict_dataloader(self) -> GameLoader:
        """Return one batch per task: its games to be shown."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:
        """Close the training environments."""
        if stage == "fit" and hasattr(self, "stream"):
            with warn_of_failure("the last step of the training environments"):
                self.stream.finish_step()
            self.stream.envs.close()
