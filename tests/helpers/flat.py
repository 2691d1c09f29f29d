"""Agents and data modules by the flat names that their options had in version 0.1.0, which are short to write."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.utils.settings import leaves
from bayes_rl.utils.version_0_1 import RENAMED, grouped, present_name


def agent_of(**options: Any) -> VariationalActorCritic:
    """Return an agent, for example `agent_of(encoder="mlp", hidden_dim=8)`."""
    return VariationalActorCritic(**grouped("model", options))


def data_of(env: str = "breakout", env_kwargs: dict[str, Any] | None = None, **options: Any) -> ReplayDataModule:
    """Return a data module, for example `data_of("CartPole-v1", frame_skip=1)`."""
    return ReplayDataModule(env, env_kwargs, **grouped("data", options))


def flat_options(agent: VariationalActorCritic) -> Any:
    """Return the options of an agent as attributes by their flat names."""
    options = leaves(dict(agent.hparams))
    names = {new: old for old, new in RENAMED["model"].items()}
    return SimpleNamespace(**{names.get(key, key): value for key, value in options.items()})


def option(section: str, key: str) -> str:
    """Return the present name of an option by its flat name, as `data.replay.capacity`."""
    return present_name(f"{section}.{key}") or f"{section}.{key}"
