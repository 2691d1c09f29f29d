"""Environments stepped together, and the seeds that name their episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayes_rl.errors import ConfigError, check
from bayes_rl.utils.seeds import Domain, derived_seed

BoolArray = NDArray[np.bool_]


UNSEEDED = -1
"""Seed of a reset that continues the random numbers of an environment."""


@dataclass
class ActionHistory:
    """Actions and resets of an environment since its last seeded reset; seed and history name the state.

    Attributes:
        actions: executed actions, in order.
        resets: numbers of actions before each unseeded reset, ascending.
    """

    actions: list[int] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)


class Step(NamedTuple):
    """Result of one agent step of every environment.

    Attributes:
        screens: newest screen of each environment, `[E, *screen_shape]`, of the environments' `screen_dtype`.
        rewards: raw, summed over the frame skip, `[E]` float32.
        terminated: `[E]` bool.
        truncated: `[E]` bool.
        lives: `[E]` int64, 0 where the game has none.
    """

    screens: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: BoolArray
    truncated: BoolArray
    lives: NDArray[np.int64]


@dataclass(frozen=True)
class EpisodeRules:
    """Rules of an episode that a user chooses. They are checked by the kind of environment.

    Args:
        frame_skip: environment frames per agent step; the last two are max-pooled on Atari.
        sticky_actions: probability that the previous action is repeated, in [0, 1) (Machado et al. 2018: 0.25).
        crop: [top, bottom, left, right] of the 210 x 160 Atari screen to keep, in pixels; null keeps all.
        max_episode_frames: frames after which a game is truncated.
        full_action_space: all 18 Atari actions instead of the game's own.
        auto_fire: press FIRE at the start of a game and after each lost life (Atari games that have FIRE).
    """

    frame_skip: int = 4
    sticky_actions: float = 0.25
    crop: tuple[int, int, int, int] | None = None
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    auto_fire: bool = False


@dataclass(frozen=True)
class EnvSettings:
    """Rules of a game: with a seed and actions, they determine an episode.

    Args:
        env: Gymnasium id with discrete actions, or a short name of a bundled Atari game (`breakout`).
        frame_skip: environment frames per agent step; the last two are max-pooled on Atari.
        sticky_actions: probability in [0, 1) that the previous action is repeated (Machado et al. 2018).
        crop: `[top, bottom, left, right]` of the 210 x 160 Atari screen to keep, in pixels, or None for all of it.
        max_episode_frames: frames after which a game is truncated.
        full_action_space: all 18 Atari actions instead of the game's own.
        auto_fire: press FIRE at the start of a game and after each lost life (Atari games that have FIRE).
        env_kwargs: keyword arguments of the environment's constructor; empty for Atari games.
        observation: reading of observations: auto, image, planes or vector (see `read_observations`).
        channels: place of the channels among three axes: auto, first or last.
        grey: average the colours of images.
        remark: sentence on settings that the id decides, for users; empty if the id decides none.
        screen_shape: shape of a screen that several games share; () leaves screens as they are.
        places: index along the first axis of the shared screen of each plane or number of this game; other planes
            are zero.
        action_map: action of this game for each action of the agent; () if they are equal.
    """

    env: str
    frame_skip: int = 4
    sticky_actions: float = 0.25
    crop: tuple[int, int, int, int] | None = None
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    auto_fire: bool = False
    env_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    observation: str = "auto"
    channels: str = "auto"
    grey: bool = True
    remark: str = field(default="", compare=False)
    screen_shape: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    action_map: tuple[int, ...] = ()


class EnvKind(ABC):
    """Kind of environment: which ids belong to it, and how games of it are checked, made, drawn and shared.

    `envs/kinds.py` lists the kinds. A kind states only what differs from the defaults here.

    Attributes:
        title: what a game of this kind is, with an article, for messages.
        reads_observations: whether observations of this kind have to be read, by the options `data.observation`,
            `data.channels` and `data.grey`.
        repeatable: whether every episode of this kind is known to be a function of its seed and actions.
        ignored_rules: fields of `EpisodeRules` that the kind does not read.
    """

    title: str = "an environment of its own kind"
    reads_observations: bool = False
    repeatable: bool = False
    ignored_rules: tuple[str, ...] = ()

    @abstractmethod
    def knows(self, env: str) -> bool:
        """Return whether `env` is the id of a game of this kind."""

    def ids(self) -> Iterable[str]:
        """Return ids to propose when a user mistypes one."""
        return ()

    def game_name(self, env: str) -> str:
        """Return the short name of a game, for tags, tables and human scores."""
        return env

    def with_own_rules(self, settings: EnvSettings) -> EnvSettings:
        """Return the settings with the rules that an id decides by itself, and a remark that names them.

        Raises:
            ConfigError: if games of the id cannot be played.
        """
        return settings

    def check(self, settings: EnvSettings) -> None:
        """Check the settings that depend on the kind.

        Args:
            settings: of a game of this kind; frame skip, sticky actions and frame limit are in range.

        Raises:
            ConfigError: naming the setting that cannot work.
        """
        crop = settings.crop and list(settings.crop)
        check(settings.crop is None, "data.rules.crop", crop, "is for Atari games; drop it")
        if not self.reads_observations:
            for name, usual in (("observation", "auto"), ("channels", "auto"), ("grey", True)):
                value = getattr(settings, name)
                check(value == usual, f"data.{name}", value, f"has no effect on {self.title}; drop it")

    @abstractmethod
    def make(self, settings: EnvSettings, num_envs: int) -> VectorEnvs:
        """Return `num_envs` environments that were not reset yet.

        Raises:
            ConfigError: naming the setting with which no environment can be made.
        """

    def action_names(self, settings: EnvSettings, num_actions: int) -> list[str]:
        """Return a name for each of `num_actions` actions: their numbers by default."""
        return [str(action) for action in range(num_actions)]

    @abstractmethod
    def render(self, settings: EnvSettings, seed: int, actions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Play the game (seed, actions) again and yield RGB images `[H, W, 3]`: one at the start, one per action.

        Raises:
            ConfigError: if games of this kind cannot be drawn here.
        """

    def share_spaces(self, settings: Sequence[EnvSettings]) -> list[EnvSettings]:
        """Return settings of several games of this kind with which all have the same observations and actions.

        Raises:
            ConfigError: if the games cannot share a network.
        """
        games = [one.env for one in settings]
        raise ConfigError("data.tasks", games, "are games of a kind that cannot share a network")


class VectorEnvs(ABC):
    """E environments stepped together: `reset`, then `send` and `recv` in turn.

    Attributes:
        name: of the game, for messages.
        num_envs: E.
        num_actions: A.
        screen_shape: of one screen, channels first for images.
        screen_dtype: uint8 for images and binary planes, int32 for numbered states, float32 for vectors.
        pixel_scale: divisor of uint8 screens.
        num_categories: n if a screen is one number in 0, ..., n - 1, shape `(1,)`; else 0.
        reading: phrase that tells a user how observations are read.
        repeatable: whether an episode is a function of its seed and actions, so that it can be restored.
        steps_per_seed: least number of steps between two seeded resets of an environment, if seeding is slow. Between
            two seeded resets, an environment whose episode ended begins the next episode at the next `send`, in place
            of a step and whatever the action, so that other environments do not wait. 0 if every reset is seeded.
    """

    name: str = ""
    num_envs: int
    num_actions: int
    screen_shape: tuple[int, ...]
    screen_dtype: np.dtype[Any]
    pixel_scale: float = 255.0
    num_categories: int = 0
    reading: str = ""
    repeatable: bool = True
    steps_per_seed: int = 0

    @abstractmethod
    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes where `mask` `[E]` is set; other environments stay as they are.

        Args:
            seeds: one for each environment in the mask, in order. `UNSEEDED` continues the environment's own random
                numbers.
            mask: `[E]`, which environments to reset.

        Returns:
            Screens `[E, *screen_shape]` and lives `[E]`, both meaningful where `mask` is set.
        """

    @abstractmethod
    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begin one agent step with `actions` `[E]`, and return the actions that the games execute, `[E]`."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step that `send` began, and return its result."""

    @abstractmethod
    def close(self) -> None:
        """Free emulators and threads."""

    def step(self, actions: NDArray[np.int64]) -> Step:
        """Call `send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def restore(self, seeds: NDArray[np.int64], histories: Sequence[ActionHistory]) -> NDArray[Any]:
        """Rebuild the state of each environment from its seed and history.

        Environments with shorter histories start later, so that all end at the same step, and play idle steps before.

        Args:
            seeds: of the last seeded reset of each environment, `[E]`.
            histories: since that reset, E of them.

        Returns:
            The newest screens `[E, *screen_shape]`.
        """
        lengths = np.array([len(h.actions) for h in histories])
        longest = int(lengths.max())
        delay = longest - lengths
        screens = np.zeros((self.num_envs, *self.screen_shape), self.screen_dtype)

        def begin(mask: BoolArray, new_seeds: NDArray[np.int64]) -> None:
            if mask.any():
                screens[mask] = self.reset(new_seeds[mask], mask)[0][mask]

        unseeded = np.full(self.num_envs, UNSEEDED)
        resets = [set(h.resets) for h in histories]
        over = np.zeros(self.num_envs, bool)
        begin(np.ones(self.num_envs, bool), seeds)
        for t in range(longest + 1):
            begin((delay == t) & (t > 0), seeds)
            due = np.array([t - d in r for r, d in zip(resets, delay, strict=True)])
            # Idle games, and games that do not replay as recorded, must not be stepped beyond their end either.
            begin(due | (over & (delay != t) & (t < longest)), unseeded)
            if t == longest:
                break
            actions = [h.actions[t - d] if t >= d else 0 for h, d in zip(histories, delay, strict=True)]
            result = self.step(np.array(actions, np.int64))
            screens[:] = result.screens
            over = result.terminated | result.truncated
        return screens


def episode_seed(seed: int, env: int, episode: int) -> int:
    """Return the seed of a training episode, a 31-bit hash.

    Args:
        seed: of the run.
        env: number of the environment among those of all ranks: ranks play the games that one process would play.
        episode: number of the episode.
    """
    return derived_seed(Domain.EPISODE, seed, 0, env, episode)
