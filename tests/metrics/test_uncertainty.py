"""Metric of the posterior's uncertainty, against brute force and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.metrics.uncertainty import PolicyUncertainty


def normal(size: int | tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(size))


def test_policy_uncertainty_by_brute_force() -> None:
    draws, states, actions = 7, 30, 5
    q = normal((draws, states, actions)) + normal((states, actions), 1)
    stds, disagreements, gaps = [], [], []
    for state in range(states):
        means = [sum(q[d, state, a].item() for d in range(draws)) / draws for a in range(actions)]
        ranked = sorted(range(actions), key=lambda a: -means[a])
        stds.append(np.std([q[d, state, ranked[0]].item() for d in range(draws)], ddof=1))
        votes = [max(range(actions), key=lambda a: q[d, state, a].item()) for d in range(draws)]
        disagreements.append(sum(vote != ranked[0] for vote in votes) / draws)
        gaps.append(means[ranked[0]] - means[ranked[1]])
    metric = PolicyUncertainty()
    metric.update(q)
    assert {key: value.item() for key, value in metric.compute().items()} == pytest.approx(
        {
            "epistemic_std": np.mean(stds),
            "greedy_disagreement": np.mean(disagreements),
            "q_gap": np.mean(gaps),
        },
        rel=1e-5,
    )
    assert 0.1 < np.mean(disagreements) < 0.9


def test_policy_uncertainty_adds_up_over_updates_and_ranks_and_resets() -> None:
    q = normal((4, 50, 3)).float()
    whole, parts, other = PolicyUncertainty(), PolicyUncertainty(), PolicyUncertainty()
    whole.update(q)
    parts.update(q[:, :5])
    parts.update(q[:, 5:30])
    other.update(q[:, 30:])
    other.update(q[:, :0])
    parts.merge_state(other)
    assert {k: v.item() for k, v in parts.compute().items()} == pytest.approx(
        {k: v.item() for k, v in whole.compute().items()}, rel=1e-5
    )
    parts.reset()
    parts.update(torch.tensor([[[1.0, 0.0]], [[3.0, 8.0]]]))
    again = {key: value.item() for key, value in parts.compute().items()}
    assert again == pytest.approx({"epistemic_std": math.sqrt(32), "greedy_disagreement": 0.5, "q_gap": 2.0})


def test_draws_that_agree_have_no_uncertainty_and_one_action_has_no_gap() -> None:
    metric = PolicyUncertainty()
    metric.update(torch.zeros(3, 4, 6))  # ties too are broken alike
    assert [value.item() for value in metric.compute().values()] == [0.0, 0.0, 0.0]
    metric.reset()
    metric.update(torch.tensor([[[1.0]], [[3.0]]]))
    assert [value.item() for value in metric.compute().values()] == pytest.approx([math.sqrt(2), 0.0, 0.0])


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 3), (2, 4, 0), (2, 2, 4, 3)])
def test_policy_uncertainty_refuses_what_has_no_spread_or_no_action(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="q_draws"):
        PolicyUncertainty().update(torch.zeros(shape))


def test_policy_uncertainty_without_states_is_nan() -> None:
    metric = PolicyUncertainty()
    metric.update(torch.zeros(2, 0, 3))
    assert all(math.isnan(value.item()) for value in metric.compute().values())
