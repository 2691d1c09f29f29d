"""Targets beyond the likelihood's range: counted as logged, told at the start, and warned of once."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import pytest
import torch

from bayes_rl.agent.clamped_targets import ClampedTargetMonitor
from bayes_rl.data.datamodule import ReplayDataModule
from tests.helpers.agents import MEMBERS, SampleData, Stream, fit, make_batch, make_module, make_trainer
from tests.helpers.options import merged

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

NARROW: dict[str, Any] = {"likelihood": {"family": "hl_gauss", "num_bins": 11, "value_range": (-2.0, 2.0)}}


class KnownReturns(SampleData):
    return_bounds = (-100.0, 100.0)


def batch_of_rewards(rewards: list[float]) -> Any:
    """A minibatch whose targets are its rewards, because no state follows."""
    return make_batch(len(rewards), discount=0.0, reward=torch.tensor(rewards))


@pytest.mark.parametrize("family", ["hl_gauss", "two_hot"])
def test_the_logged_share_is_that_of_targets_beyond_the_range(family: str) -> None:
    module = make_module(merged(NARROW, {"likelihood": {"family": family}}))
    rewards = [-2.01, -2.0, 0.0, 2.0, 2.01, 7.0, 1.0, 1.0]
    assert fit(module, [batch_of_rewards(rewards)], log_every=1).callback_metrics["train/clamped_targets"] == 3 / 8


def test_a_gaussian_holds_every_target() -> None:
    logged = fit(make_module({}), [batch_of_rewards([1e6, -1e6, 0.0, 1.0])], log_every=1).callback_metrics
    assert logged["train/clamped_targets"] == 0


def test_the_prior_function_is_no_part_of_what_the_likelihood_must_hold() -> None:
    """The likelihood learns the target less the prior function, so that is what can be clamped."""
    module = make_module(merged(NARROW, MEMBERS, {"network": {"prior_function_scale": 100.0}}))
    logged = fit(module, [batch_of_rewards([0.0] * 8)], log_every=1).callback_metrics
    assert logged["train/clamped_targets"] > 0.2


def test_a_share_above_one_percent_is_warned_of_once() -> None:
    batches = [batch_of_rewards([5.0] + [0.0] * 19)] * 40  # 5 %; ten of them after ten minibatches
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_module(NARROW), batches[:9], log_every=1)
        before = [w for w in caught if "value_range" in str(w.message)]
        fit(make_module(NARROW), batches, log_every=1)
    (warning,) = [w for w in caught if "value_range" in str(w.message)]
    assert before == []
    assert "--model.likelihood.value_range -2 to 2: 5% of the targets" in str(warning.message)


def test_a_share_of_one_percent_or_chance_is_no_reason_to_warn() -> None:
    monitor = ClampedTargetMonitor((-1.0, 1.0))
    assert all(monitor.add(0.01, 100) is None for _ in range(50))
    assert monitor.add(1.0, 4) is None  # four targets are too few to tell
    assert ClampedTargetMonitor((-1.0, 1.0)).add(1.0, 9) is None
    assert ClampedTargetMonitor((-1.0, 1.0)).add(1.0, 10) is not None


def test_the_count_follows_a_share_that_rises_late() -> None:
    monitor = ClampedTargetMonitor((-1.0, 1.0))
    assert all(monitor.add(0.0, 100) is None for _ in range(1000))
    assert any(monitor.add(0.03, 100) for _ in range(20))


def test_the_range_is_compared_with_the_returns_that_rewards_allow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fit(make_module(NARROW), [make_batch()], data=KnownReturns)
    assert "value_range -2 to 2 does not hold every return" in caplog.text
    assert "-100 to 100" in caplog.text
    caplog.clear()
    wide = merged(NARROW, {"likelihood": {"value_range": (-100.0, 100.0)}})
    for settings in (wide, {}):
        fit(make_module(settings), [make_batch()], data=KnownReturns)
    fit(make_module(NARROW), [make_batch()])  # rewards that are not clipped have no known bounds
    assert "value_range" not in caplog.text


@pytest.mark.parametrize(
    ("options", "bounds"),
    [
        ({"reward_clip": 1.0, "gamma": 0.99}, (-99.343, 99.343)),  # (1 - 0.99^500) / 0.01
        ({"reward_clip": 0.5, "gamma": 1.0}, (-250.0, 250.0)),
        ({"reward_clip": 1.0, "gamma": 0.0, "life_loss": "penalty"}, (-2.0, 1.0)),
        ({"reward_clip": None}, (-math.inf, math.inf)),
    ],
)
def test_bounds_of_returns_are_sums_of_the_largest_rewards(
    options: dict[str, Any], bounds: tuple[float, float]
) -> None:
    data = ReplayDataModule(
        "CartPole-v1",
        num_envs=1,
        rules={"frame_skip": 2, "max_episode_frames": 999},
        replay={"capacity": 100, "min_size": 10, **options},
    )
    assert data.return_bounds == pytest.approx(bounds, abs=1e-3)


def test_an_agent_learns_from_a_plain_loader_too() -> None:
    """Without a data module nobody knows the range of the returns, so that there is nothing to say at the start."""
    module = make_module(NARROW)
    stream = Stream([batch_of_rewards([1.0, 5.0])])
    make_trainer().fit(module, stream, Stream([]))
    assert module.global_step == 1
