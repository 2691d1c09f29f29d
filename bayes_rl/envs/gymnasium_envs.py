"""Environments of Gymnasium with discrete actions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, EnvKind, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.wrappers import FrameSkip, NumberedEnv, ScreenObservation, SharedSpaces
from bayes_rl.errors import ConfigError, check

MIN_HEIGHT = 160  # pixels; smaller images are enlarged

gym.register("bayes_rl/DeepSea-v0", "bayes_rl.envs.deep_sea:DeepSea")


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

    def knows(self, env: str) -> bool:
        """Return whether `env` is in Gymnasium's registry."""
        return env in gym.registry

    def ids(self) -> Iterable[str]:
        """Return every id in Gymnasium's registry."""
        return gym.registry

    def make(self, settings: EnvSettings, num_envs: int) -> GymnasiumEnvs:
        """Return `num_envs` environments, after one was made on trial."""
        self.probe(settings).close()
        return GymnasiumEnvs(settings.env, lambda: self.make_single(settings), num_envs)

    def make_bare(self, settings: EnvSettings, render_mode: str | None) -> gym.Env[Any, Any]:
        """Return one environment with sticky actions and a frame limit, and observations as they come."""
        env = gym.make(settings.env, render_mode=render_mode, disable_env_checker=True, **settings.env_kwargs)
        env = gym.wrappers.TimeLimit(env, settings.max_episode_frames)
        return gym.wrappers.StickyAction(env, settings.sticky_actions) if settings.sticky_actions > 0 else env

    def make_single(self, settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Return one environment with frame skip, sticky actions and screens as the agent sees them."""
        env = self.make_bare(settings, render_mode)
        if isinstance(env.action_space, gym.spaces.Discrete) and (start := int(env.action_space.start)):
            from_zero = gym.spaces.Discrete(int(env.action_space.n))
            env = gym.wrappers.TransformAction(env, lambda action: action + start, from_zero)
        env = ScreenObservation(FrameSkip(env, settings.frame_skip) if settings.frame_skip > 1 else env)
        if not settings.action_map:
            return env
        return SharedSpaces(env, settings.screen_shape, settings.places, settings.action_map)

    def probe(self, settings: EnvSettings) -> gym.Env[Any, Any]:
        """Return one environment, after checking that it can be made and played here.

        Raises:
            ConfigError: missing packages, an impossible constructor argument, or actions that are not discrete.
        """
        try:
            env = self.make_single(settings)
        except (gym.error.Error, ImportError) as error:
            check(False, "data.env", settings.env, f"cannot be made here: {' '.join(str(error).split())}")
        except Exception as error:  # a constructor may raise anything for arguments that it does not expect
            if not settings.env_kwargs:
                raise
            reason = " ".join(str(error).partition(" was raised from the environment creator")[0].split())
            message = f"is refused by {settings.env}: {type(error).__name__}: {reason}"
            raise ConfigError("data.env_kwargs", settings.env_kwargs, message) from error
        discrete, space = isinstance(env.action_space, gym.spaces.Discrete), str(env.action_space)
        if not discrete:
            env.close()
        check(discrete, "data.env", settings.env, f"has actions {space}; only discrete actions are played here")
        return env

    def render(self, settings: EnvSettings, seed: int, actions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Play the game again and yield what the environment draws, at least 160 pixels high.

        Raises:
            ConfigError: if a package that draws the environment is not installed.
        """
        try:
            env = self.make_single(settings, render_mode="rgb_array")
            env.reset(seed=seed)
            yield rgb_image(env.render())
        except gym.error.DependencyNotInstalled as error:
            check(False, "data.env", settings.env, f"cannot be drawn here: {error}")
        for action in actions:
            env.step(action)
            yield rgb_image(env.render())
        env.close()

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
            raise ConfigError("data.tasks", game.env, str(error).partition(f"{game.env!r} ")[2]) from None
    first = spaces[0].space
    for game, own in zip(settings, spaces, strict=True):
        equal = own.space.dtype == first.dtype and own.space.shape[1:] == first.shape[1:]
        equal &= own.space.dtype != np.int32 or bool((own.space.high == first.high).all())
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
    """Return a rendered image `[H, W, 3]` as uint8, enlarged to at least 160 pixels in height (MinAtar draws 10)."""
    array = np.asarray(rendered)
    if array.dtype != np.uint8:
        array = (array * 255).astype(np.uint8)
    factor = -(-MIN_HEIGHT // array.shape[0])
    return array.repeat(factor, 0).repeat(factor, 1)
