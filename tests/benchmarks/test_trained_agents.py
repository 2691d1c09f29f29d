"""The benchmark that plays the trained agents of the program."""

from __future__ import annotations

import pytest

from bayes_rl.training.export import bundled_agents
from benchmarks.learning import trained_agents


@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_an_agent_plays_as_many_games_as_are_asked_for_and_a_new_file_is_a_new_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = type("Options", (), {"agents": ["cartpole"], "test_games": 2})
    (cell,) = trained_agents.cells(options, [])  # type: ignore[arg-type]
    row = {**cell, **trained_agents.measure(cell, options), "commit": "0123456789"}  # type: ignore[arg-type]
    assert len(row["scores"]) == 2
    assert row["mean"] == sum(row["scores"]) / 2
    assert row["env"] == "CartPole-v1"
    assert "| `cartpole` | CartPole-v1 |" in trained_agents.table([row])
    other = bundled_agents()["minatar"]
    monkeypatch.setattr(trained_agents, "bundled_agents", lambda: {"cartpole": other})
    (changed,) = trained_agents.cells(options, [])  # type: ignore[arg-type]
    assert changed["sha256"] != cell["sha256"]
