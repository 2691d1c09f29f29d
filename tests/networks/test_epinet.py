"""Epinet: its prior functions, its draws, its divergence, and that the mean prediction does not depend on it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal
from torch.distributions import kl_divergence as distribution_kl

from bayes_rl.agent.optimizer import moving_average_pairs, parameter_groups
from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import ConfigError
from bayes_rl.networks.epinet import Epinet
from bayes_rl.networks.layer_factory import LayerFactory
from tests.helpers.networks import ACTIONS, BATCH, RATES, make_draws, make_twin, move, observations

FAMILIES = ["members", "low_rank"]


def make_epinet(posterior: str = "members", categories: int = 0, scale: float = 3.0, features: int = 256) -> Epinet:
    layers = LayerFactory(PosteriorSettings(posterior, size=4), "epinet", categories)
    shape = (1,) if categories else (5,)
    return Epinet(shape, ACTIONS, layers, features, 1.0, scale)


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("categories", [0, 2000])
def test_at_first_draws_differ_by_the_scale(posterior: str, categories: int) -> None:
    layers = LayerFactory(PosteriorSettings(posterior, size=64), "epinet", categories)
    epinet = Epinet((1,) if categories else (5,), ACTIONS, layers, 256, 1.0, 3.0)
    x = torch.randint(categories, (1, 500, 1)) if categories else 5 * torch.randn(1, 500, 5)
    deviations = epinet(x, replace(layers.family.fresh_draws(300, torch.device("cpu")), noise={}))
    assert deviations.shape[1:] == (500, ACTIONS)
    assert deviations.std().item() == pytest.approx(3.0, rel=0.15)
    assert abs(deviations.mean().item()) < 0.5


def test_integers_are_looked_up_like_their_one_hot_vectors() -> None:
    epinet = make_epinet(categories=9)
    x = torch.tensor([[[0], [8], [3], [3]]])
    index = torch.eye(4)
    one_hot = F.one_hot(x[..., 0], 9).float()
    weights = epinet.layer.weight_mu + torch.tensordot(index, epinet.prior, 1)
    expected = epinet.gain * (one_hot @ weights.transpose(1, 2) + epinet.layer.bias[:, None])
    torch.testing.assert_close(epinet(x, Draws(index, {})), expected)


@pytest.mark.parametrize("posterior", FAMILIES)
def test_a_draw_for_each_state_is_the_draw_for_all_states(posterior: str) -> None:
    twin = make_twin("mlp", bayesian="epinet", posterior=posterior, prior_function_scale=2.0)
    draws, x = make_draws(twin, BATCH), observations("mlp")
    of_all = twin(x[None], draws).draw_q_values()  # `[2, D, B, A]`
    of_each = twin(x[:, None], draws).draw_q_values()  # `[2, D, 1, A]`
    for number in range(BATCH):
        torch.testing.assert_close(of_each[:, number, 0], of_all[:, number, number])


@pytest.mark.parametrize("posterior", FAMILIES)
@pytest.mark.parametrize("likelihood", ["gaussian", "return_gaussian", "hl_gauss"])
def test_the_mean_prediction_does_not_depend_on_the_epinet(posterior: str, likelihood: str) -> None:
    arguments = {"bayesian": "epinet", "posterior": posterior, "likelihood": likelihood, "prior_function_scale": 2.0}
    twin = make_twin("minatar", **arguments)
    other = copy.deepcopy(twin)
    move(other.epinet)
    x = observations("minatar")
    draws = twin.posterior.fresh_draws(5, torch.device("cpu"))
    output = twin(x[None], draws)
    for mean in (twin(x), other(x)):
        assert mean.deviations is None
        torch.testing.assert_close(output.q_values[:, 0], mean.q_values)
        torch.testing.assert_close(output.action_logits[:, 0], mean.action_logits)
    torch.testing.assert_close(twin.policy(x), twin(x).mean_action_probs())
    assert output.deviations.shape == (draws.size, BATCH, ACTIONS)
    assert output.deviations.std(0).min() > 0
    assert not torch.allclose(output.deviations, other(x[None], draws).deviations)


def test_the_divergence_is_that_from_the_prior_functions() -> None:
    """Of the members' weights from N(prior function, 1), in units of the scale, by torch.distributions in float64."""
    epinet = make_epinet("members", scale=0.7)
    move(epinet.layer)
    std = (0.5 * epinet.layer.log_var()).exp().double()
    kls = [
        distribution_kl(Normal(prior + learned, std), Normal(prior, 1.0)).sum()
        for prior, learned in zip(epinet.prior.double(), epinet.layer.weight_mu.double(), strict=True)
    ]
    expected = torch.stack(kls).mean()
    torch.testing.assert_close(epinet.layer.kl_divergence().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("categories", [0, 9])
def test_the_scale_is_a_factor_of_all_deviations(categories: int) -> None:
    """Of what is learned too, so that a step of the optimizer has the same effect at every scale."""
    one, three = make_epinet(categories=categories, scale=1.0), make_epinet(categories=categories, scale=3.0)
    move(one.layer)
    three.load_state_dict(one.state_dict())
    x = torch.randint(9, (1, 20, 1)) if categories else torch.randn(1, 20, 5)
    draws = Draws(torch.eye(4), {})
    torch.testing.assert_close(three(x, draws), 3 * one(x, draws))


def test_the_divergence_of_a_twin_counts_the_epinet_once() -> None:
    twin = make_twin("mlp", bayesian="epinet", posterior="members", prior_function_scale=2.0)
    kl = twin.epinet.layer.kl_divergence()
    torch.testing.assert_close(twin.kl_divergence(), kl)
    torch.testing.assert_close(twin.kl_divergence((0,)), 0.5 * kl)
    torch.testing.assert_close(twin.kl_divergence((1,)), 0.5 * kl)


def test_updates_move_the_learned_weights_alone() -> None:
    twin = make_twin("mlp", bayesian="epinet", posterior="members", prior_function_scale=2.0)
    groups = parameter_groups(twin, RATES | {"epinet": 0.5}, 0.1)
    epinet = [group for group in groups if group["name"] == "epinet"]
    trained = {id(p) for group in epinet for p in group["params"]}
    assert trained == {id(p) for p in twin.epinet.layer.parameters()}
    assert [(group["lr"], group["weight_decay"]) for group in epinet] == [(0.5, 0.0)]
    fixed = {id(twin.epinet.prior), id(twin.epinet.features.weight), id(twin.epinet.features.phase)}
    assert not fixed & {id(p) for group in groups for p in group["params"]}
    _, newest = moving_average_pairs(copy.deepcopy(twin), twin)
    assert not fixed & {id(p) for p in newest}


def test_an_epinet_needs_a_prior_function_and_an_index() -> None:
    with pytest.raises(ConfigError, match=r"must be positive with --model.network.bayesian epinet; nearest: 1"):
        make_twin("mlp", bayesian="epinet", posterior="members")
    with pytest.raises(ConfigError, match="needs draws with an index"):
        make_twin("mlp", bayesian="epinet", posterior="mean_field", prior_function_scale=1.0)


@pytest.mark.parametrize("posterior", FAMILIES)
def test_perturbations_are_fixed_for_a_transition_and_standardised_over_draws(posterior: str) -> None:
    layers = LayerFactory(PosteriorSettings(posterior, size=16), "epinet", 0)
    epinet, other = (Epinet((5,), ACTIONS, layers, 8, 1.0, 1.0) for _ in range(2))
    draws = replace(layers.family.fresh_draws(4000, torch.device("cpu")), noise={})
    slots = torch.tensor([0, 1, 2, 70_000, 2])
    found = epinet.perturbations(slots, draws)
    assert found.shape == (draws.size, 5)
    torch.testing.assert_close(other.perturbations(slots, draws), found)
    torch.testing.assert_close(found[:, 4], found[:, 2])
    torch.testing.assert_close(found[:, 3], epinet.perturbations(torch.tensor([70_000 - 65_537]), draws)[:, 0])
    many = epinet.perturbations(torch.arange(4000), draws)
    assert many.mean().item() == pytest.approx(0, abs=0.05)
    assert many.square().mean().item() == pytest.approx(1, abs=0.05)
    between = many[:, :2000] * many[:, 2000:]  # of two transitions
    assert between.mean().item() == pytest.approx(0, abs=0.05)
