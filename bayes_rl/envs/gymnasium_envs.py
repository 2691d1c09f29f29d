"""Environments of Gymnasium with discrete actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.minatar import ForgetLastAction
from bayes_rl.envs.wrappers import FrameSkip, NumberedEnv, ScreenObservation, SharedSpaces
from bayes_rl.errors import ConfigError, check

gym.register("bayes_rl/DeepSea-v0", "bayes_rl.envs.deep_sea:DeepSea")


def make_single(settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One Gymnasium environment (not Atari) with skip, sticky actions and screens as the agent sees them."""
    minatar = settings.env.startswith("MinAtar/")
    kwargs: dict[str, Any] = {"sticky_action_prob": settings.sticky_actions} if minatar else {}
    env = gym.make(settings.env, render_mode=render_mode, disable_env_checker=True, **kwargs, **settings.env_kwargs)
    env = gym.wrappers.TimeLimit(ForgetLastAction(env) if minatar else env, settings.max_episode_frames)
    if not minatar and settings.sticky_actions > 0:
        env = gym.wrappers.StickyAction(env, settings.sticky_actions)
    if isinstance(env.action_space, gym.spaces.Discrete) and (start := int(env.action_space.start)):
        from_zero = gym.spaces.Discrete(int(env.action_space.n))
        env = gym.wrappers.TransformAction(env, lambda action: action + start, from_zero)
    env = ScreenObservation(FrameSkip(env, settings.frame_skip) if settings.frame_skip > 1 else env)
    if not settings.action_map:
        return env
    return SharedSpaces(env, settings.screen_shape, settings.places, settings.action_map)


class GymnasiumEnvs(VectorEnvs):
    """Any other environment with discrete actions, stepped one after the other when received."""

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        makers = [lambda index=index: NumberedEnv(make_single(settings), index) for index in range(num_envs)]
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
