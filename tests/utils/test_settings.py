"""Groups of settings: objects and dictionaries make the same group, and a wrong field is named."""

from __future__ import annotations

import pytest

from bayes_rl.bayes.likelihoods import LikelihoodSettings
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.envs.base import EpisodeRules
from bayes_rl.errors import ConfigError
from bayes_rl.utils.settings import as_settings, leaves, nested


def test_an_object_stays_and_a_dictionary_is_converted() -> None:
    settings = PosteriorSettings("members", size=3)
    assert as_settings(PosteriorSettings, settings, "model.posterior") is settings
    assert as_settings(PosteriorSettings, {"family": "members", "size": 3}, "model.posterior") == settings


def test_lists_of_a_checkpoint_become_tuples() -> None:
    rules = as_settings(EpisodeRules, {"crop": [1, 2, 3, 4]}, "data.rules")
    assert rules.crop == (1, 2, 3, 4)
    assert isinstance(hash(rules), int)
    likelihood = as_settings(LikelihoodSettings, {"value_range": [-1.0, 1.0]}, "model.likelihood")
    assert likelihood.value_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"famly": "members"}, "--model.posterior.famly: 'members' is no option; nearest: 'family'"),
        ({"size": 0}, "--model.posterior.size: 0 must be at least 1"),
        (3, "--model.posterior: 3 is no mapping of options; nearest: 'model.posterior.family'"),
        (None, "--model.posterior: None is no mapping of options; nearest: 'model.posterior.family'"),
    ],
)
def test_a_wrong_group_is_one_line(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        as_settings(PosteriorSettings, value, "model.posterior")  # type: ignore[arg-type]
    assert str(error.value) == message


def test_leaves_are_options_with_their_group() -> None:
    options = {"env": "pong", "env_kwargs": {"size": 3}, "replay": {"capacity": 5, "gamma": 0.9}}
    assert leaves(options) == {"env": "pong", "env_kwargs": {"size": 3}, "replay.capacity": 5, "replay.gamma": 0.9}


def test_dotted_options_are_put_into_groups_and_a_base_stays_as_it_is() -> None:
    assert nested({"a.b.c": 1, "a.d": 2, "e": 3}) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    base = {"a": {"b": 1, "c": 2}}
    assert nested({"a.b": 3}, base) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}
