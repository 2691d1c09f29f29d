"""The benchmark of the learner: it compares with the same mathematics, and its floor counts the products."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed import learner


@pytest.mark.parametrize("bayesian", ["heads", "none"])
@pytest.mark.parametrize("encoder", ["nature", "impala", "minatar", "mlp"])
def test_the_agent_learns_what_the_loop_written_by_hand_learns(encoder: str, bayesian: str) -> None:
    agent, batch = learner.make_agent(encoder, bayesian=bayesian), learner.minibatch(learner.SHAPES[encoder])
    bare = learner.BareLearner(agent, encoder, torch.float32)
    update = learner.by_hand(agent, batch, "32-true")
    # With seeds 0 and 1, rounding gives a gradient of 0.1 % of the usual size another sign, which Adam makes a step.
    for seed in (2, 3):
        torch.manual_seed(seed)
        update()
        torch.manual_seed(seed)
        bare.update(batch)
    again = learner.BareLearner(agent, encoder, torch.float32)
    for ours, theirs in zip(again.tensors, bare.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(agent.target_twin.trunks.parameters(), bare.averages, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_floor_counts_every_product_but_the_first_layers_input_gradient() -> None:
    agent, batch = learner.make_agent("mlp", bayesian="none"), learner.minibatch(learner.SHAPES["mlp"])
    bare = learner.BareLearner(agent, "mlp", torch.float32)
    first, second, head = 8 * 128, 128 * 128, 128 * 4 * learner.ACTIONS
    # Of target and value; gradients of weights; of inputs, which actors do not pass on.
    products = 2 * (first + second + head) + (first + second + head) + second + head // 2
    assert learner.counted_flops(lambda: bare.update(batch)) == 2 * 32 * products


def test_fit_takes_turns_with_the_others() -> None:
    agent, calls = learner.make_agent("mlp"), []
    data = learner.StillData(learner.minibatch((8,)), 3, 4, {"other": lambda: calls.append(agent.global_step)})
    times = learner.fit(agent, data, "32-true", log_every=1)  # reads all numbers of the stream
    assert {name: len(seconds) for name, seconds in times.items()} == {"fit": 3, "other": 3}
    assert agent.trainer.global_step == 17
    assert calls == [0] * 4 + [8] * 8 + [16] * 4
