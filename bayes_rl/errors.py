"""Errors that a user reads, and checks that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor


class ConfigError(ValueError):
    """A setting that cannot work. Its text is one line that names the key, the value and a way out."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(f"--{key}: {value!r} {problem}")
        self.key, self.value, self.problem = key, value, problem

    def of_task(self, env: str) -> ConfigError:
        """Return the error of one of several tasks: an error of `data.env` becomes one of `data.tasks`."""
        return type(self)("data.tasks", env, self.problem) if self.key == "data.env" else self


class UserCodeError(ConfigError):
    """Error in a module or an environment of the user's, which is the cause (`__cause__`) of this error.

    The command line writes the stack trace of the cause to a file.
    """


class RunError(RuntimeError):
    """Failure that ends a run. Its text is one line.

    Attributes:
        remark: state that the error leaves the run in, appended to the text if it is known.
    """

    remark = ""

    def __str__(self) -> str:
        return super().__str__() + self.remark


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known word closest to `word` as `"; nearest: 'x'"`, or an empty string if none is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f"; nearest: {close[0]!r}" if close else ""


def check(condition: bool, key: str, value: object, problem: str) -> None:
    """Raise `ConfigError(key, value, problem)` unless `condition` holds."""
    if not condition:
        raise ConfigError(key, value, problem)


def check_choice(key: str, value: str, known: Iterable[str]) -> None:
    """Raise `ConfigError` naming the nearest valid word unless `value` is one of `known`."""
    known = list(known)
    check(value in known, key, value, f"is not one of {', '.join(known)}{did_you_mean(str(value), known)}")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise `ValueError` unless all tensors have one shape: `[B]` and `[B, 1]` would broadcast to `[B, B]`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, got {shapes}")
