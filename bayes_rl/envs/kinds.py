"""Kinds of environment, in the order in which an id is looked up."""

from __future__ import annotations

from bayes_rl.envs.atari import AtariKind
from bayes_rl.envs.base import EnvKind, EnvSettings, VectorEnvs
from bayes_rl.envs.gymnasium_envs import GymnasiumKind
from bayes_rl.envs.minatar import MinAtarKind
from bayes_rl.errors import ConfigError, check, did_you_mean

KINDS: list[EnvKind] = [AtariKind(), MinAtarKind(), GymnasiumKind()]
"""The first kind that knows an id makes its games."""


def register_kind(kind: EnvKind) -> EnvKind:
    """Add a kind of environment before all others, and return it.

    A later kind of the same class name and module replaces the earlier one, so that a module may be imported again.
    """
    name = (type(kind).__module__, type(kind).__qualname__)
    KINDS[:] = [kind, *(old for old in KINDS if (type(old).__module__, type(old).__qualname__) != name)]
    return kind


def find_kind(env: str) -> EnvKind:
    """Return the kind of environment that knows `env`.

    Raises:
        ConfigError: if none does; the message names the nearest known id.
    """
    for kind in KINDS:
        if kind.knows(env):
            return kind
    ids = dict.fromkeys(name for kind in KINDS for name in kind.ids())
    raise ConfigError("data.env", env, f"is no known game or Gymnasium id{did_you_mean(env, ids)}")


def game_name(env: str) -> str:
    """Return the short name of a game of a known kind, or the id itself."""
    return next((kind.game_name(env) for kind in KINDS if kind.knows(env)), env)


def action_names(settings: EnvSettings, num_actions: int) -> list[str]:
    """Return names of the `num_actions` actions of a game; numbers where the actions have no names."""
    return find_kind(settings.env).action_names(settings, num_actions)


def check_env(settings: EnvSettings) -> None:
    """Check that `settings` describe an environment that exists here.

    Raises:
        ConfigError: naming the setting that cannot work.
    """
    kind = find_kind(settings.env)
    check(settings.frame_skip >= 1, "data.rules.frame_skip", settings.frame_skip, "must be at least 1 frame")
    check(0 <= settings.sticky_actions < 1, "data.rules.sticky_actions", settings.sticky_actions, "must lie in [0, 1)")
    check(
        settings.max_episode_frames >= 1,
        "data.rules.max_episode_frames",
        settings.max_episode_frames,
        "must be positive",
    )
    kind.check(settings)


def make_envs(settings: EnvSettings, num_envs: int) -> VectorEnvs:
    """Return `num_envs` environments with these settings, not yet reset.

    Raises:
        ConfigError: unknown id, actions that are not discrete, an impossible setting or constructor argument.
    """
    check(num_envs >= 1, "data.num_envs", num_envs, "must be at least 1")
    check_env(settings)
    return find_kind(settings.env).make(settings, num_envs)
