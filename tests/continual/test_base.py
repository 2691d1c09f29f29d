"""Consolidation methods: the contract of each, the registry, and a method from outside the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.continual import METHODS, ConsolidationSettings
from bayes_rl.errors import ConfigError
from tests.continual.method_case import MethodCase
from tests.helpers.agents import SampleData, fit, make_batch, make_module

EXAMPLE = Path(__file__).parents[2] / "docs/examples/l2_anchor.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


class TestNone(MethodCase):
    method, protects = "none", False
    settings: dict[str, Any] = {}  # noqa: RUF012

    def test_the_penalty_scales_with_its_strength(self) -> None:
        with pytest.raises(ConfigError, match="has no effect without a method"):
            ConsolidationSettings("none", ewc_lambda=1.0)


class TestEWC(MethodCase):
    method = "ewc"


class TestEmpiricalEWC(MethodCase):
    method = "ewc"
    settings = {"ewc_lambda": 3.0, "fisher": "empirical", "fisher_norm": "none"}  # noqa: RUF012


class TestOnlineEWC(MethodCase):
    method = "online_ewc"


class TestVCL(MethodCase):
    method = "vcl"


class TestL2Anchor(MethodCase):
    method = "l2_anchor"


@pytest.fixture(autouse=True, scope="module")
def _example() -> Iterator[None]:
    """The example's method, registered as by a user, and removed again."""
    names = set(METHODS)
    spec = importlib.util.spec_from_file_location("l2_anchor", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    for name in set(METHODS) - names:
        del METHODS._entries[name]


def test_a_registered_method_trains_two_tasks_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    """With it, the weights stay nearer to those at the end of the first task."""
    distances = {}
    batches = [[make_batch(num_data=50) for _ in range(30)] for _ in range(2)]
    for strength in (1e-6, 10.0):
        torch.manual_seed(1)
        module = make_module(
            consolidation={"method": "l2_anchor", "ewc_lambda": strength},
            num_tasks=2,
            optimizer={"critic_lr": 1e-2, "actor_lr": 1e-2},
        )
        trainer = fit(module, batches[0], data=SampleData)
        module.consolidate()
        assert module.consolidator is not None
        names: Any = module.consolidator.names
        anchor = torch.cat([module.twin.get_parameter(name).detach().flatten() for name in names])
        assert module.consolidator.penalty(module.twin).item() == 0
        logged = fit(module, batches[1], data=SampleData, log_every=10).callback_metrics
        now = torch.cat([module.twin.get_parameter(name).detach().flatten() for name in names])
        distances[strength] = float((now - anchor).norm())
        assert logged["train/ewc_penalty"] > 0
        trainer.save_checkpoint(tmp_path / "agent.ckpt")
        loaded = VariationalActorCritic.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
        assert loaded.consolidator is not None
        assert loaded.consolidator.penalty(loaded.twin).item() == module.consolidator.penalty(module.twin).item() > 0
    assert distances[10.0] < 0.5 * distances[1e-6], distances


def test_an_unknown_method_lists_all_and_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"not one of none, ewc, online_ewc, vcl, l2_anchor; nearest: 'l2_anchor'"):
        make_module(consolidation={"method": "l2_ancor"}, num_tasks=2)


@pytest.mark.parametrize("method", ["vcl"])
def test_a_method_that_cannot_register_a_task_twice_says_so(method: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--model.consolidation.consolidate_every: 5 would count the same data again"
    ) as error:
        ConsolidationSettings(method, consolidate_every=5)
    assert error.value.key == "model.consolidation.consolidate_every"
