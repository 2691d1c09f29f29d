"""Groups of settings: frozen dataclasses that a constructor takes as an object or as a dictionary."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from bayes_rl.errors import ConfigError, did_you_mean

T = TypeVar("T")


def as_settings(cls: type[T], value: T | Mapping[str, Any], option: str) -> T:
    """Return a group of settings as an object of its class.

    Args:
        cls: frozen dataclass of the group.
        value: an object of `cls`, or a dictionary of its fields as checkpoints hold it; lists become tuples.
        option: name of the group, for the error, as `model.posterior`.

    Raises:
        ConfigError: if the dictionary has a field that the group does not have, or a setting cannot work.
    """
    if isinstance(value, cls):
        return value
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise ConfigError(option, value, f"is no mapping of options; nearest: '{option}.{known[0]}'")
    for name, setting in value.items():
        if name not in known:
            raise ConfigError(f"{option}.{name}", setting, f"is no option{did_you_mean(str(name), known)}")
    return cls(**{name: tuple(x) if isinstance(x, list) else x for name, x in value.items()})


GROUPS = {
    "model": ("network", "posterior", "likelihood", "objective", "consolidation", "optimizer"),
    "data": ("rules", "replay", "epsilon", "draws", "curriculum", "evaluation"),
}
"""Section of the options to its groups."""


def leaves(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a section with those of a group as `group.option`.

    Args:
        options: option to value, or group to its dictionary of options. Other dictionaries are values.
    """
    groups = {group for names in GROUPS.values() for group in names}
    result: dict[str, Any] = {}
    for key, value in options.items():
        if key in groups and isinstance(value, Mapping):
            result |= {f"{key}.{name}": setting for name, setting in value.items()}
        else:
            result[key] = value
    return result


def nested(options: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return options such as `{"model.optimizer.critic_lr": 0.1}` in their sections and groups.

    Args:
        options: dotted name to value.
        base: configuration that the options change; it stays as it is.
    """
    result: dict[str, Any] = copy.deepcopy(dict(base or {}))
    for name, value in options.items():
        *parts, last = name.split(".")
        section = result
        for part in parts:
            section = section.setdefault(part, {})
        section[last] = value
    return result
