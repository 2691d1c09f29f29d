"""Images of a recorded game, and of the screens that an agent sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import find_kind
from bayes_rl.envs.observations import IMAGE_SIDE
from bayes_rl.evaluation.games import Game

PLANE_COLOURS = (
    *((90, 160, 250), (255, 170, 60), (120, 200, 120), (235, 90, 90), (190, 150, 230)),
    *((190, 150, 130), (240, 150, 210), (170, 170, 170), (210, 210, 90), (90, 210, 220)),
)
"""Colours of the planes of an observation, in RGB."""


def render_game(settings: EnvSettings, game: Game) -> Iterator[NDArray[np.uint8]]:
    """Play (seed, actions) of a game again and yield RGB images `[H, W, 3]`, one per agent step and one before.

    Raises:
        ConfigError: if games of this kind cannot be drawn here.
    """
    return find_kind(settings.env).render(settings, game.seed, game.actions)


def screen_image(screen: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return a screen that an agent sees as an RGB image `[H, W, 3]`, or None for a vector or a state number.

    One channel is grey. Three or four channels of bytes with sides of at least 32 pixels are colours. Other channels
    are planes, each of which has a colour of its own; a plane hides those before it where it is not 0.

    Args:
        screen: `[C, H, W]` of any number type.
    """
    if screen.ndim != 3:
        return None
    count, height, width = screen.shape
    if screen.dtype == np.uint8 and min(height, width) >= IMAGE_SIDE and count in (1, 3, 4):
        return np.repeat(screen, 3, 0).transpose(1, 2, 0) if count == 1 else screen[:3].transpose(1, 2, 0)
    values = np.nan_to_num(np.abs(screen.astype(np.float32)))
    shares = values / (values.max(initial=0.0) or 1.0)
    image = np.zeros((height, width, 3), np.float32)
    for plane, share in enumerate(shares):
        colour = np.array(PLANE_COLOURS[plane % len(PLANE_COLOURS)] if count > 1 else (255, 255, 255), np.float32)
        image = np.where(share[..., None] > 0, share[..., None] * colour, image)
    return image.astype(np.uint8)
