"""Observations and actions that several games share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from bayes_rl.envs.atari import atari_actions, atari_games
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import probe
from bayes_rl.envs.kinds import check_env, game_name
from bayes_rl.errors import ConfigError, check

ATARI_ACTIONS = 18


def task_name(env: str) -> str:
    """Name of a task in tags and columns: that of the game, `/` replaced by `-`."""
    return game_name(env).replace("/", "-")


def task_settings(settings: EnvSettings, tasks: Sequence[str]) -> list[EnvSettings]:
    """Settings of each task, with actions and screens that all of them share.

    Atari games are played with all 18 actions. Elsewhere an action that a game does not know is its action 0, and
    vectors are padded with zeros. MinAtar's actions and planes go by their meaning: its action 0 is to do nothing,
    and a plane that several games have (`trail`) is one and the same, all others are zero.

    Args:
        settings: everything but the game.
        tasks: Gymnasium ids or short names of Atari games, each once.

    Raises:
        ConfigError: unknown or repeated tasks, or such as cannot share a network.
    """
    key, listed = "data.tasks", list(tasks)
    check(len(listed) > 0, key, listed, "names no game")
    check(len(listed) > 1, key, listed, f"names one game; nearest: --data.env {listed[0] if listed else ''}")
    check(not settings.env_kwargs, "data.env_kwargs", settings.env_kwargs, "is for a single environment; drop it")
    names = [task_name(env) for env in listed]
    repeated = sorted({name for name in names if names.count(name) > 1})
    check(not repeated, key, listed, f"names {', '.join(repeated)} twice; to come back to a task use --data.cycles")
    each = [replace(settings, env=env) for env in listed]
    for one in each:
        try:
            check_env(one)
        except ConfigError as error:
            if error.key != "data.env":
                raise
            text = str(error).partition(f"{one.env!r} ")[2]
            raise ConfigError(key, one.env, text) from None
    atari = [one.env in atari_games() for one in each]
    if all(atari):
        for one in each:
            known = len(atari_actions(one.env))
            rule = f"knows {known} actions instead of Atari's 18, and shares no network with other games"
            check(known == ATARI_ACTIONS, key, one.env, rule)
        return [replace(one, full_action_space=True) for one in each]
    if any(atari):
        raise ConfigError(key, listed, f"mixes kinds that cannot share a network: {_kinds(each, atari)}")
    return _padded(each, listed)


def _kinds(each: list[EnvSettings], atari: list[bool]) -> str:
    one, other = each[atari.index(True)].env, each[atari.index(False)].env
    return f"{one} is an Atari game, {other} is not"


def _kind(space: spaces.Box) -> str:
    numbers = space.dtype == np.int32
    return f"{int(space.high[0]) + 1} states" if numbers else f"observations {space.dtype} {list(space.shape)}"


def _padded(each: list[EnvSettings], listed: list[str]) -> list[EnvSettings]:
    found: list[tuple[spaces.Box, list[int], list[Any]]] = []
    for one in each:
        try:
            env = probe(one)
        except ConfigError as error:
            raise ConfigError("data.tasks", one.env, str(error).partition(f"{one.env!r} ")[2]) from None
        space: Any = env.observation_space
        unwrapped: Any = env.unwrapped
        if one.env.startswith("MinAtar/"):
            channels = unwrapped.game.env.channels
            found.append((space, list(unwrapped.action_set), sorted(channels, key=channels.get)))
        else:
            found.append((space, list(range(env.action_space.n)), list(range(space.shape[0]))))  # type: ignore[attr-defined]
        env.close()
    first = found[0][0]
    for one, (space, *_) in zip(each, found, strict=True):
        alike = space.dtype == first.dtype and space.shape[1:] == first.shape[1:]
        alike &= space.dtype != np.int32 or bool((space.high == first.high).all())
        texts = [f"{env} has {_kind(s)}" for env, s in ((each[0].env, first), (one.env, space))]
        rule = f"mixes kinds that cannot share a network: {', '.join(texts)}"
        check(bool(alike), "data.tasks", listed, rule)
    actions = sorted({action for _, known, _ in found for action in known})
    planes = list(dict.fromkeys(plane for _, _, own in found for plane in own))  # in order of appearance
    shape = (len(planes), *first.shape[1:])
    return [
        replace(
            one,
            screen_shape=shape,
            places=tuple(planes.index(plane) for plane in own),
            action_map=tuple(known.index(action) if action in known else 0 for action in actions),
        )
        for one, (_, known, own) in zip(each, found, strict=True)
    ]
