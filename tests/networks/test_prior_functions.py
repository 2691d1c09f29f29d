"""Prior functions: their scale, their index, and that no update changes them."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch

from bayes_rl.agent.optimizer import parameter_groups
from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.posteriors import POSTERIORS, make_family
from bayes_rl.bayes.posteriors.low_rank import LowRank
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import ConfigError
from bayes_rl.networks.encoders import ENCODERS
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.prior_functions import PriorFunction
from tests.helpers.networks import (
    ACTIONS,
    BATCH,
    RATES,
    SHAPES,
    every_mode,
    make_draws,
    make_twin,
    move,
    observations,
)


def make_prior(
    name: str, posterior: str, scale: float, num_actions: int = ACTIONS, hidden_dim: int = 512
) -> PriorFunction:
    layers = LayerFactory(PosteriorSettings(posterior, size=4))
    return PriorFunction(name, SHAPES[name], hidden_dim, num_actions, scale, layers)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("posterior", ["low_rank", "members"])
def test_prior_functions_have_the_standard_deviation_that_was_asked_for(name: str, posterior: str) -> None:
    """Over draws, states, actions. 1024 actions, each with its own 4 rows: the rest is what the features differ in."""
    prior = make_prior(name, posterior, 3.0, num_actions=1024)
    x = torch.rand(1, 8, *SHAPES[name]) if len(SHAPES[name]) == 3 else torch.randn(1, 8, *SHAPES[name])
    index = make_family(PosteriorSettings(posterior, size=4)).fresh_draws(256, torch.device("cpu")).index
    values = prior(x, index)
    assert values.shape == (len(index), 8, 1024)
    # Half of a normalised feature's second moment is left after the ReLU; 512 features scatter about that. The two
    # halves of pseudo_resnet's features have other moments.
    assert abs(values.std().item() / 3.0 - 1) < (0.25 if name == "pseudo_resnet" else 0.12)
    assert abs(values.mean().item()) < 0.3
    assert (values.std(1) > 0.05).float().mean() > 0.9  # it depends on the state


@pytest.mark.parametrize("name", ["minatar", "mlp"])
def test_a_prior_function_is_linear_in_the_index(name: str) -> None:
    prior = make_prior(name, "low_rank", 2.0)
    x = torch.rand(1, BATCH, *SHAPES[name])
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    combined = prior(x, 2 * first - 3 * second)
    torch.testing.assert_close(combined, 2 * prior(x, first) - 3 * prior(x, second), rtol=1e-4, atol=1e-4)
    assert not prior(x, torch.zeros(5, 4)).any()
    each = prior(x.expand(5, *x.shape[1:]), first)  # an observation for every draw
    torch.testing.assert_close(each, prior(x, first), rtol=1e-4, atol=1e-5)
    several = torch.rand(5, BATCH, *SHAPES[name])
    slow = torch.cat([prior(several[d : d + 1], first[d : d + 1]) for d in range(5)])
    torch.testing.assert_close(prior(several, first), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("posterior", ["low_rank", "members"])
@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
def test_values_are_what_is_learned_plus_the_prior_function(posterior: str, likelihood: str) -> None:
    twin = make_twin("minatar", posterior=posterior, likelihood=likelihood, prior_function_scale=2.0)
    without = copy.deepcopy(twin)
    without.prior = None
    for observation, weights in every_mode(twin, "minatar")[2:]:
        torch.manual_seed(7)
        output = twin(observation, weights)
        torch.manual_seed(7)
        learned = without(observation, weights)
        assert torch.equal(output.raw, learned.raw)
        assert torch.equal(output.action_logits, learned.action_logits)
        assert output.prior_values is not None
        assert isinstance(weights, Draws)
        assert output.prior_values.shape == (weights.size, BATCH, ACTIONS)
        torch.testing.assert_close(output.q_values, twin.likelihood.value(output.raw) + output.prior_values)
        torch.testing.assert_close(output.q_values, learned.q_values + output.prior_values)
        assert output.prior_values.abs().max() > 0.5


def test_the_mean_has_the_prior_function_s_mean() -> None:
    """Zero over standard normal indices; over members that of their functions."""
    x = observations("mlp")
    low_rank = make_twin(posterior="low_rank", prior_function_scale=2.0)
    output = low_rank(x)
    torch.testing.assert_close(output.q_values, low_rank.likelihood.value(output.raw))
    members = make_twin(posterior="members", prior_function_scale=2.0)
    assert members.prior is not None
    output, mean = members(x), members.prior(x[None], torch.eye(2)).mean(0)
    torch.testing.assert_close(output.prior_values, mean)
    torch.testing.assert_close(output.q_values, output.raw[..., 0] + mean, rtol=1e-4, atol=1e-5)


def test_prior_functions_are_never_trained() -> None:
    twin = make_twin("mlp", posterior="low_rank", prior_function_scale=2.0)
    assert twin.prior is not None
    fixed = {id(p) for p in twin.prior.parameters()}
    assert fixed
    assert not any(p.requires_grad for p in twin.prior.parameters())
    groups = parameter_groups(twin, RATES, 0.1)
    assert not fixed & {id(p) for group in groups for p in group["params"]}
    before = copy.deepcopy(twin.prior.state_dict())
    optimizer = torch.optim.AdamW(groups)
    for _ in range(3):
        optimizer.zero_grad()
        twin(observations("mlp")[None], make_draws(twin)).q_values.square().mean().backward()
        optimizer.step()
    assert all(p.grad is None for p in twin.prior.parameters())
    assert all(torch.equal(value, before[key]) for key, value in twin.prior.state_dict().items())


def test_a_copy_and_a_loaded_network_have_the_same_prior_function() -> None:
    twin, stranger = (make_twin("mlp", posterior="low_rank", prior_function_scale=2.0) for _ in range(2))
    target = copy.deepcopy(twin)
    move(twin)
    observation, draws = observations("mlp")[None], make_draws(twin)
    prior = twin(observation, draws).prior_values
    assert torch.equal(target(observation, draws).prior_values, prior)
    assert not torch.allclose(stranger(observation, draws).prior_values, prior, atol=0.1)
    state = twin.state_dict()
    assert "prior.values.weight" in state
    assert {key for key in state if key.startswith("prior.encoder.")}
    stranger.load_state_dict(state)
    assert torch.equal(stranger(observation, draws).prior_values, prior)


@pytest.mark.parametrize(
    ("posterior", "bayesian"),
    [("mean_field", "heads"), ("low_rank", "none"), ("members", "none"), ("mean_field", "all")],
)
def test_a_prior_function_without_an_index_of_draws_is_refused(posterior: str, bayesian: str) -> None:
    with pytest.raises(ConfigError, match=r"prior_function_scale: 1\.0 .*family low_rank or members"):
        make_twin(bayesian=bayesian, posterior=posterior, prior_function_scale=1.0)
    assert make_twin(bayesian=bayesian, posterior=posterior, prior_function_scale=0.0).prior is None


def test_a_family_of_a_user_with_an_index_is_named_too() -> None:
    own = mock.patch.dict(POSTERIORS._entries, {"own": LowRank})
    with own, pytest.raises(ConfigError, match="family low_rank or members or own"):
        make_twin(prior_function_scale=1.0)


def test_a_negative_scale_of_the_prior_function_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.network\.prior_function_scale: -1\.0"):
        make_twin(posterior="low_rank", prior_function_scale=-1.0)
