"""MinAtar games, an extra."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym

# As `minatar.gym.register_envs` does, without its half a second of imports in runs that play something else.
if importlib.util.find_spec("minatar"):
    for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
        for version, minimal in enumerate((False, True)):
            gym.register(
                id=f"MinAtar/{game.title().replace('_', '')}-v{version}",
                entry_point="minatar.gym:BaseEnv",
                kwargs={"game": game, "use_minimal_action_set": minimal},
            )


class ForgetLastAction(gym.Wrapper[Any, Any, Any, Any]):
    """MinAtar keeps its last (sticky) action across resets; forget it, so that the seed alone names an episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)
