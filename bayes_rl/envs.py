"""Vector environments by id: single screens in, no automatic reset, every episode named by its seed."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from bayes_rl.types import check, nearest
from bayes_rl.wrappers import SIDE, FrameSkip, FreshStart, Screen

gym.register_envs(ale_py)
with contextlib.suppress(ImportError):  # MinAtar is an extra
    from minatar.gym import register_envs as _register_minatar

    _register_minatar()

ATARI_ROWS, ATARI_COLUMNS = 210, 160
FIRE = 1
BoolArray = NDArray[np.bool_]


class Step(NamedTuple):
    """What one agent step of every environment returned.

    Attributes:
        screens: newest screen of each, `[E, *screen_shape]`, uint8 or float32.
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
class EnvSettings:
    """Everything that decides what an episode of a given seed is.

    Args:
        env: Gymnasium id with discrete actions, or a short name of a bundled Atari game (`breakout`).
        frame_skip: environment frames per agent step; the last two are max-pooled on Atari.
        sticky_actions: probability in [0, 1) that the previous action is repeated (Machado et al. 2018).
        crop: `[top, bottom, left, right]` of the 210 x 160 Atari screen to keep, in pixels, or None.
        max_episode_frames: frames after which a game is truncated.
        full_action_space: all 18 Atari actions instead of the game's own.
        auto_fire: press FIRE at the start of a game and after each lost life (Atari games that have FIRE).
    """

    env: str
    frame_skip: int = 4
    sticky_actions: float = 0.25
    crop: tuple[int, int, int, int] | None = None
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    auto_fire: bool = False


class Envs(ABC):
    """E environments stepped together: `reset`, then `send` and `recv` in turn.

    Attributes:
        num_envs: E.
        num_actions: A.
        screen_shape: of one screen, channels first for images.
        screen_dtype: uint8 for images and binary planes, float32 for vectors.
        pixel_scale: what integer screens are divided by.
    """

    num_envs: int
    num_actions: int
    screen_shape: tuple[int, ...]
    screen_dtype: np.dtype[Any]
    pixel_scale: float = 255.0

    @abstractmethod
    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes where `mask` `[E]` is set, with one seed for each; others stay as they are.

        Returns:
            Screens `[E, *screen_shape]` (meaningful where `mask` is set) and lives `[E]`.
        """

    @abstractmethod
    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begin one agent step with `actions` `[E]`; returns the actions really handed to the games."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step begun by `send`."""

    @abstractmethod
    def close(self) -> None:
        """Free emulators and threads."""

    def step(self, actions: NDArray[np.int64]) -> Step:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def restore(self, seeds: NDArray[np.int64], actions: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Rebuild the state named by (seed, actions since reset) of each environment.

        Shorter histories start later, so that all end at the same step; until then their environments idle.

        Returns:
            The newest screens `[E, *screen_shape]`.
        """
        lengths = np.array([len(a) for a in actions])
        delay = lengths.max() - lengths
        screens, _ = self.reset(seeds, np.ones(self.num_envs, bool))
        screens = screens.copy()
        for t in range(int(lengths.max())):
            begin = (delay == t) & (t > 0)
            if begin.any():
                screens[begin] = self.reset(seeds[begin], begin)[0][begin]
            now = [a[t - d] if t >= d else 0 for a, d in zip(actions, delay, strict=True)]
            result = self.step(np.array(now, np.int64))
            screens = result.screens.copy()
            idle_done = (result.terminated | result.truncated) & (delay > t)
            if idle_done.any():
                self.reset(seeds[idle_done], idle_done)
        late = (delay == lengths.max()) & (lengths.max() > 0)
        if late.any():
            screens[late] = self.reset(seeds[late], late)[0][late]
        return screens


class AtariEnvs(Envs):
    """Atari games on ale-py's C++ threads: skip, max-pool, grey, resize to 84 x 84.

    Args:
        settings: what to play.
        num_envs: E.
        rgb: full 210 x 160 colour screens `[3, 210, 160]` instead, for showing to people.
    """

    def __init__(self, settings: EnvSettings, num_envs: int, rgb: bool = False) -> None:
        top, bottom, left, right = settings.crop or (0, ATARI_ROWS, 0, ATARI_COLUMNS)
        # The environment resizes the whole screen so that the kept part comes out at 84 x 84: no OpenCV needed.
        height = ATARI_ROWS if rgb else round(SIDE * ATARI_ROWS / (bottom - top))
        width = ATARI_COLUMNS if rgb else round(SIDE * ATARI_COLUMNS / (right - left))
        row = min(round(top * height / ATARI_ROWS), height - SIDE)
        column = min(round(left * width / ATARI_COLUMNS), width - SIDE)
        self._window = (slice(row, row + SIDE), slice(column, column + SIDE))
        self._cropped = settings.crop is not None and not rgb
        self._rgb = rgb
        self._envs = AtariVectorEnv(
            atari_games()[settings.env],
            num_envs,
            repeat_action_probability=settings.sticky_actions,
            max_num_frames_per_episode=settings.max_episode_frames,
            full_action_space=settings.full_action_space,
            frameskip=settings.frame_skip,
            img_height=height,
            img_width=width,
            grayscale=not rgb,
            stack_num=1,
            noop_max=0,  # sticky actions are the source of chance; random no-ops would be a second one
            use_fire_reset=settings.auto_fire,
            reward_clipping=False,  # clipped at sampling: reported scores stay raw
            autoreset_mode=AutoresetMode.NEXT_STEP,  # never reached: finished games are reset explicitly
        )
        self.num_envs = num_envs
        self.num_actions = int(self._envs.single_action_space.n)
        self.screen_shape = (3, height, width) if rgb else (1, SIDE, SIDE)
        self.screen_dtype = np.dtype(np.uint8)
        self._actions = np.zeros(num_envs, np.int64)
        self._auto_fire = settings.auto_fire and FIRE in {a.value for a in self._envs.ale.get_action_set()}
        self._lives = np.zeros(num_envs, np.int64)
        self._fire_next = np.zeros(num_envs, bool)

    def _screens(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._rgb:
            return observation[:, 0].transpose(0, 3, 1, 2)
        return observation[:, :, self._window[0], self._window[1]] if self._cropped else observation

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        observation, info = self._envs.reset(seed=seeds.astype(np.int64), options={"reset_mask": mask})
        self._lives = info["lives"].astype(np.int64)
        self._fire_next &= ~mask
        return self._screens(observation), self._lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._auto_fire:
            actions = np.where(self._fire_next, FIRE, actions)
        self._envs.send(actions)
        return actions

    def recv(self) -> Step:
        observation, rewards, terminated, truncated, info = self._envs.recv()
        lives = info["lives"].astype(np.int64)
        self._fire_next = lives < self._lives
        self._lives = lives
        return Step(self._screens(observation), rewards.astype(np.float32), terminated, truncated, lives)

    def close(self) -> None:
        self._envs.close()


def make_single(settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One Gymnasium environment (not Atari) with skip, sticky actions and screens as the agent sees them."""
    minatar = settings.env.startswith("MinAtar/")
    kwargs: dict[str, Any] = {"sticky_action_prob": settings.sticky_actions} if minatar else {}
    env = gym.make(settings.env, render_mode=render_mode, disable_env_checker=True, **kwargs)
    if minatar:
        env = gym.wrappers.TimeLimit(FreshStart(env), settings.max_episode_frames)
    elif settings.sticky_actions > 0:
        env = gym.wrappers.StickyAction(env, settings.sticky_actions)
    return Screen(FrameSkip(env, settings.frame_skip) if settings.frame_skip > 1 else env)


class GymnasiumEnvs(Envs):
    """Any other environment with discrete actions, stepped one after the other when received."""

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        self._envs = SyncVectorEnv(
            [lambda: make_single(settings)] * num_envs, autoreset_mode=AutoresetMode.DISABLED, copy=True
        )
        self.num_envs = num_envs
        self.num_actions = int(self._envs.single_action_space.n)  # type: ignore[attr-defined]
        space = self._envs.single_observation_space
        self.screen_shape = tuple(space.shape)  # type: ignore[arg-type]
        self.screen_dtype = np.dtype(space.dtype)
        self.pixel_scale = float(np.max(space.high)) if self.screen_dtype == np.uint8 else 1.0  # type: ignore[attr-defined]
        self._no_lives = np.zeros(num_envs, np.int64)
        self._actions = np.zeros(num_envs, np.int64)

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        all_seeds: list[int | None] = [None] * self.num_envs
        for index, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[index] = int(seed)
        screens, _ = self._envs.reset(seed=all_seeds, options={"reset_mask": mask})
        return screens, self._no_lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        self._actions = actions
        return actions

    def recv(self) -> Step:
        screens, rewards, terminated, truncated, _ = self._envs.step(self._actions)
        return Step(screens, rewards.astype(np.float32), terminated.copy(), truncated.copy(), self._no_lives)

    def close(self) -> None:
        self._envs.close()


def atari_games() -> dict[str, str]:
    """Every name of a bundled Atari game (`breakout`, `ALE/Breakout-v5`) to its ROM's name."""
    names = {rom: rom for rom in roms.get_all_rom_ids()}
    names |= {i: spec.kwargs["game"] for i, spec in gym.registry.items() if i.startswith("ALE/")}
    return names


def game_name(env: str) -> str:
    """The short name of an Atari game, or the id itself for any other environment."""
    return atari_games().get(env, env)


def check_env(settings: EnvSettings) -> None:
    """Raise `ConfigError` unless `settings` describe an environment with discrete actions that exists here."""
    known = [*atari_games(), *gym.registry]
    hint = nearest(settings.env, known)
    if settings.env.startswith("MinAtar/") and settings.env not in gym.registry:
        hint = hint if any(i.startswith("MinAtar/") for i in known) else "; install the extra: pip install minatar"
    check(settings.env in known, "data.env", settings.env, f"is no known game or Gymnasium id{hint}")
    check(settings.frame_skip >= 1, "data.frame_skip", settings.frame_skip, "must be at least 1 frame")
    check(0 <= settings.sticky_actions < 1, "data.sticky_actions", settings.sticky_actions, "must lie in [0, 1)")
    check(settings.max_episode_frames >= 1, "data.max_episode_frames", settings.max_episode_frames, "must be positive")
    if settings.crop is not None:
        top, bottom, left, right = settings.crop
        inside = 0 <= top < bottom <= ATARI_ROWS and 0 <= left < right <= ATARI_COLUMNS
        rule = f"must be [top, bottom, left, right] inside {ATARI_ROWS} x {ATARI_COLUMNS}"
        check(inside, "data.crop", list(settings.crop), rule)
        check(settings.env in atari_games(), "data.crop", list(settings.crop), "is for Atari games; drop it")


def make_envs(settings: EnvSettings, num_envs: int) -> Envs:
    """`num_envs` environments as `settings` say; not yet reset.

    Raises:
        ConfigError: unknown id, actions that are not discrete, or an impossible setting.
    """
    check(num_envs >= 1, "data.num_envs", num_envs, "must be at least 1")
    check_env(settings)
    if settings.env in atari_games():
        return AtariEnvs(settings, num_envs)
    try:
        probe = make_single(settings)
    except gym.error.DependencyNotInstalled as error:
        check(False, "data.env", settings.env, f"needs a package that is not installed: {error}")
    discrete = isinstance(probe.action_space, gym.spaces.Discrete)
    space = str(probe.action_space)
    probe.close()
    check(discrete, "data.env", settings.env, f"has actions {space}; only discrete actions are played here")
    return GymnasiumEnvs(settings, num_envs)


def episode_seed(seed: int, rank: int, env: int, episode: int) -> int:
    """The seed that names an episode: a 31-bit hash of (run seed, rank, environment index, episode number)."""
    return int(np.random.SeedSequence([seed, rank, env, episode]).generate_state(1)[0] >> 1)
