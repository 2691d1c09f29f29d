"""Frames of a recorded game."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.atari import AtariEnvs, atari_games
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import make_single
from bayes_rl.errors import check
from bayes_rl.evaluation.games import Game


def render_game(settings: EnvSettings, game: Game) -> Iterator[NDArray[np.uint8]]:
    """RGB pictures `[H, W, 3]` of a game, one per agent step, by playing (seed, actions) again."""
    if settings.env in atari_games():
        envs = AtariEnvs(settings, 1, rgb=True)
        yield envs.reset(np.array([game.seed]), np.ones(1, bool))[0][0].transpose(1, 2, 0)
        for action in game.actions:
            yield envs.step(np.array([action])).screens[0].transpose(1, 2, 0)
        envs.close()
        return
    try:
        env = make_single(settings, render_mode="rgb_array")
        env.reset(seed=game.seed)
        yield _rgb(env.render())
    except gym.error.DependencyNotInstalled as error:
        check(False, "data.env", settings.env, f"cannot be drawn here: {error}")
    for action in game.actions:
        env.step(action)
        yield _rgb(env.render())
    env.close()


def _rgb(picture: Any) -> NDArray[np.uint8]:
    """Rendered pictures as uint8, small ones (MinAtar's 10 x 10) enlarged to at least 160 pixels."""
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        array = (array * 255).astype(np.uint8)
    factor = -(-160 // array.shape[0])
    return array.repeat(factor, 0).repeat(factor, 1)
