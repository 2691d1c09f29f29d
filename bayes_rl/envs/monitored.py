"""Environments whose failures name the environment, its seed and its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, BoolArray, Step, VectorEnvs
from bayes_rl.errors import ConfigError, RunError
from bayes_rl.utils.failures import warn_of_failure


class FailedEnvError(RunError):
    """Failure of an environment: it raised, or returned a number that is not finite."""


class MonitoredEnvs(VectorEnvs):
    """Wrapper of environments whose failures name the environment, its seed and its number of actions.

    A reward or observation that is not finite is a failure.

    Args:
        envs: environments that were not reset yet.
    """

    def __init__(self, envs: VectorEnvs) -> None:
        self.envs = envs
        self.name, self.num_envs, self.num_actions = envs.name, envs.num_envs, envs.num_actions
        self.screen_shape, self.screen_dtype = envs.screen_shape, envs.screen_dtype
        self.pixel_scale, self.num_categories = envs.pixel_scale, envs.num_categories
        self.steps_per_seed, self.reading, self.repeatable = envs.steps_per_seed, envs.reading, envs.repeatable
        self._seeds = np.zeros(self.num_envs, np.int64)  # of the last seeded resets
        self._actions = np.zeros(self.num_envs, np.int64)  # since the last seeded reset
        self._over = np.zeros(self.num_envs, bool)  # the next step begins an episode and is no action
        self._floating = np.issubdtype(self.screen_dtype, np.floating)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["envs"], name)  # attributes that only this kind of environment has

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes; see `VectorEnvs.reset`.

        Raises:
            FailedEnvError: if an environment raises, or a new episode begins with a number that is not finite.
        """
        given = np.zeros_like(self._seeds)
        given[mask] = seeds
        seeded = mask & (given != UNSEEDED)
        self._seeds[seeded], self._actions[seeded] = given[seeded], 0
        self._over &= ~mask
        screens, lives = self._call(lambda: self.envs.reset(seeds, mask))
        self._check_screens(screens, mask)
        return screens, lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begin one agent step; return the actions that the games execute.

        Raises:
            FailedEnvError: if an environment raises.
        """
        played: NDArray[np.int64] = self._call(lambda: self.envs.send(actions))
        self._actions += ~self._over  # counted only after `send` succeeded
        return played

    def recv(self) -> Step:
        """Wait for the step that `send` began.

        Raises:
            FailedEnvError: if an environment raises, or returns a number that is not finite.
        """
        step: Step = self._call(self.envs.recv)
        self._over = step.terminated | step.truncated
        if not np.isfinite(step.rewards).all():
            env = int(np.argmin(np.isfinite(step.rewards)))
            raise FailedEnvError(f"{self._place(env)} returned the reward {step.rewards[env]:g}")
        self._check_screens(step.screens, True)
        return step

    def close(self) -> None:
        """Close the environments. An error of theirs harms nothing that was played, and costs one line."""
        with warn_of_failure(f"closing the environments{f' of {self.name}' if self.name else ''}"):
            self.envs.close()

    def _check_screens(self, screens: NDArray[Any], mask: BoolArray | bool) -> None:
        if self._floating and not np.isfinite(screens).all():
            bad = ~np.isfinite(screens).reshape(self.num_envs, -1).all(1) & mask
            if bad.any():
                raise FailedEnvError(f"{self._place(int(np.argmax(bad)))} returned an observation that is not finite")

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (ConfigError, RunError):
            raise
        except Exception as error:
            env = getattr(error, "environment", 0 if self.num_envs == 1 else None)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise FailedEnvError(f"{self._place(env)} raised {text}") from error

    def _place(self, env: int | None) -> str:
        """Return number, game, seed and action count of an environment; those of all environments if `env` is None."""
        of = f" of {self.name}" if self.name else ""
        if env is None:
            which, seeds, actions = f"one of environments 0..{self.num_envs - 1}", self._seeds, self._actions
            return f"{which}{of} (seeds {_words(seeds)}; {_words(actions)} actions since)"
        return f"environment {env}{of} (seed {self._seeds[env]}, {self._actions[env]} actions since)"


def _words(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)
