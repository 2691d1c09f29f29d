"""Frames of a recorded game."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import find_kind
from bayes_rl.evaluation.games import Game


def render_game(settings: EnvSettings, game: Game) -> Iterator[NDArray[np.uint8]]:
    """Play (seed, actions) of a game again and yield RGB images `[H, W, 3]`, one per agent step and one before.

    Raises:
        ConfigError: if games of this kind cannot be drawn here.
    """
    return find_kind(settings.env).render(settings, game.seed, game.actions)
