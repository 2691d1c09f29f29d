"""Options of agents and data modules, in the groups of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes_rl.utils.settings import leaves


def merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of several dictionaries together; of a group, later dictionaries replace single options."""
    result: dict[str, Any] = {}
    for dictionary in options:
        for name, value in dictionary.items():
            both_are_groups = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
            result[name] = {**result[name], **value} if both_are_groups else value
    return result


def option(name: str, value: Any) -> dict[str, Any]:
    """Return an option by its name, for example `option("posterior.size", 3)`."""
    group, _, key = name.rpartition(".")
    return {group: {key: value}} if group else {key: value}


def title(options: Mapping[str, Any]) -> str:
    """Return the values of all options in one line, as the name of a test's case."""
    return " ".join(map(str, leaves(options).values())) or "defaults"
