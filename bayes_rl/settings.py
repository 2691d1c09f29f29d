"""What the agent's settings must be, each violation as one line."""

from __future__ import annotations

from typing import Any

from bayes_rl.types import check, check_choice

CHOICES = {
    "target": ("other", "ema"),
    "actor_loss": ("dpg", "cross_entropy"),
    "update_pairs": ("both", "random"),
    "exploration": ("epsilon", "thompson", "both"),
    "bootstrap": ("actor", "greedy"),
}
POSITIVE = ("policy_temperature", "tau", "actor_lr", "critic_lr")
NOT_NEGATIVE = ("temperature", "entropy_weight", "ewc_lambda", "adam_eps", "weight_decay")


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
    check(hparams.fisher_batches >= 1, "model.fisher_batches", hparams.fisher_batches, "must be at least 1 minibatch")
    by_draw = hparams.exploration != "epsilon"
    rule = "draws weights, but no layer is Bayesian; nearest: --model.bayesian heads"
    check(not by_draw or hparams.bayesian != "none", "model.exploration", hparams.exploration, rule)
    rule = "protects one network, not the members of a mixture; choose --model.posterior mean_field or low_rank"
    members = hparams.posterior == "members" and hparams.bayesian != "none"
    check(not (hparams.ewc_lambda and members), "model.ewc_lambda", hparams.ewc_lambda, rule)
