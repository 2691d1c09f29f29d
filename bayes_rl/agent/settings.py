"""Checks of the agent's settings."""

from __future__ import annotations

from typing import Any

from bayes_rl.agent.compilation import MODES, REPLAYED
from bayes_rl.errors import check, check_choice

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


POSITIVE = ("policy_temperature", "tau", "actor_lr", "critic_lr")


NOT_NEGATIVE = ("temperature", "entropy_weight", "adam_eps", "weight_decay")


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
