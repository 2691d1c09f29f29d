"""MinAtar games, an extra."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym

with contextlib.suppress(ImportError):  # MinAtar is an extra
    from minatar.gym import register_envs as _register_minatar

    _register_minatar()


class ForgetLastAction(gym.Wrapper[Any, Any, Any, Any]):
    """MinAtar keeps its last (sticky) action across resets; forget it, so that the seed alone names an episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)
