"""Environments whose failures name the environment, its seed and its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, Step, VectorEnvs
from bayes_rl.errors import ConfigError, RunError


class FailedEnvError(RunError):
    """An environment that raised, or returned what is not finite."""


class MonitoredEnvs(VectorEnvs):
    """Environments whose failures say which of them failed, and how to get there again.

    A reward or observation that is not finite counts as one.

    Args:
        envs: to be watched, not yet reset.
    """

    def __init__(self, envs: VectorEnvs) -> None:
        self.envs = envs
        self.name, self.num_envs, self.num_actions = envs.name, envs.num_envs, envs.num_actions
        self.screen_shape, self.screen_dtype = envs.screen_shape, envs.screen_dtype
        self.pixel_scale, self.num_categories = envs.pixel_scale, envs.num_categories
        self.steps_per_seed = envs.steps_per_seed
        self._seeds = np.zeros(self.num_envs, np.int64)  # of the last seeded resets
        self._actions = np.zeros(self.num_envs, np.int64)  # since these
        self._over = np.zeros(self.num_envs, bool)  # whose next step is no action, but the next episode's beginning
        self._floating = np.issubdtype(self.screen_dtype, np.floating)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["envs"], name)  # what only these environments have

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        given = np.zeros_like(self._seeds)
        given[mask] = seeds
        seeded = mask & (given != UNSEEDED)
        self._seeds[seeded], self._actions[seeded] = given[seeded], 0
        self._over &= ~mask
        screens, lives = self._watched(lambda: self.envs.reset(seeds, mask))
        self._check_screens(screens, mask)
        return screens, lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        played: NDArray[np.int64] = self._watched(lambda: self.envs.send(actions))
        self._actions += ~self._over  # now that the games are under way
        return played

    def recv(self) -> Step:
        step: Step = self._watched(self.envs.recv)
        self._over = step.terminated | step.truncated
        if not np.isfinite(step.rewards).all():
            env = int(np.argmin(np.isfinite(step.rewards)))
            raise FailedEnvError(f"{self._place(env)} returned the reward {step.rewards[env]:g}")
        self._check_screens(step.screens, True)
        return step

    def close(self) -> None:
        self.envs.close()

    def _check_screens(self, screens: NDArray[Any], mask: BoolArray | bool) -> None:
        if self._floating and not np.isfinite(screens).all():
            bad = ~np.isfinite(screens).reshape(self.num_envs, -1).all(1) & mask
            if bad.any():
                raise FailedEnvError(f"{self._place(int(np.argmax(bad)))} returned an observation that is not finite")

    def _watched(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (ConfigError, RunError):
            raise
        except Exception as error:
            env = getattr(error, "environment", 0 if self.num_envs == 1 else None)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise FailedEnvError(f"{self._place(env)} raised {text}") from error

    def _place(self, env: int | None) -> str:
        """Which environment, or all of them if nobody knows, its seed, and the actions since its reset with that."""
        of = f" of {self.name}" if self.name else ""
        if env is None:
            which, seeds, actions = f"one of environments 0..{self.num_envs - 1}", self._seeds, self._actions
            return f"{which}{of} (seeds {_words(seeds)}; {_words(actions)} actions since)"
        return f"environment {env}{of} (seed {self._seeds[env]}, {self._actions[env]} actions since)"


def _words(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)
