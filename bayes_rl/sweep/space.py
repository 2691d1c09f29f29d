"""Space of a sweep: options of `fit`, each with the values that trials take."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bayes_rl.errors import ConfigError, check, check_choice, did_you_mean

KINDS = ("choice", "uniform", "log_uniform", "grid")
"""Kinds of values: one of a list, a number of a range, a number of a range by its logarithm, all of a list."""

RANGES = ("uniform", "log_uniform")

SEED = "seed_everything"
"""Option whose grid is the list of seeds of every trial."""

LENGTH = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.check_val_every_n_epoch"),
    *("trainer.val_check_interval", "trainer.limit_train_batches", "trainer.limit_val_batches"),
    *("trainer.overfit_batches", "trainer.fast_dev_run"),
    *("data.frames_per_epoch", "data.curriculum.cycles", "data.curriculum.frames_per_task"),
)
"""Options that decide how long a fit is, and when it is validated. Trials are compared at equal frames."""

PLACE = ("name", "trainer.default_root_dir", "ckpt_path", "config", "import_modules", "allow_overrides")
"""Options that a sweep sets itself, or that are typed for all trials."""


class SpaceError(ConfigError):
    """A file that is no space. Its text is one line that names the file and a way out."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__("space", file, problem)

    def __str__(self) -> str:
        return f"SPACE.yaml: {self.value!r} {self.problem}"


@dataclass(frozen=True)
class Values:
    """Values of one option.

    Attributes:
        kind: one of `KINDS`.
        values: all values of a list, or lowest and highest value of a range. A range of two whole numbers has whole
            numbers only.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def whole(self) -> bool:
        """True if the values are whole numbers."""
        return all(isinstance(value, int) for value in self.values)


@dataclass(frozen=True)
class Space:
    """Options of a sweep and their values.

    Attributes:
        options: dotted name of an option to its values.
        seeds: seeds of every trial, if the file lists them.
    """

    options: Mapping[str, Values]
    seeds: tuple[int, ...] | None = None

    @property
    def grids(self) -> dict[str, Values]:
        """Options whose values are all tried."""
        return {name: values for name, values in self.options.items() if values.kind == "grid"}

    @property
    def cells(self) -> int:
        """Number of combinations of all grids, 1 without a grid."""
        return math.prod(len(values.values) for values in self.grids.values())


def parse_space(content: Mapping[Any, Any], known: Collection[str]) -> Space:
    """Return the space that a file describes.

    Args:
        content: of the file: `{"data.replay.n_step": {"choice": [1, 3, 5]}, ...}`.
        known: names of the options of `fit`.

    Raises:
        ConfigError: if an option is unknown, or its values are none.
    """
    options = {str(name): _parse_values(str(name), entry, known) for name, entry in content.items()}
    seeds = options.pop(SEED, None)
    if seeds is None:
        return Space(options)
    right = seeds.kind == "grid" and all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds.values)
    check(right, SEED, list(seeds.values), "must be a grid of whole numbers from 0 to 4294967295")
    return Space(options, seeds.values)


def _parse_values(name: str, entry: object, known: Collection[str]) -> Values:
    inside = [other for other in known if other.startswith(f"{name}.")]
    check(name in known, name, entry, f"is no option of fit{did_you_mean(name, known)}")
    check(not inside, name, entry, f"is a group of options; nearest: {inside[0]!r}" if inside else "")
    check(name not in LENGTH, name, entry, "cannot differ between trials, which are compared at equal frames")
    check(name not in PLACE, name, entry, "cannot differ between trials; type it behind the space")
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ConfigError(name, entry, "must be choice, uniform, log_uniform or grid with a list: {choice: [1, 2]}")
    ((kind, listed),) = entry.items()
    check_choice(name, str(kind), KINDS)
    if not isinstance(listed, list) or not listed:
        raise ConfigError(name, listed, f"is no list of values; nearest: {kind}: [{listed}]")
    if kind in RANGES:
        return Values(kind, _ends(name, kind, listed))
    texts = [repr(value) for value in listed]
    double = next((value for value in listed if texts.count(repr(value)) > 1), None)
    check(len({*texts}) == len(texts), name, listed, f"lists {double!r} twice")
    return Values(kind, tuple(listed))


def _ends(name: str, kind: str, listed: list[Any]) -> tuple[Any, ...]:
    """Return lowest and highest value of a range."""
    numbers = all(type(end) in (int, float) and math.isfinite(end) for end in listed)
    check(numbers and len(listed) == 2, name, listed, f"must be two numbers, lowest and highest: {kind}: [0.1, 1.0]")
    low, high = listed
    check(low < high, name, listed, f"is an empty range; nearest: {sorted((low, high))}")
    check(kind != "log_uniform" or low > 0, name, listed, "must be greater than 0 for log_uniform; nearest: uniform")
    return low, high
