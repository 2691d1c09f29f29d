"""Dormant units and effective rank against algebra and brute force, and the activity of a trunk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_rl.metrics.features import dormant_share, effective_rank
from tests.helpers.networks import SHAPES, make_twin, observations

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=50)
ACTIVITY = st.lists(st.sampled_from([0.0, 0.01, 0.024, 0.026, 1.0, 2.0]), min_size=1, max_size=8)


@PROPERTY
@given(st.lists(ACTIVITY, min_size=1, max_size=4))
def test_a_unit_is_dormant_below_a_share_of_its_own_layer_s_mean(layers: list[list[float]]) -> None:
    dormant = [a <= 0.025 * (sum(layer) / len(layer)) for layer in layers for a in layer]
    found = dormant_share([torch.tensor(layer, dtype=torch.float64) for layer in layers])
    assert float(found) == pytest.approx(sum(dormant) / len(dormant))


def test_no_units_have_no_share() -> None:
    assert dormant_share([]).isnan()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_singular_values_count_the_rank(rank: int) -> None:
    columns = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 8)))[0]
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    features = torch.tensor(5 * columns[:, :rank] @ rows[:rank])
    assert float(effective_rank(features)) == pytest.approx(rank, rel=1e-4)


def test_the_effective_rank_is_exp_of_an_entropy() -> None:
    features = np.random.default_rng(2).normal(size=(30, 6))
    share = np.sqrt(np.linalg.eigvalsh(features.T @ features))
    share /= share.sum()
    expected = math.exp(-(share * np.log(share)).sum())
    assert float(effective_rank(torch.tensor(features))) == pytest.approx(expected, rel=1e-5)
    assert float(effective_rank(torch.tensor(-3 * features))) == pytest.approx(expected, rel=1e-5)


def test_features_of_zero_have_rank_zero_and_broken_ones_none() -> None:
    assert float(effective_rank(torch.zeros(4, 3))) == 0
    assert effective_rank(torch.tensor([[1.0, math.inf]])).isnan()


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("name", list(SHAPES))
def test_the_last_rectifier_s_activity_is_that_of_the_features(name: str, shared_trunk: bool) -> None:
    twin, x = make_twin(name, shared_trunk), observations(name)
    activities, features = twin.activity(x)
    trunk = twin.trunks[0 if shared_trunk else 2]
    torch.testing.assert_close(features, trunk(twin.prepare(x), "mean"))
    if name != "pseudo_resnet":  # two of its layers come after the last rectifier
        torch.testing.assert_close(activities[-1], features.abs().mean(0))
    assert not any(module._forward_hooks for module in twin.modules())


def test_the_activity_of_a_channel_is_its_mean_over_states_and_positions() -> None:
    twin, x = make_twin("nature"), observations("nature")
    convolution = twin.trunks[0].layers[0]
    expected = convolution(twin.prepare(x)).relu().mean((0, 2, 3))
    activities, _ = twin.activity(x)
    assert [len(activity) for activity in activities] == [32, 64, 64, 12]
    torch.testing.assert_close(activities[0], expected)


@pytest.mark.parametrize("bayesian", ["heads", "all"])
@pytest.mark.parametrize("posterior", ["mean_field", "low_rank", "members"])
def test_every_posterior_has_an_activity(bayesian: str, posterior: str) -> None:
    activities, features = make_twin("mlp", bayesian=bayesian, posterior=posterior).activity(observations("mlp"))
    assert [len(activity) for activity in activities] == [12, 12]
    assert features.shape[1] == 12
    assert 0 <= float(dormant_share(activities)) < 1
