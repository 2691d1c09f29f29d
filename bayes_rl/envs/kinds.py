"""Environments by id: which exist, whether settings can work, and how to make them."""

from __future__ import annotations

import gymnasium as gym

from bayes_rl.envs.atari import ATARI_COLUMNS, ATARI_ROWS, AtariEnvs, atari_actions, atari_games
from bayes_rl.envs.base import EnvSettings, VectorEnvs
from bayes_rl.envs.gymnasium_envs import GymnasiumEnvs, probe
from bayes_rl.errors import check, did_you_mean


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
    hint = did_you_mean(settings.env, known)
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


def make_envs(settings: EnvSettings, num_envs: int) -> VectorEnvs:
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
