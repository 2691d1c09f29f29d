"""Kinds of environment, in the order in which an id is looked up."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from bayes_rl.envs.atari import AtariKind
from bayes_rl.envs.base import EnvKind, EnvSettings, VectorEnvs
from bayes_rl.envs.gymnasium_envs import GymnasiumKind
from bayes_rl.envs.minatar import MinAtarKind
from bayes_rl.envs.minigrid import MiniGridKind
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.envs.observations import CHANNELS, OBSERVATIONS
from bayes_rl.errors import ConfigError, UserCodeError, check, check_choice, did_you_mean
from bayes_rl.utils.stop_signals import Stopped

KINDS: list[EnvKind] = [AtariKind(), MinAtarKind(), MiniGridKind(), GymnasiumKind()]
"""The first kind that knows an id makes its games."""


class MissingModuleError(ConfigError):
    """Name of a module that does not exist."""


def register_kind(kind: EnvKind) -> EnvKind:
    """Add a kind of environment before all others, and return it.

    A later kind of the same class name and module replaces the earlier one, so that a module may be imported again.
    """
    name = (type(kind).__module__, type(kind).__qualname__)
    KINDS[:] = [kind, *(old for old in KINDS if (type(old).__module__, type(old).__qualname__) != name)]
    return kind


def import_user_module(name: str, key: str, value: object) -> None:
    """Import a module that a user names, so that its environments, encoders and the like are registered.

    Args:
        name: of the module, as in Python's `import`.
        key: option that names the module, for the error.
        value: of the option, for the error.

    Raises:
        MissingModuleError: if there is no such module.
        ConfigError: if a module of another folder that has this name is loaded already.
        UserCodeError: if the module raises an error.
    """
    is_name = all(part.isidentifier() for part in name.split("."))
    if not is_name or Path(name).is_file():  # the import of `my_module.py` would run `my_module`
        raise MissingModuleError(key, value, _missing(name))
    try:
        importlib.import_module(name)
    except (Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:  # a module may raise anything, and a script ends with `sys.exit`
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise MissingModuleError(key, value, _missing(name)) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserCodeError(key, value, f"fails while {name} is imported: {reason}") from error
    _check_not_hidden(name, key, value)


def _missing(name: str) -> str:
    """Return the problem of a name that names no module, with a way out."""
    path, here = Path(name), Path.cwd()
    problem = f"names no module {name!r} of the current folder or the installed packages"
    if path.suffix == ".py" and path.is_file():
        folder, module = path.resolve().parent, path.stem
        if not folder.is_relative_to(here.resolve()):
            return f"is a path, not the name of a module; nearest: {module!r} with PYTHONPATH={folder}"
        parts = (*folder.relative_to(here.resolve()).parts, module)
        return f"is a path, not the name of a module; nearest: {'.'.join(parts)!r}"
    if "," in name or " " in name:
        return f"{problem}; a list is written '[{', '.join(name.replace(',', ' ').split())}]'"
    package, dot, _ = name.rpartition(".")
    known = [package + dot + path.stem for path in Path(package.replace(".", "/")).glob("*") if _is_module(path)]
    elsewhere = "; for a module of another folder, set PYTHONPATH to that folder"
    return problem + (did_you_mean(name, known) or elsewhere)


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def _check_not_hidden(name: str, key: str, value: object) -> None:
    """Raise `ConfigError` if a module that was loaded before hides the file of this name in the current folder."""
    own = [path for path in (Path(f"{name}.py"), Path(name, "__init__.py")) if path.is_file()]
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if own and not (loaded and any(os.path.samefile(loaded, path) for path in own)):
        problem = f"names a module of Python or of a package, which hides the file {own[0]}; rename that file"
        raise ConfigError(key, value, problem)


def module_of(env: str) -> str:
    """Return the module in front of an id, as in `my_module:My-v0`; an empty string without one."""
    return env.rpartition(":")[0]


def resolve(settings: EnvSettings) -> EnvSettings:
    """Return settings with the plain id of the game, and with the rules that the id decides by itself.

    The module of `my_module:My-v0` is imported, as `gymnasium.make` does.

    Raises:
        ConfigError: no such module or id, or one whose games cannot be played.
    """
    if module := module_of(settings.env):
        import_user_module(module, "data.env", settings.env)
        plain = settings.env.rpartition(":")[2]
        problem = f"names no game that {module} registers{did_you_mean(plain, gym.registry)}"
        check(any(kind.knows(plain) for kind in KINDS), "data.env", settings.env, problem)
        settings = replace(settings, env=plain)
    return find_kind(settings.env).with_own_rules(settings)


def find_kind(env: str) -> EnvKind:
    """Return the kind of environment that knows `env`.

    Raises:
        ConfigError: if none does; the message names the nearest known id.
    """
    for kind in KINDS:
        if kind.knows(env):
            return kind
    ids = dict.fromkeys(name for kind in KINDS for name in kind.ids())
    hint = f"{did_you_mean(env, ids)}; an id of your own: --data.env MODULE:{env.lstrip(':')}"
    raise ConfigError("data.env", env, f"is no known game or Gymnasium id{hint}")


def game_name(env: str) -> str:
    """Return the short name of a game of a known kind, or the id itself, without a module in front of it."""
    plain = env.rpartition(":")[2]
    return next((kind.game_name(plain) for kind in KINDS if kind.knows(plain)), plain)


def games_repeat(settings: EnvSettings, steps: int = 12) -> bool:
    """Return whether games with one seed and the same actions are equal: twice side by side, and twice in turn.

    Args:
        settings: of the game.
        steps: actions to play; fewer if a game ends.

    Raises:
        FailedEnvError: if an environment raises, or returns a number that is not finite.
    """
    if find_kind(settings.env).repeatable:
        return True
    envs = MonitoredEnvs(make_envs(settings, 2))
    actions = np.random.default_rng(0).integers(0, envs.num_actions, steps)
    both, games = np.ones(2, bool), []
    for _ in range(2):
        game = [envs.reset(np.zeros(2, np.int64), both)[0].copy()]
        for action in actions:
            step = envs.step(np.full(2, action))
            game += [step.screens.copy(), step.rewards, step.terminated, step.truncated]
            if (step.terminated | step.truncated).any():
                break
        games.append(game)
    envs.close()
    side_by_side = all(np.array_equal(part[0], part[1]) for game in games for part in game)
    return side_by_side and len(games[0]) == len(games[1]) and all(map(np.array_equal, *games))


def action_names(settings: EnvSettings, num_actions: int) -> list[str]:
    """Return names of the `num_actions` actions of a game; numbers where the actions have no names."""
    return find_kind(settings.env).action_names(settings, num_actions)


def check_env(settings: EnvSettings) -> None:
    """Check that `settings` describe an environment that exists here.

    Raises:
        ConfigError: naming the setting that cannot work.
    """
    kind = find_kind(settings.env)
    check_choice("data.observation", settings.observation, OBSERVATIONS)
    check_choice("data.channels", settings.channels, CHANNELS)
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
    settings = resolve(settings)
    check_env(settings)
    return find_kind(settings.env).make(settings, num_envs)
