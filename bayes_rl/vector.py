"""What every set of environments can do: explicit seeded resets, then `send` and `recv` in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


UNSEEDED = -1


@dataclass
class History:
    """What was done to an environment since its last seeded reset: with that seed, it names the state.

    Attributes:
        actions: in order.
        resets: numbers of actions before each unseeded reset, ascending.
    """

    actions: list[int] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)


class Step(NamedTuple):
    """What one agent step of every environment returned.

    Attributes:
        screens: newest screen of each, `[E, *screen_shape]`, uint8 or float32.
        rewards: raw, summed over the frame skip, `[E]` float32.
        terminated: `[E]` bool.
        truncated: `[E]` bool.
        lives: `[E]` int64, 0 where the game has none.
    """

    screens: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: BoolArray
    truncated: BoolArray
    lives: NDArray[np.int64]


@dataclass(frozen=True)
class EnvSettings:
    """Everything that decides what an episode of a given seed is.

    Args:
        env: Gymnasium id with discrete actions, or a short name of a bundled Atari game (`breakout`).
        frame_skip: environment frames per agent step; the last two are max-pooled on Atari.
        sticky_actions: probability in [0, 1) that the previous action is repeated (Machado et al. 2018).
        crop: `[top, bottom, left, right]` of the 210 x 160 Atari screen to keep, in pixels, or None.
        max_episode_frames: frames after which a game is truncated.
        full_action_space: all 18 Atari actions instead of the game's own.
        auto_fire: press FIRE at the start of a game and after each lost life (Atari games that have FIRE).
    """

    env: str
    frame_skip: int = 4
    sticky_actions: float = 0.25
    crop: tuple[int, int, int, int] | None = None
    max_episode_frames: int = 108_000
    full_action_space: bool = False
    auto_fire: bool = False


class Envs(ABC):
    """E environments stepped together: `reset`, then `send` and `recv` in turn.

    Attributes:
        num_envs: E.
        num_actions: A.
        screen_shape: of one screen, channels first for images.
        screen_dtype: uint8 for images and binary planes, float32 for vectors.
        pixel_scale: what integer screens are divided by.
        steps_per_seed: least number of steps between two seeded resets of an environment where seeding is slow.
    """

    num_envs: int
    num_actions: int
    screen_shape: tuple[int, ...]
    screen_dtype: np.dtype[Any]
    pixel_scale: float = 255.0
    steps_per_seed: int = 0

    @abstractmethod
    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes where `mask` `[E]` is set, with one seed for each; others stay as they are.

        A seed of `UNSEEDED` goes on with the environment's own random numbers.

        Returns:
            Screens `[E, *screen_shape]` (meaningful where `mask` is set) and lives `[E]`.
        """

    @abstractmethod
    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begin one agent step with `actions` `[E]`; returns the actions really handed to the games."""

    @abstractmethod
    def recv(self) -> Step:
        """Wait for the step begun by `send`."""

    @abstractmethod
    def close(self) -> None:
        """Free emulators and threads."""

    def step(self, actions: NDArray[np.int64]) -> Step:
        """`send`, then `recv`."""
        self.send(actions)
        return self.recv()

    def restore(self, seeds: NDArray[np.int64], histories: Sequence[History]) -> NDArray[Any]:
        """Rebuild the state named by (seed, what was done since) of each environment.

        Shorter histories start later, so that all end at the same step; until then their environments idle.

        Returns:
            The newest screens `[E, *screen_shape]`.
        """
        lengths = np.array([len(h.actions) for h in histories])
        longest = int(lengths.max())
        delay = longest - lengths
        screens = np.zeros((self.num_envs, *self.screen_shape), self.screen_dtype)

        def begin(mask: BoolArray, new_seeds: NDArray[np.int64]) -> None:
            if mask.any():
                screens[mask] = self.reset(new_seeds[mask], mask)[0][mask]

        unseeded = np.full(self.num_envs, UNSEEDED)
        begin(np.ones(self.num_envs, bool), seeds)
        for t in range(longest + 1):
            begin((delay == t) & (t > 0), seeds)
            begin(np.array([t - d in h.resets for h, d in zip(histories, delay, strict=True)]), unseeded)
            if t == longest:
                break
            now = [h.actions[t - d] if t >= d else 0 for h, d in zip(histories, delay, strict=True)]
            result = self.step(np.array(now, np.int64))
            screens[:] = result.screens
            begin((result.terminated | result.truncated) & (delay > t), unseeded)
        return screens
