"""Bayesian reinforcement learning on PyTorch Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayes_rl.agent.module import VariationalActorCritic
    from bayes_rl.data.datamodule import ReplayDataModule
    from bayes_rl.training.export import load_agent

__all__ = ["ReplayDataModule", "VariationalActorCritic", "load_agent"]

_HOMES = {
    "ReplayDataModule": "data.datamodule",
    "VariationalActorCritic": "agent.module",
    "load_agent": "training.export",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import bayes_rl.bayes` loads neither Lightning nor an emulator."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the module's names, public names that are not imported yet included."""
    return sorted({*globals(), *__all__})
