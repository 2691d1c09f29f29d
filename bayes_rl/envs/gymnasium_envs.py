"""Environments of Gymnasium with discrete actions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, EnvKind, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.observations import Reading, read_observations
from bayes_rl.envs.wrappers import FrameSkip, NumberedEnv, ScreenObservation, SharedSpaces, with_plain_reset
from bayes_rl.errors import ConfigError, UserCodeError, check

MIN_HEIGHT = 160  # pixels; smaller images are enlarged

gym.register("bayes_rl/DeepSea-v0", "bayes_rl.envs.deep_sea:DeepSea")


def registered_outside(env: str, package: str) -> bool:
    """Return whether Gymnasium's registry has `env` from another package, so that a user means that environment."""
    entry: Any = gym.registry[env].entry_point if env in gym.registry else None
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", package)
    return entry is not None and module.partition(".")[0] != package


class GymnasiumEnvs(VectorEnvs):
    """Gymnasium environments with discrete actions, stepped one after the other by `recv`.

    Args:
        name: of the game, for messages.
        make_env: returns one environment whose observations are screens.
        num_envs: E.
    """

    def __init__(self, name: str, make_env: Callable[[], gym.Env[Any, Any]], num_envs: int) -> None:
        makers = [lambda index=index: NumberedEnv(make_env(), index) for index in range(num_envs)]
        self._envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED, copy=True)
        self.name, self.num_envs = name, num_envs
        self.num_actions = int(self._envs.single_action_space.n)  # type: ignore[attr-defined]
        space = self._envs.single_observation_space
        self.screen_shape = tuple(space.shape)  # type: ignore[arg-type]
        self.screen_dtype = np.dtype(space.dtype)
        self.pixel_scale = float(np.max(space.high)) if self.screen_dtype == np.uint8 else 1.0  # type: ignore[attr-defined]
        self.num_categories = int(space.high[0]) + 1 if self.screen_dtype == np.int32 else 0  # type: ignore[attr-defined]
        self.reading = self._envs.envs[0].get_wrapper_attr("reading").describe()
        self._no_lives = np.zeros(num_envs, np.int64)
        self._actions = np.zeros(num_envs, np.int64)

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes; see `VectorEnvs.reset`."""
        all_seeds: list[int | None] = [None] * self.num_envs
        for index, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            all_seeds[index] = None if seed == UNSEEDED else int(seed)
        screens, _ = self._envs.reset(seed=all_seeds, options={"reset_mask": mask})
        return screens, self._no_lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the actions for `recv`, and return them."""
        self._actions = actions
        return actions

    def recv(self) -> Step:
        """Step every environment with the stored actions."""
        screens, rewards, terminated, truncated, _ = self._envs.step(self._actions)
        return Step(screens, rewards.astype(np.float32), terminated.copy(), truncated.copy(), self._no_lives)

    def close(self) -> None:
        """Close every environment."""
        self._envs.close()


class OwnSpaces(NamedTuple):
    """Observations and actions of one game before they are padded.

    Attributes:
        space: of a screen `[P, ...]`.
        actions: meaning of each action; actions of two games with the same meaning become one.
        planes: meaning of each plane or number along the first axis of a screen, likewise.
    """

    space: gym.spaces.Box
    actions: Sequence[Hashable]
    planes: Sequence[Hashable]

    def describe(self) -> str:
        """Return the number of states, or data type and shape of an observation, for messages."""
        if self.space.dtype == np.int32:
            return f"{int(self.space.high[0]) + 1} states"
        return f"observations {self.space.dtype} {list(self.space.shape)}"


class GymnasiumKind(EnvKind):
    """Registered Gymnasium environments with discrete actions."""

    title = "a Gymnasium environment"
    reads_observations = True
    ignored_rules = ("full_action_space", "auto_fire")

    def knows(self, env: str) -> bool:
        """Return whether `env` is in Gymnasium's registry."""
        return env in gym.registry

    def ids(self) -> Iterable[str]:
        """Return every id in Gymnasium's registry but those of Atari games, which are another kind."""
        return [env for env, spec in gym.registry.items() if not str(spec.entry_point).startswith("ale_py")]

    def check(self, settings: EnvSettings) -> None:
        """Refuse a crop, and a constructor argument that this program decides."""
        super().check(settings)
        problem = "names 'render_mode', which this program decides; drop it"
        check("render_mode" not in settings.env_kwargs, "data.env_kwargs", settings.env_kwargs, problem)

    def make(self, settings: EnvSettings, num_envs: int) -> GymnasiumEnvs:
        """Return `num_envs` environments, after one was made on trial."""
        self.probe(settings).close()
        with _worded(settings):
            return GymnasiumEnvs(settings.env, lambda: self.make_single(settings), num_envs)

    def make_bare(self, settings: EnvSettings, render_mode: str | None) -> gym.Env[Any, Any]:
        """Return one environment with sticky actions and a frame limit, and observations as they come."""
        return self.limit(make_plain(settings.env, render_mode, **settings.env_kwargs), settings)

    def limit(self, env: gym.Env[Any, Any], settings: EnvSettings) -> gym.Env[Any, Any]:
        """Return `env` with sticky actions and a frame limit."""
        env = gym.wrappers.TimeLimit(env, settings.max_episode_frames)
        return gym.wrappers.StickyAction(env, settings.sticky_actions) if settings.sticky_actions > 0 else env

    def make_single(self, settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return one environment with frame skip, sticky actions and screens as the agent sees them."""
        env = self.make_bare(settings, render_mode)
        for name in ("observation_space", "action_space"):
            problem = f"has no {name}; its constructor sets {name} to a space of gymnasium.spaces"
            check(isinstance(getattr(env, name, None), gym.Space), "data.env", settings.env, problem)
        if isinstance(env.action_space, gym.spaces.Discrete) and (start := int(env.action_space.start)):
            from_zero = gym.spaces.Discrete(int(env.action_space.n))
            env = gym.wrappers.TransformAction(env, lambda action: action + start, from_zero)
        reading = self.read(settings, env.observation_space)
        env = ScreenObservation(FrameSkip(env, settings.frame_skip) if settings.frame_skip > 1 else env, reading)
        if not settings.action_map:
            return env
        return SharedSpaces(env, settings.screen_shape, settings.places, settings.action_map)

    def read(self, settings: EnvSettings, space: gym.Space[Any]) -> Reading:
        """Return the reading of the observations of a game.

        Raises:
            ConfigError: if the options do not fit the space, or the space is ambiguous.
        """
        return read_observations(settings.env, space, settings.observation, settings.channels, settings.grey)

    def probe(self, settings: EnvSettings) -> gym.Env[Any, Any]:
        """Return one environment, after checking that it can be made and played here.

        Raises:
            ConfigError: missing packages, an impossible constructor argument, an error in the constructor, observations
                that cannot be read, or actions that are not discrete.
        """
        with _worded(settings):
            env = NumberedEnv(self.make_single(settings), 0)
        discrete, space = isinstance(env.action_space, gym.spaces.Discrete), str(env.action_space)
        if not discrete:
            env.close()
        check(discrete, "data.env", settings.env, f"has actions {space}; only discrete actions are played here")
        return env

    def render(self, settings: EnvSettings, seed: int, actions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Play the game again and yield what the environment draws, at least 160 pixels high.

        Raises:
            ConfigError: if the environment cannot be drawn, or a package that draws the environment is not installed.
        """
        env = None
        try:
            env = NumberedEnv(self._make_drawn(settings), 0)
            env.reset(seed=seed)
            yield rgb_image(env.render())
            for action in actions:
                env.step(action)
                yield rgb_image(env.render())
        except Exception as error:  # whatever draws an environment may raise anything
            raise ConfigError("data.env", settings.env, f"cannot be drawn here: {_reason(error)}") from error
        finally:
            if env is not None:
                env.close()

    def _make_drawn(self, settings: EnvSettings) -> gym.Env[Any, Any]:
        """Return one environment that draws, without the argument `render_mode` if its constructor lacks it."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws an array, and complains without a desktop
        with warnings.catch_warnings(action="ignore"):  # Gymnasium warns of a class that lists no render modes
            try:
                return self.make_single(settings, render_mode="rgb_array")
            except TypeError as error:
                if "render_mode" not in str(error):
                    raise
                return self.make_single(settings)

    def own_spaces(self, settings: EnvSettings) -> OwnSpaces:
        """Return the spaces of a game, whose actions and numbers have no meaning but their index."""
        env = self.probe(settings)
        space, actions = env.observation_space, env.action_space
        env.close()
        assert isinstance(space, gym.spaces.Box)
        assert isinstance(actions, gym.spaces.Discrete)
        return OwnSpaces(space, range(int(actions.n)), range(space.shape[0]))

    def share_spaces(self, settings: Sequence[EnvSettings]) -> list[EnvSettings]:
        """Return settings that pad observations with zeros; an action that a game lacks is its action 0."""
        return pad_spaces(settings, [self] * len(settings))


def make_plain(env: str, render_mode: str | None, **arguments: Any) -> gym.Env[Any, Any]:
    """Return an environment as `gymnasium.make` makes it, whose `reset` takes a seed.

    Args:
        env: id in Gymnasium's registry.
        render_mode: argument of the constructor; None leaves it out, because a constructor may lack it.
        arguments: of the constructor.
    """
    if render_mode is not None:
        arguments["render_mode"] = render_mode
    return with_plain_reset(gym.make(env, disable_env_checker=True, **arguments))


@contextmanager
def _worded(settings: EnvSettings) -> Iterator[None]:
    """Turn an error in the constructor of an environment into a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except gym.error.Error as error:
        check(False, "data.env", settings.env, f"cannot be made here: {' '.join(str(error).split())}")
    except ImportError as error:
        message = f"cannot be made here: {' '.join(str(error).split())}"
        raise UserCodeError("data.env", settings.env, message) from error
    except Exception as error:  # a constructor may raise anything
        if settings.env_kwargs:
            message = f"is refused by {settings.env}: {_reason(error)}"
            raise UserCodeError("data.env_kwargs", settings.env_kwargs, message) from error
        raise UserCodeError("data.env", settings.env, f"fails in its constructor: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the type and the text of an error in one line, without what `gymnasium.make` adds."""
    text = " ".join(str(error).partition(" was raised from the environment creator")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def pad_spaces(settings: Sequence[EnvSettings], kinds: Sequence[GymnasiumKind]) -> list[EnvSettings]:
    """Return settings with which all games have the union of all planes and of all actions.

    Args:
        settings: of each game.
        kinds: of each game.

    Raises:
        ConfigError: if two observations differ in more than the length of their first axis.
    """
    spaces: list[OwnSpaces] = []
    for game, kind in zip(settings, kinds, strict=True):
        try:
            spaces.append(kind.own_spaces(game))
        except ConfigError as error:
            raise error.of_task(game.env) from error.__cause__
    first = spaces[0].space
    for game, own in zip(settings, spaces, strict=True):
        equal = own.space.dtype == first.dtype and own.space.shape[1:] == first.shape[1:]
        equal &= own.space.dtype != np.int32 or bool((own.space.high == first.high).all())
        equal &= own.space.dtype != np.uint8 or bool(own.space.high.max() == first.high.max())
        pair = ((settings[0].env, spaces[0]), (game.env, own))
        message = f"mixes kinds that cannot share a network: {', '.join(f'{e} has {s.describe()}' for e, s in pair)}"
        check(bool(equal), "data.tasks", [one.env for one in settings], message)
    actions = sorted({action for own in spaces for action in own.actions})  # type: ignore[type-var]
    planes = list(dict.fromkeys(plane for own in spaces for plane in own.planes))  # in order of appearance
    return [
        replace(
            game,
            screen_shape=(len(planes), *first.shape[1:]),
            places=tuple(planes.index(plane) for plane in own.planes),
            action_map=tuple(own.actions.index(action) if action in own.actions else 0 for action in actions),
        )
        for game, own in zip(settings, spaces, strict=True)
    ]


def rgb_image(rendered: Any) -> NDArray[np.uint8]:
    """Return a rendered image `[H, W, 3]` as uint8, enlarged to at least 160 pixels in height (MinAtar draws 10).

    Whole numbers reach from 0 to 255. Real numbers reach from 0 to 1, or to 255 if a pixel is greater than 1.

    Raises:
        ValueError: if `rendered` is no image.
    """
    if rendered is None or np.ndim(rendered) != 3 or np.shape(rendered)[2] != 3:
        shape = "" if rendered is None else f" of shape {list(np.shape(rendered))}"
        raise ValueError(f"render() returned {type(rendered).__name__}{shape} instead of an image [H, W, 3]")
    array = np.asarray(rendered)
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 255):
            raise ValueError(f"render() returned pixels from {array.min()} to {array.max()} instead of 0 to 255")
        from_0_to_1 = array.dtype == np.bool_ or (np.issubdtype(array.dtype, np.floating) and array.max() <= 1)
        array = (array * 255 if from_0_to_1 else array).astype(np.uint8)
    factor = -(-MIN_HEIGHT // array.shape[0])
    return array.repeat(factor, 0).repeat(factor, 1)
