"""Agents and data modules by the flat names that their options had in version 0.1.0, which are short to write."""

from __future__ import annotations

from typing import Any

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.utils.version_0_1 import grouped


def agent_of(**flat: Any) -> VariationalActorCritic:
    """Return an agent, for example `agent_of(encoder="mlp", hidden_dim=8)`."""
    return VariationalActorCritic(**grouped("model", flat))


def data_of(env: str = "breakout", env_kwargs: dict[str, Any] | None = None, **flat: Any) -> ReplayDataModule:
    """Return a data module, for example `data_of("CartPole-v1", frame_skip=1)`."""
    return ReplayDataModule(env, env_kwargs, **grouped("data", flat))
