"""Monitor of the consolidation penalty."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_rl.continual.base import TaskSamples
from tests.helpers.twins import (
    make_consolidator,
    make_samples,
    make_twin,
    seeded,
)


def test_frozen_share_by_hand() -> None:
    """w = 2 and rms gradient 0.2: frozen where 0.2 / (5 F) < 0.01 * 2, beyond F = 2."""
    twin = make_twin()
    consolidator = make_consolidator(twin, 5.0)
    named = consolidator.protected(twin)
    name = "critics.1.weight_mu"
    fisher = {n: torch.zeros_like(p) for n, p in named.items()}
    fisher[name][0], fisher[name][1] = 2.1, 1.9
    fisher["actors.0.weight_mu"] += 1e9  # whose gradient the optimizer does not know
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.99))
    assert consolidator.frozen_share(twin, optimizer) == 0.0
    with torch.no_grad():
        named[name].fill_(2.0)
    consolidator.ewc.consolidate(named, fisher)
    assert consolidator.frozen_share(twin, optimizer) == 0.0
    second_moment = torch.full_like(named[name], 0.2**2 * (1 - 0.99**3))  # as Adam's third step finds it
    optimizer.state[named[name]] = {"step": torch.tensor(3.0), "exp_avg_sq": second_moment}
    share = consolidator.frozen_share(twin, optimizer)
    weights = sum(p.numel() for p in named.values())
    assert share == pytest.approx(6 / weights, rel=1e-9)
    second_moment[0, :2] = 0.0  # nothing pulls at these two, so that nothing holds them either
    assert consolidator.frozen_share(twin, optimizer) == pytest.approx(4 / weights, rel=1e-9)


def test_frozen_share_of_an_optimizer_that_stepped() -> None:
    twin = make_twin()
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-4)
    for _ in range(3):
        twin(torch.randn(16, 4), "sample").q_values.square().mean().backward()
        optimizer.step()
    shares = []
    for ewc_lambda in (1e-9, 1e9):
        consolidator = make_consolidator(twin, ewc_lambda, protected_networks="critic")
        consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
        shares.append(consolidator.frozen_share(twin, optimizer))
    assert shares[0] == 0.0
    # All but what belongs to units that were off throughout.
    assert 0.5 < shares[1] <= 1.0


def make_active(ewc_lambda: float = 2.0) -> Any:
    twin = make_twin()
    consolidator = make_consolidator(twin, ewc_lambda)
    assert consolidator.strength_warning(1e9, 1.0, 0) is None  # nothing is protected yet
    consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    return consolidator


def test_a_penalty_that_drowns_the_loss_is_reported_once() -> None:
    consolidator = make_active(2.5)
    assert consolidator.strength_warning(1000.0, -1.0, 1) is None
    message = consolidator.strength_warning(1100.0, -1.0, 2)
    assert message is not None
    assert "model.consolidation.ewc_lambda 2.5" in message
    assert "lower" in message
    assert consolidator.strength_warning(1e9, 1.0, 3) is None
    assert make_active().strength_warning(1.0, 0.0, 3) is not None


def test_a_penalty_without_effect_is_reported_after_some_updates() -> None:
    consolidator = make_active()
    for update in (50, 70, 149):
        assert consolidator.strength_warning(1e-7, 1.0, update, min_updates=100) is None
    message = consolidator.strength_warning(1e-7, 1.0, 150, min_updates=100)
    assert message is not None
    assert "raise" in message
    assert consolidator.strength_warning(0.0, 1.0, 151, min_updates=100) is None


def test_a_penalty_that_counted_once_is_not_reported_until_the_next_task() -> None:
    consolidator, twin = make_active(), make_twin()
    consolidator.strength_warning(1e-3, 1.0, 1, min_updates=10)
    assert consolidator.strength_warning(0.0, 1.0, 100, min_updates=10) is None
    consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    assert consolidator.strength_warning(0.0, 1.0, 101, min_updates=10) is None
    assert consolidator.strength_warning(0.0, 1.0, 111, min_updates=10) is not None
