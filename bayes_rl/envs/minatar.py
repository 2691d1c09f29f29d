"""MinAtar games, an optional extra of the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import gymnasium as gym

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumKind, OwnSpaces, make_plain, registered_outside
from bayes_rl.envs.observations import Reading
from bayes_rl.errors import check, did_you_mean

# As `minatar.gym.register_envs` does, without its half a second of imports in runs of other games.
if importlib.util.find_spec("minatar"):
    for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
        for version, minimal in enumerate((False, True)):
            gym.register(
                id=f"MinAtar/{game.title().replace('_', '')}-v{version}",
                entry_point="minatar.gym:BaseEnv",
                kwargs={"game": game, "use_minimal_action_set": minimal},
            )

PREFIX = "MinAtar/"


class ForgetLastAction(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that clears the last action of a MinAtar game at a reset.

    MinAtar keeps its last (sticky) action across resets. Without it the seed alone names an episode.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Clear the last action and start a new episode."""
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


class MinAtarKind(GymnasiumKind):
    """MinAtar games. They repeat actions by themselves, and their actions and planes have a meaning."""

    title = "a MinAtar game"

    def knows(self, env: str) -> bool:
        """Return whether `env` is written as the id of a MinAtar game, installed or not."""
        return env.startswith(PREFIX) and not registered_outside(env, "minatar")

    def ids(self) -> Iterable[str]:
        """Return the ids of the installed games."""
        return [env for env in gym.registry if self.knows(env)]

    def check(self, settings: EnvSettings) -> None:
        """Refuse games that MinAtar does not have, all of them if MinAtar is not installed, and a crop."""
        hint = did_you_mean(settings.env, self.ids()) if self.ids() else "; install the extra: pip install minatar"
        check(settings.env in gym.registry, "data.env", settings.env, f"is no known game or Gymnasium id{hint}")
        super().check(settings)

    def make_bare(self, settings: EnvSettings, render_mode: str | None) -> gym.Env[Any, Any]:
        """Return one game that repeats actions by itself."""
        # A second `sticky_action_prob` among the keyword arguments is a TypeError: the option of the run decides.
        sticky = settings.sticky_actions
        env = make_plain(settings.env, render_mode, sticky_action_prob=sticky, **settings.env_kwargs)
        return gym.wrappers.TimeLimit(ForgetLastAction(env), settings.max_episode_frames)

    def read(self, settings: EnvSettings, space: gym.Space[Any]) -> Reading:
        """Return planes, channels last: the sides of Seaquest's ten planes of 10 x 10 do not tell the axes apart."""
        last = settings.channels == "auto" and settings.observation != "vector"
        return super().read(replace(settings, channels="last") if last else settings, space)

    def own_spaces(self, settings: EnvSettings) -> OwnSpaces:
        """Return the observation space with MinAtar's numbers of the actions and names of the planes."""
        env = self.probe(settings)
        game: Any = env.unwrapped
        channels = game.game.env.channels
        space: Any = env.observation_space
        env.close()
        return OwnSpaces(space, list(game.action_set), sorted(channels, key=channels.get))
