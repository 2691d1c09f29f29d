"""Settings that cannot work: one line each, that names the key, the value and a way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.utils.settings import leaves
from tests.helpers.agents import make_module
from tests.helpers.options import option

NAN = float("nan")


def error_of(*options: Mapping[str, Any], **more: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        make_module(*options, **more)
    assert "\n" not in str(raised.value)
    return raised.value


BAD = [
    ("network.encoder", "natura"),
    ("network.hidden_dim", 0),
    ("network.hidden_dim", -8),
    ("network.bayesian", "head"),
    ("posterior.family", "meanfield"),
    ("posterior.size", 0),
    ("posterior.num_draws", 0),
    ("posterior.num_draws", -1),
    ("posterior.prior", "gausian"),
    ("posterior.prior_precision", 0.0),
    ("posterior.prior_precision", -1.0),
    ("posterior.prior_precision", NAN),
    ("posterior.prior_precision", float("inf")),
    ("posterior.init_log_var", 12.0),
    ("posterior.init_log_var", -11.5),
    ("posterior.init_log_var", NAN),
    ("posterior.log_var_limit", 0.0),
    ("posterior.log_var_limit", NAN),
    ("posterior.log_var_limit", 61.0),
    ("posterior.init_scale", 0.0),
    ("posterior.init_scale", NAN),
    ("network.prior_function_scale", -1.0),
    ("network.prior_function_scale", NAN),
    ("objective.kl_temperature", -0.1),
    ("objective.kl_temperature", NAN),
    ("likelihood.family", "gauss"),
    ("likelihood.noise_std", 0.0),
    ("likelihood.noise_std", -1.0),
    ("likelihood.noise_std", NAN),
    ("exploration", "thomson"),
    ("objective.bootstrap", "greed"),
    ("objective.target", "emma"),
    ("objective.tau", 0.0),
    ("objective.tau", -0.1),
    ("objective.tau", 1.5),
    ("objective.tau", NAN),
    ("objective.actor_loss", "dgp"),
    ("objective.policy_temperature", 0.0),
    ("objective.policy_temperature", NAN),
    ("objective.entropy_weight", -0.01),
    ("objective.entropy_weight", NAN),
    ("objective.update_pairs", "one"),
    ("consolidation.method", "emc"),
    ("consolidation.ewc_lambda", -1.0),
    ("consolidation.ewc_lambda", NAN),
    ("consolidation.ewc_lambda", 1.0),  # of what?
    ("consolidation.protected_networks", "all"),
    ("consolidation.fisher", "real"),
    ("consolidation.fisher_samples", 0),
    ("consolidation.fisher_norm", "max"),
    ("consolidation.online_decay", 1.5),
    ("consolidation.online_decay", NAN),
    ("consolidation.consolidate_every", -1),
    ("consolidation.consolidate_every", 5),  # what?
    ("consolidation.optimizer_at_switch", "restart"),
    ("consolidation.critic_at_switch", "restart"),
    ("optimizer.actor_lr", 0.0),
    ("optimizer.actor_lr", -1e-3),
    ("optimizer.critic_lr", 0.0),
    ("optimizer.critic_lr", NAN),
    ("optimizer.adam_eps", -1e-8),
    ("optimizer.weight_decay", -0.1),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}={value}" for key, value in BAD])
def test_a_bad_setting_gives_a_config_error_that_names_it(key: str, value: Any) -> None:
    error = error_of(option(key, value))
    assert error.key == f"model.{key}"
    assert str(error).startswith(f"--model.{key}: {value!r} ")


# What each alone could do, but not together; the last word names a way out.
TOGETHER = [
    ("posterior.init_log_var", {"posterior": {"init_log_var": -9.0, "log_var_limit": 5.0}}, "within +-5"),
    ("exploration", {"exploration": "thompson", "network": {"bayesian": "none"}}, "--model.network.bayesian heads"),
    (
        "exploration",
        {"exploration": "both", "network": {"bayesian": "none"}, "posterior": {"family": "members"}},
        "--model.network.bayesian heads",
    ),
    (
        "consolidation.method",
        {"consolidation": {"method": "ewc"}, "posterior": {"family": "members"}, "num_tasks": 2},
        "mean_field or low_rank",
    ),
    (
        "consolidation.method",
        {"consolidation": {"method": "vcl"}, "posterior": {"family": "low_rank"}, "num_tasks": 2},
        "mean_field with prior gaussian",
    ),
    (
        "consolidation.method",
        {"consolidation": {"method": "vcl"}, "network": {"bayesian": "none"}, "num_tasks": 2},
        "--model.network.bayesian all",
    ),
    ("consolidation.method", {"consolidation": {"method": "ewc"}}, "--data.tasks"),
    ("consolidation.consolidate_every", {"consolidation": {"method": "vcl", "consolidate_every": 9}}, "drop it"),
    (
        "consolidation.critic_at_switch",
        {"consolidation": {"critic_at_switch": "reset", "method": "ewc"}, "num_tasks": 2},
        "--model.consolidation.protected_networks actor",
    ),
    ("network.prior_function_scale", {"network": {"prior_function_scale": 1.0}}, "low_rank or members"),
    (
        "network.prior_function_scale",
        {"network": {"prior_function_scale": 1.0, "bayesian": "none"}, "posterior": {"family": "low_rank"}},
        "Bayesian layers of the family low_rank or members",
    ),
    ("posterior.prior", {"posterior": {"prior": "log_uniform", "family": "low_rank"}}, "mean_field or members"),
    ("likelihood.noise_std", {"likelihood": {"noise_std": 1e4, "family": "learned_gaussian"}}, "within 0.001 and 1000"),
    (
        "likelihood.value_range",
        {"likelihood": {"value_range": (1.0, 1.0), "family": "hl_gauss"}},
        "the smaller one first",
    ),
    (
        "likelihood.value_range",
        {"likelihood": {"value_range": (2.0, -2.0), "family": "two_hot"}},
        "the smaller one first",
    ),
    ("likelihood.value_range", {"likelihood": {"value_range": (0.0, NAN), "family": "two_hot"}}, "two finite numbers"),
    ("likelihood.num_bins", {"likelihood": {"num_bins": 1, "family": "hl_gauss"}}, "2 or more"),
    (
        "network.encoder",
        {"network": {"encoder": "nature"}, "observation_shape": (1,), "num_categories": 9},
        "nearest: 'mlp'",
    ),
]


@pytest.mark.parametrize(("key", "settings", "way_out"), TOGETHER, ids=lambda x: x if isinstance(x, str) else "")
def test_settings_that_exclude_each_other_name_one_and_a_way_out(
    key: str, settings: dict[str, Any], way_out: str
) -> None:
    error = error_of(settings)
    assert error.key == f"model.{key}"
    assert str(error).startswith(f"--model.{key}: {leaves(settings)[key]!r} ")
    assert way_out in str(error)


def test_a_stack_of_numbered_states_names_the_data_s_setting() -> None:
    error = error_of(observation_shape=(2,), num_categories=9)
    assert error.key == "data.frame_stack"


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("objective.target", "emma", "ema"),
        ("objective.actor_loss", "dgp", "dpg"),
        ("objective.update_pairs", "bth", "both"),
        ("posterior.family", "meanfield", "mean_field"),
        ("network.bayesian", "head", "heads"),
        ("posterior.prior", "log-uniform", "log_uniform"),
        ("likelihood.family", "hlgauss", "hl_gauss"),
        ("exploration", "thomson", "thompson"),
        ("objective.bootstrap", "greed", "greedy"),
        ("consolidation.method", "online-ewc", "online_ewc"),
        ("consolidation.optimizer_at_switch", "rest", "reset"),
    ],
)
def test_a_misspelt_choice_names_the_nearest(key: str, value: str, meant: str) -> None:
    assert f"nearest: '{meant}'" in str(error_of(option(key, value)))


WORKING: list[dict[str, Any]] = [
    {},
    {
        "network": {"bayesian": "none"},
        "posterior": {"family": "members"},
        "consolidation": {"method": "ewc"},
        "num_tasks": 2,
    },  # whose members nobody asks for
    {"consolidation": {"method": "online_ewc", "ewc_lambda": 0.0}, "num_tasks": 2},
    {"consolidation": {"method": "ewc", "critic_at_switch": "reset", "protected_networks": "actor"}, "num_tasks": 2},
    {"consolidation": {"method": "vcl", "ewc_lambda": 5.0}, "network": {"bayesian": "trunk"}, "num_tasks": 2},
    {"posterior": {"prior": "log_uniform", "family": "members", "size": 1}},
    {
        "posterior": {"family": "low_rank", "num_draws": 1},
        "consolidation": {"method": "ewc"},
        "num_tasks": 2,
        "network": {"prior_function_scale": 2.0},
        "exploration": "both",
    },
    {"exploration": "thompson", "network": {"bayesian": "trunk"}},
    {"likelihood": {"value_range": (5.0, -5.0), "num_bins": 0}},  # of histograms, and there is none
    {"likelihood": {"noise_std": 1e4}},
    {"observation_shape": (1,), "num_categories": 9, "network": {"bayesian": "all"}},
    {"objective": {"tau": 1.0, "kl_temperature": 0.0}, "posterior": {"init_log_var": -11.0}},
]


@pytest.mark.parametrize("settings", WORKING, ids=lambda s: " ".join(leaves(s)) or "defaults")
def test_settings_at_the_edge_work(settings: dict[str, Any]) -> None:
    assert make_module(settings).optimizer_settings.actor_lr > 0
