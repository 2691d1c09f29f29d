"""The benchmark of the learner: what it compares with is the same mathematics, and its floor counts the products."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learner_throughput

    yield learner_throughput
    for name in ("learner_throughput", "bare_learner", "bayes_cost", "common"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("bayesian", ["heads", "none"])
@pytest.mark.parametrize("encoder", ["nature", "impala", "minatar", "mlp"])
def test_the_agent_learns_what_the_loop_written_by_hand_learns(encoder: str, bayesian: str, benchmark: Any) -> None:
    agent, batch = benchmark.make_agent(encoder, bayesian=bayesian), benchmark.minibatch(benchmark.SHAPES[encoder])
    bare = benchmark.BareLearner(agent, encoder, torch.float32)
    update = benchmark.by_hand(agent, batch, "32-true")
    for seed in range(2):
        torch.manual_seed(seed)
        update()
        torch.manual_seed(seed)
        bare.update(batch)
    again = benchmark.BareLearner(agent, encoder, torch.float32)
    for ours, theirs in zip(again.tensors, bare.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(agent.target_twin.trunks.parameters(), bare.averages, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_floor_counts_every_product_but_the_first_layers_input_gradient(benchmark: Any) -> None:
    agent, batch = benchmark.make_agent("mlp", bayesian="none"), benchmark.minibatch(benchmark.SHAPES["mlp"])
    bare = benchmark.BareLearner(agent, "mlp", torch.float32)
    first, second, head = 8 * 128, 128 * 128, 128 * 4 * benchmark.ACTIONS
    # Of target and value; gradients of weights; of inputs, which actors do not pass on.
    products = 2 * (first + second + head) + (first + second + head) + second + head // 2
    assert benchmark.counted_flops(lambda: bare.update(batch)) == 2 * 32 * products


def test_fit_takes_turns_with_the_others(benchmark: Any) -> None:
    agent, calls = benchmark.make_agent("mlp"), []
    data = benchmark.StillData(benchmark.minibatch((8,)), 3, 4, {"other": lambda: calls.append(agent.global_step)})
    times = benchmark.fit(agent, data, "32-true")
    assert {name: len(seconds) for name, seconds in times.items()} == {"fit": 3, "other": 3}
    assert agent.trainer.global_step == 17
    assert calls == [0] * 4 + [8] * 8 + [16] * 4
