"""Settings that cannot work: one line each, that names the key, the value and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.errors import ConfigError
from tests.helpers.flat import agent_of, option

NAN = float("nan")


def make_module(**settings: Any) -> VariationalActorCritic:
    defaults = {"encoder": "mlp", "hidden_dim": 8, "observation_shape": (4,), "num_actions": 3}
    return agent_of(**{**defaults, **settings})


def error_of(**settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        make_module(**settings)
    assert "\n" not in str(raised.value)
    return raised.value


BAD = [
    ("encoder", "natura"),
    ("hidden_dim", 0),
    ("hidden_dim", -8),
    ("bayesian", "head"),
    ("posterior", "meanfield"),
    ("index_dim", 0),
    ("draws", 0),
    ("draws", -1),
    ("prior", "gausian"),
    ("prior_precision", 0.0),
    ("prior_precision", -1.0),
    ("prior_precision", NAN),
    ("prior_precision", float("inf")),
    ("init_log_var", 12.0),
    ("init_log_var", -11.5),
    ("init_log_var", NAN),
    ("log_var_limit", 0.0),
    ("log_var_limit", NAN),
    ("log_var_limit", 61.0),
    ("init_scale", 0.0),
    ("init_scale", NAN),
    ("prior_scale", -1.0),
    ("prior_scale", NAN),
    ("temperature", -0.1),
    ("temperature", NAN),
    ("likelihood", "gauss"),
    ("noise_std", 0.0),
    ("noise_std", -1.0),
    ("noise_std", NAN),
    ("exploration", "thomson"),
    ("bootstrap", "greed"),
    ("target", "emma"),
    ("tau", 0.0),
    ("tau", -0.1),
    ("tau", 1.5),
    ("tau", NAN),
    ("actor_loss", "dgp"),
    ("policy_temperature", 0.0),
    ("policy_temperature", NAN),
    ("entropy_weight", -0.01),
    ("entropy_weight", NAN),
    ("update_pairs", "one"),
    ("consolidation", "emc"),
    ("ewc_lambda", -1.0),
    ("ewc_lambda", NAN),
    ("ewc_lambda", 1.0),  # of what?
    ("protect", "all"),
    ("fisher", "real"),
    ("fisher_samples", 0),
    ("fisher_norm", "max"),
    ("online_decay", 1.5),
    ("online_decay", NAN),
    ("consolidate_every", -1),
    ("consolidate_every", 5),  # what?
    ("optimizer_at_switch", "restart"),
    ("critic_at_switch", "restart"),
    ("actor_lr", 0.0),
    ("actor_lr", -1e-3),
    ("critic_lr", 0.0),
    ("critic_lr", NAN),
    ("adam_eps", -1e-8),
    ("weight_decay", -0.1),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}={value}" for key, value in BAD])
def test_a_bad_setting_gives_a_config_error_that_names_it(key: str, value: Any) -> None:
    error = error_of(**{key: value})
    assert error.key == option("model", key)
    assert str(error).startswith(f"--{option('model', key)}: {value!r} ")


# What each alone could do, but not together; the last word names a way out.
TOGETHER = [
    ("init_log_var", {"init_log_var": -9.0, "log_var_limit": 5.0}, "within +-5"),
    ("exploration", {"exploration": "thompson", "bayesian": "none"}, "--model.network.bayesian heads"),
    (
        "exploration",
        {"exploration": "both", "bayesian": "none", "posterior": "members"},
        "--model.network.bayesian heads",
    ),
    ("consolidation", {"consolidation": "ewc", "posterior": "members", "num_tasks": 2}, "mean_field or low_rank"),
    (
        "consolidation",
        {"consolidation": "vcl", "posterior": "low_rank", "num_tasks": 2},
        "mean_field with prior gaussian",
    ),
    ("consolidation", {"consolidation": "vcl", "bayesian": "none", "num_tasks": 2}, "--model.network.bayesian all"),
    ("consolidation", {"consolidation": "ewc"}, "--data.tasks"),
    ("consolidate_every", {"consolidation": "vcl", "consolidate_every": 9}, "drop it"),
    (
        "critic_at_switch",
        {"critic_at_switch": "reset", "consolidation": "ewc", "num_tasks": 2},
        "--model.consolidation.protected_networks actor",
    ),
    ("prior_scale", {"prior_scale": 1.0}, "members or low_rank"),
    ("prior_scale", {"prior_scale": 1.0, "posterior": "low_rank", "bayesian": "none"}, "with Bayesian layers"),
    ("prior", {"prior": "log_uniform", "posterior": "low_rank"}, "mean_field or members"),
    ("noise_std", {"noise_std": 1e4, "likelihood": "learned_gaussian"}, "within 0.001 and 1000"),
    ("value_range", {"value_range": (1.0, 1.0), "likelihood": "hl_gauss"}, "the smaller one first"),
    ("value_range", {"value_range": (2.0, -2.0), "likelihood": "two_hot"}, "the smaller one first"),
    ("value_range", {"value_range": (0.0, NAN), "likelihood": "two_hot"}, "two finite numbers"),
    ("num_bins", {"num_bins": 1, "likelihood": "hl_gauss"}, "2 or more"),
    ("encoder", {"encoder": "nature", "observation_shape": (1,), "num_categories": 9}, "nearest: 'mlp'"),
]


@pytest.mark.parametrize(("key", "settings", "way_out"), TOGETHER, ids=lambda x: x if isinstance(x, str) else "")
def test_settings_that_exclude_each_other_name_one_and_a_way_out(
    key: str, settings: dict[str, Any], way_out: str
) -> None:
    error = error_of(**settings)
    assert error.key == option("model", key)
    assert str(error).startswith(f"--{option('model', key)}: {settings[key]!r} ")
    assert way_out in str(error)


def test_a_stack_of_numbered_states_names_the_data_s_setting() -> None:
    error = error_of(observation_shape=(2,), num_categories=9)
    assert error.key == "data.frame_stack"


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("target", "emma", "ema"),
        ("actor_loss", "dgp", "dpg"),
        ("update_pairs", "bth", "both"),
        ("posterior", "meanfield", "mean_field"),
        ("bayesian", "head", "heads"),
        ("prior", "log-uniform", "log_uniform"),
        ("likelihood", "hlgauss", "hl_gauss"),
        ("exploration", "thomson", "thompson"),
        ("bootstrap", "greed", "greedy"),
        ("consolidation", "online-ewc", "online_ewc"),
        ("optimizer_at_switch", "rest", "reset"),
    ],
)
def test_a_misspelt_choice_names_the_nearest(key: str, value: str, meant: str) -> None:
    assert f"nearest: '{meant}'" in str(error_of(**{key: value}))


WORKING: list[dict[str, Any]] = [
    {},
    {
        "bayesian": "none",
        "posterior": "members",
        "consolidation": "ewc",
        "num_tasks": 2,
    },  # whose members nobody asks for
    {"consolidation": "online_ewc", "ewc_lambda": 0.0, "num_tasks": 2},
    {"consolidation": "ewc", "critic_at_switch": "reset", "protect": "actor", "num_tasks": 2},
    {"consolidation": "vcl", "ewc_lambda": 5.0, "bayesian": "trunk", "num_tasks": 2},
    {"prior": "log_uniform", "posterior": "members", "index_dim": 1},
    {
        "posterior": "low_rank",
        "consolidation": "ewc",
        "num_tasks": 2,
        "prior_scale": 2.0,
        "exploration": "both",
        "draws": 1,
    },
    {"exploration": "thompson", "bayesian": "trunk"},
    {"value_range": (5.0, -5.0), "num_bins": 0},  # of histograms, and there is none
    {"noise_std": 1e4},
    {"observation_shape": (1,), "num_categories": 9, "bayesian": "all"},
    {"tau": 1.0, "temperature": 0.0, "init_log_var": -11.0},
]


@pytest.mark.parametrize("settings", WORKING, ids=lambda s: " ".join(s) or "defaults")
def test_settings_at_the_edge_work(settings: dict[str, Any]) -> None:
    assert make_module(**settings).optimizer_settings.actor_lr > 0
