"""Tests that every consolidation method passes: subclass `MethodCase` in a test file, and name the method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_rl.continual import METHODS, ConsolidationMethod, ConsolidationSettings, TaskSamples
from bayes_rl.networks.actor_critic import TwinActorCritic
from tests.helpers.twins import make_samples, make_twin, seeded


class MethodCase:
    """Contract of a `ConsolidationMethod`.

    Attributes:
        method: its name in the registry.
        settings: further settings, with which it has a penalty.
        protects: whether it has one.
    """

    method = ""
    settings: dict[str, Any] = {"ewc_lambda": 3.0}  # noqa: RUF012
    protects = True

    def make_twin(self) -> TwinActorCritic:
        return make_twin(shared_trunk=False, sequential=METHODS[self.method].posterior_becomes_prior)

    def make(self, twin: TwinActorCritic) -> ConsolidationMethod:
        return METHODS[self.method](twin, ConsolidationSettings(self.method, **self.settings))

    def ended(self) -> tuple[TwinActorCritic, ConsolidationMethod]:
        """Networks that have moved since the end of a task, and the method that registered it."""
        twin = self.make_twin()
        method = self.make(twin)
        method.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return twin, method

    def test_it_is_an_option_with_a_default_strength(self) -> None:
        assert self.method in METHODS
        assert ConsolidationSettings(self.method).strength == METHODS[self.method].default_strength >= 0

    def test_before_the_first_task_there_is_no_penalty(self) -> None:
        twin = self.make_twin()
        method = self.make(twin)
        assert not method.active
        assert method.penalty(twin).item() == 0
        for parameter in twin.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.add_gradients(twin)
        assert all((parameter.grad == 1).all() for parameter in twin.parameters())

    def test_after_a_task_the_penalty_is_zero_at_its_weights_and_positive_elsewhere(self) -> None:
        twin = self.make_twin()
        method = self.make(twin)
        method.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
        assert method.active == self.protects
        assert method.penalty(twin).item() == 0
        twin, method = self.ended()
        assert (method.penalty(twin).item() > 0) == self.protects

    def test_added_gradients_are_those_of_the_penalty_where_there_is_one_already(self) -> None:
        twin, method = self.ended()
        penalty, named = method.penalty(twin), dict(twin.named_parameters())
        expected: dict[str, Tensor | None] = dict.fromkeys(named)
        if penalty.requires_grad:
            gradients = torch.autograd.grad(penalty, list(named.values()), allow_unused=True)
            expected = dict(zip(named, gradients, strict=True))
        without = {name for name in named if name.startswith(("actors.1.", "trunks.3."))}
        for name, parameter in named.items():
            parameter.grad = None if name in without else torch.ones_like(parameter)
        method.add_gradients(twin)
        for name, parameter in named.items():
            if name in without:
                assert parameter.grad is None
            else:
                added = torch.zeros_like(parameter) if expected[name] is None else expected[name]
                torch.testing.assert_close(parameter.grad, 1 + added, rtol=1e-4, atol=1e-6, msg=name)

    def test_the_end_of_a_task_changes_no_parameter_and_draws_nothing_global(self) -> None:
        twin = self.make_twin()
        method, samples = self.make(twin), make_samples(twin)
        before = [parameter.detach().clone() for parameter in twin.parameters()]
        state = torch.get_rng_state()
        method.end_task(twin, TaskSamples(*samples, seeded()))
        method.penalty(twin)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(*pair) for pair in zip(twin.parameters(), before, strict=True))
        assert all(parameter.grad is None for parameter in twin.parameters())

    def test_its_state_is_in_buffers_that_a_fresh_one_loads(self) -> None:
        twin, method = self.ended()
        assert not list(method.parameters())  # no optimizer may train them
        fresh = self.make(twin)
        fresh.load_state_dict(method.state_dict())
        assert fresh.active == method.active
        assert fresh.penalty(twin).item() == method.penalty(twin).item()
        assert method.memory_bytes == sum(value.nbytes for value in method.state_dict().values())

    def test_the_penalty_scales_with_its_strength(self) -> None:
        twin, method = self.ended()
        double = METHODS[self.method](
            twin, ConsolidationSettings(self.method, **{**self.settings, "ewc_lambda": 2 * method.settings.strength})
        )
        double.load_state_dict(method.state_dict())
        assert double.penalty(twin).item() == pytest.approx(2 * method.penalty(twin).item(), rel=1e-5)

    def test_it_describes_itself_and_measures_how_much_it_freezes(self) -> None:
        twin, method = self.ended()
        assert method.describe().startswith(f"consolidation: {self.method}")
        assert "\n" not in method.describe()
        optimizer = torch.optim.AdamW(twin.parameters())
        assert 0 <= method.frozen_share(twin, optimizer) <= 1
        message = method.strength_warning(1.0, 1.0, 1)
        assert message is None
