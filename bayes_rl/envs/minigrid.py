"""MiniGrid and BabyAI games, an optional extra of the package."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumKind, make_plain, registered_outside
from bayes_rl.errors import check, did_you_mean

PREFIXES = ("MiniGrid-", "BabyAI-")


class BinaryBounds(gym.ObservationWrapper[Any, Any, Any]):
    """Wrapper that states 1 as the upper bound of planes of zeros and ones, instead of MiniGrid's 255."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 1, env.observation_space.shape, np.uint8)

    def observation(self, observation: Any) -> Any:
        """Return the observation as it is."""
        return observation


class MiniGridKind(GymnasiumKind):
    """MiniGrid and BabyAI games. The agent observes the 7 x 7 cells in front of it as planes of zeros and ones.

    There is a plane for each of 11 objects, 6 colours and 3 states of a door. MiniGrid's own codes are numbers without
    an order: a door (4) lies between a floor (3) and a key (5). The mission and the direction are not observed.
    """

    title = "a MiniGrid game"

    def knows(self, env: str) -> bool:
        """Return whether `env` is written as the id of a MiniGrid game, installed or not."""
        return env.startswith(PREFIXES) and not registered_outside(env, "minigrid")

    def ids(self) -> Iterable[str]:
        """Return the ids of the games, once a game of MiniGrid was asked for."""
        return [env for env in gym.registry if self.knows(env)]

    def check(self, settings: EnvSettings) -> None:
        """Refuse games that MiniGrid does not have, all of them if MiniGrid is not installed, and a crop."""
        installed = importlib.util.find_spec("minigrid") is not None
        if installed:
            with warnings.catch_warnings(action="ignore"):  # its import warns of old features of its dependencies
                importlib.import_module("minigrid")  # registers the games
        hint = did_you_mean(settings.env, self.ids()) if installed else "; install the extra: pip install minigrid"
        check(settings.env in gym.registry, "data.env", settings.env, f"is no known game or Gymnasium id{hint}")
        super().check(settings)

    def make_bare(self, settings: EnvSettings, render_mode: str | None) -> gym.Env[Any, Any]:
        """Return one game that observes planes, with sticky actions and a frame limit."""
        from minigrid.wrappers import ImgObsWrapper, OneHotPartialObsWrapper

        game = make_plain(settings.env, render_mode, **settings.env_kwargs)
        env = BinaryBounds(ImgObsWrapper(OneHotPartialObsWrapper(game)))
        return self.limit(env, settings)

    def action_names(self, settings: EnvSettings, num_actions: int) -> Sequence[str]:  # type: ignore[override]
        """Return MiniGrid's names of the actions."""
        from minigrid.core.actions import Actions

        return [action.name for action in Actions][:num_actions]
