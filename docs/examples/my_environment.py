"""Catch, an example of a new kind of environment: a ball falls, and a paddle in the last row has to catch it.

All games are one numpy computation, so that no Gymnasium environment is needed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, EnvKind, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.kinds import register_kind
from bayes_rl.errors import check

ROWS, COLUMNS = 10, 5


class CatchEnvs(VectorEnvs):
    """Catch: screens `[1, 10, 5]` with ball and paddle; actions left, stay, right; a reward of 1 or -1 at the end."""

    num_actions, screen_shape, screen_dtype, pixel_scale = 3, (1, ROWS, COLUMNS), np.dtype(np.uint8), 1.0

    def __init__(self, settings: EnvSettings, num_envs: int) -> None:
        self.name, self.num_envs = settings.env, num_envs
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self.row, self.ball, self.paddle, self.actions = np.zeros((4, num_envs), np.int64)

    def screens(self) -> NDArray[Any]:
        """Return the newest screens `[E, 1, 10, 5]`."""
        screens = np.zeros((self.num_envs, *self.screen_shape), self.screen_dtype)
        games = np.arange(self.num_envs)
        screens[games, 0, self.row, self.ball] = screens[games, 0, -1, self.paddle] = 1
        return screens

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Put the ball in a random column of the first row; the seed alone decides which column."""
        for game, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            if seed != UNSEEDED:
                self.generators[game] = np.random.default_rng(seed)
            self.row[game], self.ball[game], self.paddle[game] = (
                0,
                self.generators[game].integers(COLUMNS),
                COLUMNS // 2,
            )
        return self.screens(), np.zeros(self.num_envs, np.int64)

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store the actions for `recv`."""
        self.actions = actions
        return actions

    def recv(self) -> Step:
        """Move ball and paddle."""
        self.row = self.row + 1
        self.paddle = (self.paddle + self.actions - 1).clip(0, COLUMNS - 1)
        over = self.row == ROWS - 1
        rewards = np.where(over, np.where(self.paddle == self.ball, 1, -1), 0).astype(np.float32)
        return Step(self.screens(), rewards, over, np.zeros(self.num_envs, bool), np.zeros(self.num_envs, np.int64))

    def close(self) -> None:
        """Free nothing: the games are arrays."""


class CatchKind(EnvKind):
    """The kind whose only game has the id `catch`."""

    title = "Catch"

    def knows(self, env: str) -> bool:
        """Return whether `env` is Catch."""
        return env == "catch"

    def check(self, settings: EnvSettings) -> None:
        """Refuse rules that Catch does not have."""
        super().check(settings)
        check(settings.frame_skip == 1, "data.rules.frame_skip", settings.frame_skip, "must be 1 in Catch")
        check(settings.sticky_actions == 0, "data.rules.sticky_actions", settings.sticky_actions, "must be 0 in Catch")

    def make(self, settings: EnvSettings, num_envs: int) -> CatchEnvs:
        """Return `num_envs` games."""
        return CatchEnvs(settings, num_envs)

    def action_names(self, settings: EnvSettings, num_actions: int) -> list[str]:
        """Return the names that stand beside the bars of a video."""
        return ["left", "stay", "right"]

    def render(self, settings: EnvSettings, seed: int, actions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Play the game again and yield images `[160, 80, 3]`, 16 pixels a cell."""
        envs = self.make(settings, 1)
        screen = envs.reset(np.array([seed]), np.ones(1, bool))[0]
        for action in [*actions, None]:
            yield np.kron(screen[0, 0, :, :, None], np.full((16, 16, 3), 255, np.uint8))
            screen = screen if action is None else envs.step(np.array([action])).screens


register_kind(CatchKind())
