"""Checks of options that their types cannot express."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from bayes_rl.errors import check

LIMITS = {
    **{"hidden_dim": 65_536, "size": 65_536, "num_draws": 65_536, "num_bins": 65_536, "frame_skip": 65_536},
    **{"num_envs": 1024, "games": 100_000, "fps": 1000, "batch_size": 1_000_000, "seed": 2**32 - 1},
}
"""Upper limits of options that take memory or time; other numbers are at most `LARGEST` in absolute value."""


LARGEST = 2**31 - 1


LEAST = {
    **{"max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0, "num_nodes": 1, "num_sanity_val_steps": -1},
    **{"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "gradient_clip_val": 0},
    **{"overfit_batches": 0, "limit_train_batches": 0, "limit_val_batches": 0, "limit_test_batches": 0},
    **{"limit_predict_batches": 0, "reload_dataloaders_every_n_epochs": 0},
}
"""Lower limits of the trainer's options."""


def check_values(section: str, cls: type, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for null, for a boolean given as a number, and for numbers out of range.

    Args:
        section: `trainer`, `model` or `data`, or a group such as `model.posterior`.
        cls: class whose arguments the options are.
        values: options by name.
    """
    for key, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        if key not in values:
            continue
        value, name, kinds = values[key], f"{section}.{key}", get_args(hint) or (hint,)
        if is_dataclass(hint):
            nearest = f"{name}.{fields(hint)[0].name}"
            check(isinstance(value, Namespace), name, value, f"is no mapping of options; nearest: {nearest!r}")
            check_values(name, hint, value)  # type: ignore[arg-type]
            continue
        check(value is not None or type(None) in kinds, name, value, "is needed; null is none")
        check(not isinstance(value, bool) or bool in kinds, name, value, "must be a number")
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int | float)]
        most = LIMITS.get(key, LARGEST)
        for number in numbers:
            check(math.isfinite(number), name, value, "must be finite")
            check(section == "trainer" or abs(number) <= most, name, value, f"is out of all proportion, {most} is not")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` at options of the trainer that are out of range."""
    for key, least in LEAST.items():
        value = options[key]
        check(value is None or value >= least, f"trainer.{key}", value, f"must be at least {least}")
    value = options["val_check_interval"]
    check(not isinstance(value, int | float) or value > 0, "trainer.val_check_interval", value, "must be positive")
