"""Errors of Lightning, of loggers, callbacks and strategies, and of places to write to, as one line."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy

from bayes_rl.cli.parser_errors import CLASS_PROBLEM, class_problem
from bayes_rl.errors import ConfigError

PARTS: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    ("callbacks", Callback),
    ("logger", Logger),
    ("profiler", Profiler),
    ("plugins", (Precision, CheckpointIO, ClusterEnvironment, LayerSync)),
    ("strategy", Strategy),
    ("accelerator", Accelerator),
)
"""Options of the trainer that name a class, and the class whose methods an error of theirs comes from."""


LONGEST = 300  # characters of another program's text in a line of this one


REFUSED_CLASS = re.compile(r"Errors: (?P<reason>.+?) Given value type: .*?class_path='(?P<path>[\w.]+)'")
"""The parser's text for a class whose constructor refuses its arguments."""


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}


def trainer_error(error: BaseException, options: Namespace) -> ConfigError | None:
    """Return the error of an option that Lightning, or a part of the trainer, refuses; None if no option is to blame.

    The option is that of the class whose method raised the error, or one that the text of the error names.

    Args:
        error: raised by the constructor of the trainer, or in one of its verbs.
        options: of the trainer.
    """
    text, trainer = one_line(error), vars(options)
    whole = " ".join(str(error).split())
    if made := re.search(CLASS_PROBLEM, whole) or re.search(REFUSED_CLASS, whole):
        key = next((key for key, value in trainer.items() if made["path"] in str(value)), "callbacks")
        own_reason = made["reason"].partition("Not a valid subclass of ")[0]  # the parser lists more ways
        reasons = [text.strip() for text in re.split(r"(?:^| )- ", own_reason)]
        reason = "; ".join(reason for reason in reasons if reason and not reason.startswith("Expected a "))
        return ConfigError(f"trainer.{key}", *class_problem(f"trainer.{key}", made["path"], reason))
    given = {key: value for key, value in trainer.items() if value != DEFAULTS.get(key)}
    part = _part(error, given)
    if part is not None:
        key, name = part
        typed = trainer[key] if isinstance(trainer[key], str) else name
        return ConfigError(f"trainer.{key}", typed, f"is refused: {text}")
    named = _named_option(text, given) or _named_option(text, trainer)
    return None if named is None else ConfigError(f"trainer.{named}", shown(trainer[named]), f"is refused: {text}")


def shown(value: Any) -> Any:
    """Return the value of an option as a user would type it: the name of a class, not its arguments."""
    if isinstance(value, Namespace):
        return str(value.get("class_path", "")).rpartition(".")[2]
    has_classes = isinstance(value, list) and any(isinstance(item, Namespace) for item in value)
    return ", ".join(str(shown(item)) for item in value) if has_classes else value


def place_error(error: BaseException, options: Any, run: Path) -> ConfigError | None:
    """Return the error of a place that cannot be written to, or None if the error is another one.

    Args:
        error: raised by the file system.
        options: of the verb.
        run: directory of the run.
    """
    if not isinstance(error, OSError) or error.filename is None:
        return None
    problem = f"cannot be written to: {error.filename}: {error.strerror}"
    root = options.trainer.default_root_dir
    return (
        ConfigError("trainer.default_root_dir", str(root), problem) if root else ConfigError("name", str(run), problem)
    )


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line, with the name of its class if the text is empty or short."""
    text = " ".join(str(error).split())
    if len(text.split()) < 3:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _part(error: BaseException, given: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the option and the class of the innermost part of the trainer that was at work, or None."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        # Lightning's own function that calls a hook names the callback: a hook need not be a method.
        owners = [frame.f_locals.get(name) for name in ("self", "callback")]
        for owner in [owner for owner in owners if not type(owner).__module__.startswith("bayes_rl.")]:
            for key, kind in PARTS:
                if isinstance(owner, kind) and key in given:
                    return key, type(owner).__name__
    return None


def _named_option(text: str, options: Mapping[str, Any]) -> str | None:
    """Return the first of the options that the text names, or else the first whose value the text names."""
    words = [*re.findall(r"`(\w+)", text), *re.findall(r"\w+", text)]
    for word in words:
        if word in options:
            return word
    for key, value in options.items():
        if value and isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE):
            return key
    return None
