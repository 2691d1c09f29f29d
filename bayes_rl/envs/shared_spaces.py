"""Observations and actions that several games share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumKind, pad_spaces
from bayes_rl.envs.kinds import check_env, find_kind, game_name, resolve
from bayes_rl.errors import ConfigError, check


def task_name(env: str) -> str:
    """Return the name of a task in tags and columns: that of the game, `/` replaced by `-`."""
    return game_name(env).replace("/", "-")


def _checked(game: EnvSettings) -> EnvSettings:
    """Return the resolved settings of a task; an error names `data.tasks` in the place of `data.env`."""
    try:
        resolved = resolve(game)
        check_env(resolved)
    except ConfigError as error:
        raise error.of_task(game.env) from error.__cause__
    return resolved


def task_settings(settings: EnvSettings, tasks: Sequence[str]) -> list[EnvSettings]:
    """Return the settings of each task, with actions and screens that all of them share.

    Atari games are played with all 18 actions. In other games an action that a game does not have is its action 0,
    and vectors are padded with zeros. MinAtar's actions and planes go by their meaning: its action 0 does nothing,
    and a plane that several games have (`trail`) is the same plane; planes that a game does not have are zero.

    Args:
        settings: everything but the game.
        tasks: Gymnasium ids or short names of Atari games, each once.

    Raises:
        ConfigError: unknown or repeated tasks, or games that cannot share a network.
    """
    key, games = "data.tasks", list(tasks)
    check(len(games) > 0, key, games, "names no game")
    check(len(games) > 1, key, games, f"names one game; nearest: --data.env {games[0] if games else ''}")
    check(not settings.env_kwargs, "data.env_kwargs", settings.env_kwargs, "is for a single environment; drop it")
    names = [task_name(env) for env in games]
    repeated = sorted({name for name in names if names.count(name) > 1})
    check(
        not repeated,
        key,
        games,
        f"names {', '.join(repeated)} twice; to come back to a task use --data.curriculum.cycles",
    )
    separate = [_checked(replace(settings, env=env)) for env in games]
    for name in ("frame_skip", "sticky_actions"):
        values = {game.env: getattr(game, name) for game in separate}
        check(len(set(values.values())) == 1, key, games, f"mixes games of different {name}: {values}")
    kinds = [find_kind(game.env) for game in separate]
    if all(kind is kinds[0] for kind in kinds):
        return kinds[0].share_spaces(separate)
    padding = [kind for kind in kinds if isinstance(kind, GymnasiumKind)]
    if len(padding) == len(kinds):
        return pad_spaces(separate, padding)
    index = next(i for i, kind in enumerate(kinds) if not isinstance(kind, GymnasiumKind))
    other = next(env for env, kind in zip(games, kinds, strict=True) if kind is not kinds[index])
    pair = f"{games[index]} is {kinds[index].title}, {other} is not"
    raise ConfigError(key, games, f"mixes kinds that cannot share a network: {pair}")
