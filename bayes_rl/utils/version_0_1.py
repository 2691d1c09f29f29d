"""Options and seeds of version 0.1.0, for checkpoints and configurations of that version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bayes_rl.utils.settings import GROUPS

RENAMED: dict[str, dict[str, str]] = {
    "model": {
        **{key: f"network.{key}" for key in ("encoder", "hidden_dim", "shared_trunk", "activation", "bayesian")},
        "prior_scale": "network.prior_function_scale",
        "posterior": "posterior.family",
        "index_dim": "posterior.size",
        "draws": "posterior.num_draws",
        **{key: f"posterior.{key}" for key in ("prior", "prior_precision", "init_log_var", "log_var_limit")},
        "init_scale": "posterior.init_scale",
        "likelihood": "likelihood.family",
        **{key: f"likelihood.{key}" for key in ("noise_std", "value_range", "num_bins")},
        "temperature": "objective.kl_temperature",
        **{key: f"objective.{key}" for key in ("bootstrap", "target", "tau", "actor_loss", "policy_temperature")},
        **{key: f"objective.{key}" for key in ("entropy_weight", "update_pairs")},
        "consolidation": "consolidation.method",
        "protect": "consolidation.protected_networks",
        **{key: f"consolidation.{key}" for key in ("ewc_lambda", "fisher", "fisher_samples", "fisher_norm")},
        **{key: f"consolidation.{key}" for key in ("online_decay", "consolidate_every", "optimizer_at_switch")},
        "critic_at_switch": "consolidation.critic_at_switch",
        **{key: f"optimizer.{key}" for key in ("actor_lr", "critic_lr", "adam_eps", "weight_decay")},
    },
    "data": {
        **{key: f"rules.{key}" for key in ("frame_skip", "sticky_actions", "crop", "max_episode_frames")},
        **{key: f"rules.{key}" for key in ("full_action_space", "auto_fire")},
        **{key: f"curriculum.{key}" for key in ("frames_per_task", "cycles", "task_conditioning")},
        **{key: f"curriculum.{key}" for key in ("epsilon_at_switch", "keep_replays")},
        "replay_capacity": "replay.capacity",
        "replay_device": "replay.device",
        "min_replay_size": "replay.min_size",
        **{key: f"replay.{key}" for key in ("batch_size", "n_step", "gamma", "life_loss", "reward_clip")},
        **{f"epsilon_{key}": f"epsilon.{key}" for key in ("start", "end", "decay_frames")},
        "eval_games": "evaluation.games",
        "eval_idle_frames": "evaluation.idle_frames",
        **{key: f"evaluation.{key}" for key in ("render", "fps")},
    },
}
"""Section to option of version 0.1.0 to its present name. Options that are not listed kept their names."""


def is_flat(section: str, options: Mapping[str, Any]) -> bool:
    """Return whether `options` of a section are those of version 0.1.0, which had no groups.

    Args:
        section: `model` or `data`.
        options: option to value, of any version.
    """
    renamed = RENAMED[section]
    return any(key in options and not isinstance(options[key], Mapping) for key in renamed)


def grouped(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of version 0.1.0 in today's groups.

    Args:
        section: `model` or `data`.
        options: option of version 0.1.0 to value. Options that are not listed in `RENAMED` stay as they are, and so do
            groups of today, which get the old options that belong to them.
    """
    renamed = RENAMED[section]
    groups = {
        key: dict(value) for key, value in options.items() if key in GROUPS[section] and isinstance(value, Mapping)
    }
    result: dict[str, Any] = dict(groups)
    for key, value in options.items():
        if key not in groups:
            group, _, name = renamed.get(key, key).rpartition(".")
            (result.setdefault(group, {}) if group else result)[name] = value
    if options.get("consolidation") == "vcl" and options.get("ewc_lambda") is None:
        result["consolidation"]["ewc_lambda"] = 0.0  # the default of version 0.1.0
    return result


def in_groups(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a section in today's groups, whatever version wrote them."""
    return grouped(section, options) if is_flat(section, options) else dict(options)


def in_present_groups(config: Any) -> Any:
    """Return a whole configuration in today's groups; anything that is no mapping stays as it is."""
    if not isinstance(config, Mapping):
        return config
    sections = {name: config[name] for name in RENAMED if isinstance(config.get(name), Mapping)}
    return {**config, **{name: in_groups(name, options) for name, options in sections.items()}}


def present_name(option: str) -> str | None:
    """Return the present name of an option such as `model.prior_scale`, or None if it was not renamed."""
    section, _, key = option.partition(".")
    new = RENAMED.get(section, {}).get(key)
    return None if new is None else f"{section}.{new}"


def with_episode_seeds(state: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the state of a stream with its episodes' seeds, which version 0.1.0 did not save.

    Args:
        state: of a stream, of any version.
        seed: of the run.
    """
    if "episode_seeds" in state:
        return state
    names = [[seed, 0, env, episode] for env, episode in enumerate(state["seeded_episode"].tolist())]
    seeds = [int(np.random.SeedSequence(name).generate_state(1)[0] >> 1) for name in names]
    return {**state, "episode_seeds": torch.tensor(seeds, dtype=torch.int64)}
