"""Environments by id: which exist, whether settings can work, and how to make them."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from bayes_rl.atari import ATARI_COLUMNS, ATARI_ROWS, AtariEnvs, atari_actions, atari_games
from bayes_rl.types import ConfigError, check, nearest
from bayes_rl.vector import UNSEEDED, BoolArray, Envs, EnvSettings, History, ObservationStack, Step
from bayes_rl.wrappers import CommonSpaces, FrameSkip, FreshStart, Numbered, Screen

__all__ = [
    "UNSEEDED",
    "AtariEnvs",
    "EnvSettings",
    "Envs",
    "GymnasiumEnvs",
    "History",
    "ObservationStack",
    "Step",
    "action_names",
    "atari_games",
    "check_env",
    "episode_seed",
    "game_name",
    "make_envs",
    "make_single",
    "probe",
]

with contextlib.suppress(ImportError):  # MinAtar is an extra
    from minatar.gym import register_envs as _register_minatar

    _register_minatar()

gym.register("bayes_rl/DeepSea-v0", "bayes_rl.deep_sea:DeepSea")


def make_single(settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One Gymnasium environment (not Atari) with skip, sticky actions and screens as the agent sees them."""
    minatar = settings.env.startswith("MinAtar/")
    kwargs: dict[str, Any] = {"sticky_action_prob": settings.sticky_actions} if minatar else {}
    env = gym.make(settings.env, render_mode=render_mode, disable_env_checker=True, **kwargs, **settings.env_kwargs)
    env = gym.wrappers.TimeLimit(FreshStart(env) if minatar else env, settings.max_episode_frames)
    if not minatar and settings.sticky_actions > 0:
        env = gym.wrappers.StickyAction(env, settings.sticky_actions)
    if isinstance(env.action_space, gym.spaces.Discrete) and (start := int(env.action_space.start)):
        from_zero = gym.spaces.Discrete(int(env.action_space.n))
        env = gym.wrappers.TransformAction(env, lambda action: action + start, from_zero)
    env = Screen(FrameSkip(env, settings.frame_skip) if settings.frame_skip > 1 else env)
    if not settings.action_map:
        return env
    return CommonSpaces(env, settings.screen_shape, settings.places, settings.action_map)


class GymnasiumEnvs(Envs):
    """Any other environment with discrete actions, stepped one after the other when received."""

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        makers = [lambda index=index: Numbered(make_single(settings), index) for index in range(num_envs)]
        self._envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED, copy=True)
        self.name, self.num_envs = settings.env, num_envs
        self.num_actions = int(self._envs.single_action_space.n)  # type: ignore[attr-defined]
        space = self._envs.single_observation_space
        self.screen_shape = tuple(space.shape)  # type: ignore[arg-type]
        self.screen_dtype = np.dtype(space.dtype)
        self.pixel_scale = float(np.max(space.high)) if self.screen_dtype == np.uint8 else 1.0  # type: ignore[attr-defined]
        self.num_categories = int(space.high[0]) + 1 if self.screen_dtype == np.int32 else 0  # type: ignore[attr-defined]
        self._no_lives = np.zeros(num_envs, np.int64)
        self._actions = np.zeros(num_envs, np.int64)

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        all_seeds: list[int | None] = [None] * self.num_envs
        for index, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[index] = None if seed == UNSEEDED else int(seed)
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


def game_name(env: str) -> str:
    """The short name of an Atari game, or the id itself for any other environment."""
    return atari_games().get(env, env)


def action_names(settings: EnvSettings, num_actions: int) -> list[str]:
    """What the actions of a game are called; their numbers where nobody named them."""
    if settings.env in atari_games():
        return atari_actions(settings.env, num_actions)
    return [str(action) for action in range(num_actions)]


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
    refused = settings.env_kwargs and settings.env in atari_games()
    check(not refused, "data.env_kwargs", settings.env_kwargs, "is not for Atari games; drop it")
    if settings.crop is not None:
        top, bottom, left, right = settings.crop
        inside = 0 <= top < bottom <= ATARI_ROWS and 0 <= left < right <= ATARI_COLUMNS
        rule = f"must be [top, bottom, left, right] inside {ATARI_ROWS} x {ATARI_COLUMNS}"
        check(inside, "data.crop", list(settings.crop), rule)
        check(settings.env in atari_games(), "data.crop", list(settings.crop), "is for Atari games; drop it")


def make_envs(settings: EnvSettings, num_envs: int) -> Envs:
    """`num_envs` environments as `settings` say; not yet reset.

    Raises:
        ConfigError: unknown id, actions that are not discrete, an impossible setting or constructor argument.
    """
    check(num_envs >= 1, "data.num_envs", num_envs, "must be at least 1")
    check_env(settings)
    if settings.env in atari_games():
        return AtariEnvs(settings, num_envs)
    probe(settings).close()
    return GymnasiumEnvs(settings, num_envs)


def probe(settings: EnvSettings) -> gym.Env[Any, Any]:
    """One environment (not Atari), once it is sure that it can be made and played here.

    Raises:
        ConfigError: missing packages, an impossible constructor argument, or actions that are not discrete.
    """
    try:
        env = make_single(settings)
    except (gym.error.Error, ImportError) as error:
        check(False, "data.env", settings.env, f"cannot be made here: {' '.join(str(error).split())}")
    except Exception as error:  # whatever a constructor makes of arguments that it does not expect
        if not settings.env_kwargs:
            raise
        reason = " ".join(str(error).partition(" was raised from the environment creator")[0].split())
        problem = f"is refused by {settings.env}: {type(error).__name__}: {reason}"
        raise ConfigError("data.env_kwargs", settings.env_kwargs, problem) from error
    discrete, space = isinstance(env.action_space, gym.spaces.Discrete), str(env.action_space)
    if not discrete:
        env.close()
    check(discrete, "data.env", settings.env, f"has actions {space}; only discrete actions are played here")
    return env


def episode_seed(seed: int, rank: int, env: int, episode: int) -> int:
    """The seed that names an episode: a 31-bit hash of (run seed, rank, environment index, episode number)."""
    return int(np.random.SeedSequence([seed, rank, env, episode]).generate_state(1)[0] >> 1)
