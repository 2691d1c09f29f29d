"""What the agent's settings must be, each violation as one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from bayes_rl.capture import MODES, REPLAYED
from bayes_rl.types import check, check_choice

CHOICES = {
    "target": ("other", "ema"),
    "actor_loss": ("dpg", "cross_entropy"),
    "update_pairs": ("both", "random"),
    "exploration": ("epsilon", "thompson", "both"),
    "bootstrap": ("actor", "greedy"),
    "optimizer_at_switch": ("keep", "reset"),
    "critic_at_switch": ("keep", "reset"),
    "compile": MODES,
}
DATA_CHOICES = {
    "task_conditioning": ("none", "gains", "heads"),
    "epsilon_at_switch": ("restart", "continue"),
    "replay_device": ("cpu", "cuda"),
}
POSITIVE = ("policy_temperature", "tau", "actor_lr", "critic_lr")
NOT_NEGATIVE = ("temperature", "entropy_weight", "adam_eps", "weight_decay")
LIMITS = {
    **{"hidden_dim": 65_536, "index_dim": 65_536, "draws": 65_536, "num_bins": 65_536, "frame_skip": 65_536},
    **{"num_envs": 1024, "eval_games": 100_000, "fps": 1000, "batch_size": 1_000_000, "seed": 2**32 - 1},
}
"""Most of what takes memory or time; other numbers are at most `LARGEST` in size."""
LARGEST = 2**31 - 1
LEAST = {
    **{"max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0, "num_nodes": 1, "num_sanity_val_steps": -1},
    **{"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0, "gradient_clip_val": 0},
    **{"overfit_batches": 0, "limit_train_batches": 0, "limit_val_batches": 0, "limit_test_batches": 0},
    **{"limit_predict_batches": 0, "reload_dataloaders_every_n_epochs": 0},
}
"""Of the trainer's options."""
WITHOUT = "has no effect without a method; nearest: --model.consolidation online_ewc"


def check_agent(hparams: Any) -> None:
    """Raise `ConfigError` unless the arguments of `VariationalActorCritic` can work together.

    What concerns a single layer, network or likelihood is checked where that is built.
    """
    for key, known in CHOICES.items():
        check_choice(f"model.{key}", hparams[key], known)
    for key in POSITIVE:
        check(hparams[key] > 0, f"model.{key}", hparams[key], "must be positive")
    for key in NOT_NEGATIVE:
        check(hparams[key] >= 0, f"model.{key}", hparams[key], "must be zero or positive")
    check(hparams.tau <= 1, "model.tau", hparams.tau, "must be at most 1")
    check(hparams.draws >= 1, "model.draws", hparams.draws, "must be at least 1")
    every = hparams.consolidate_every
    check(every >= 0, "model.consolidate_every", every, "must be zero or more updates")
    check(not every or hparams.consolidation != "none", "model.consolidate_every", every, WITHOUT)
    check(not hparams.ewc_lambda or hparams.consolidation != "none", "model.ewc_lambda", hparams.ewc_lambda, WITHOUT)
    single = hparams.consolidation in ("ewc", "online_ewc", "vcl") and hparams.num_tasks == 1 and not every
    rule = "has no end of a task to act at; name several --data.tasks, or --model.consolidate_every"
    check(not single, "model.consolidation", hparams.consolidation, rule)
    rule = "would count the same data again and again with vcl; drop it"
    check(not every or hparams.consolidation != "vcl", "model.consolidate_every", every, rule)
    reset = hparams.critic_at_switch == "reset" and hparams.consolidation != "none" and hparams.protect != "actor"
    rule = "forgets what is protected; choose --model.protect actor"
    check(not reset, "model.critic_at_switch", hparams.critic_at_switch, rule)
    rule = "needs Bayesian layers, whose posterior becomes their prior; nearest: --model.bayesian all"
    check(hparams.consolidation != "vcl" or hparams.bayesian != "none", "model.consolidation", "vcl", rule)
    by_draw = hparams.exploration != "epsilon"
    rule = "draws weights, but no layer is Bayesian; nearest: --model.bayesian heads"
    check(not by_draw or hparams.bayesian != "none", "model.exploration", hparams.exploration, rule)
    waits = hparams.posterior == "low_rank" and hparams.bayesian != "none"
    problem = "records CUDA graphs, but the determinant of a low_rank posterior waits for the device; use default"
    check(not (waits and hparams.compile in REPLAYED), "model.compile", hparams.compile, problem)
    rule = "protects one network, not the members of a mixture; choose --model.posterior mean_field or low_rank"
    members = hparams.posterior == "members" and hparams.bayesian != "none"
    kept = hparams.consolidation in ("ewc", "online_ewc")
    check(not (kept and members), "model.consolidation", hparams.consolidation, rule)


def check_values(section: str, cls: type, values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` at what types do not tell: nothing, a truth for a number, a number beyond all sense.

    Args:
        section: `trainer`, `model` or `data`.
        cls: whose arguments the values are.
        values: of the options.
    """
    for key, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        if key not in values:
            continue
        value, name, kinds = values[key], f"{section}.{key}", get_args(hint) or (hint,)
        check(value is not None or type(None) in kinds, name, value, "is needed; null is none")
        check(not isinstance(value, bool) or bool in kinds, name, value, "must be a number")
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int | float)]
        most = LIMITS.get(key, LARGEST)
        for number in numbers:
            check(math.isfinite(number), name, value, "must be finite")
            check(section == "trainer" or abs(number) <= most, name, value, f"is out of all proportion, {most} is not")


def check_trainer(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` at options of the trainer that are out of range."""
    for key, least in LEAST.items():
        value = options[key]
        check(value is None or value >= least, f"trainer.{key}", value, f"must be at least {least}")
    value = options["val_check_interval"]
    check(not isinstance(value, int | float) or value > 0, "trainer.val_check_interval", value, "must be positive")


def check_data(hparams: Any) -> None:
    """Raise `ConfigError` unless the arguments of `ReplayDataModule` can work together.

    What concerns environments, the replay, the schedule of epsilon or that of tasks is checked where that is built.
    """
    capacity, batch = hparams.replay_capacity, hparams.batch_size
    check(capacity >= 1, "data.replay_capacity", capacity, "must be a positive number of transitions")
    check(batch >= 1, "data.batch_size", batch, "must be a positive number of transitions")
    check(capacity >= batch, "data.batch_size", batch, f"exceeds the replay of {capacity} slots")
    limit = f"must lie between 1 and the replay's capacity, {capacity}"
    check(1 <= hparams.min_replay_size <= capacity, "data.min_replay_size", hparams.min_replay_size, limit)
    check(hparams.updates_per_step > 0, "data.updates_per_step", hparams.updates_per_step, "must be positive")
    check(hparams.eval_games >= 1, "data.eval_games", hparams.eval_games, "must be at least 1 game")
    idle = hparams.eval_idle_frames
    check(idle >= 0, "data.eval_idle_frames", idle, "must be zero or more frames")
    check(hparams.render in (None, "human"), "data.render", hparams.render, "must be null or 'human'")
    check(hparams.fps >= 1, "data.fps", hparams.fps, "must be at least 1 picture per second")
    for key, known in DATA_CHOICES.items():
        check_choice(f"data.{key}", hparams[key], known)
    one = hparams.tasks is None
    rule = "is for several tasks: --data.tasks '[GAME, ...]'"
    for key, none in (("task_conditioning", "none"), ("keep_replays", False), ("cycles", 1)):
        check(not one or hparams[key] == none, f"data.{key}", hparams[key], rule)
    frames = hparams.frames_per_task
    check(frames >= 1, "data.frames_per_task", frames, "must be a positive number of frames")
