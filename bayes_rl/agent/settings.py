"""Settings of the objective and of the optimizer, and checks of the agent's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bayes_rl.agent.compilation import MODES, REPLAYED
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.errors import check, check_choice


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of the loss of an update.

    Args:
        kl_temperature: T of the ELBO, weight of KL / N, >= 0; 1 is the true ELBO, 0 plain maximum likelihood.
        bootstrap: value of the next state: of the `actor`'s policy, or of the `greedy` action.
        target: bootstrap from the `other` pair (the original) or from a moving average of both (`ema`).
        tau: weight of the newest parameters in the moving average, per update, in (0, 1].
        actor_loss: `dpg`, the exact policy gradient, or `cross_entropy` to softmax(Q / policy_temperature).
        policy_temperature: of that softmax, in clipped return units, > 0.
        entropy_weight: weight of the actors' entropy in their loss, in return units per nat, >= 0.
        update_pairs: improve `both` pairs each update, or one at `random` (the original).

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    kl_temperature: float = 1.0
    bootstrap: str = "actor"
    target: str = "ema"
    tau: float = 0.005
    actor_loss: str = "cross_entropy"
    policy_temperature: float = 0.02
    entropy_weight: float = 0.0
    update_pairs: str = "both"

    def __post_init__(self) -> None:
        check_choice("model.target", self.target, ("other", "ema"))
        check_choice("model.actor_loss", self.actor_loss, ("dpg", "cross_entropy"))
        check_choice("model.update_pairs", self.update_pairs, ("both", "random"))
        check_choice("model.bootstrap", self.bootstrap, ("actor", "greedy"))
        check(self.policy_temperature > 0, "model.policy_temperature", self.policy_temperature, "must be positive")
        check(self.tau > 0, "model.tau", self.tau, "must be positive")
        check(self.tau <= 1, "model.tau", self.tau, "must be at most 1")
        check(self.kl_temperature >= 0, "model.temperature", self.kl_temperature, "must be zero or positive")
        check(self.entropy_weight >= 0, "model.entropy_weight", self.entropy_weight, "must be zero or positive")


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of Adam.

    Args:
        actor_lr: step size of the actors' heads (and of trunks of their own), > 0.
        critic_lr: step size of the critics and of a shared trunk, > 0.
        adam_eps: offset of the denominator, >= 0.
        weight_decay: decoupled weight decay of deterministic matrices and kernels, per unit of step size, >= 0.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    actor_lr: float = 2.5e-4
    critic_lr: float = 2.5e-4
    adam_eps: float = 1e-5
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for key in ("actor_lr", "critic_lr"):
            check(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be positive")
        for key in ("adam_eps", "weight_decay"):
            check(getattr(self, key) >= 0, f"model.{key}", getattr(self, key), "must be zero or positive")


CHOICES = {
    "exploration": ("epsilon", "thompson", "both"),
    "optimizer_at_switch": ("keep", "reset"),
    "critic_at_switch": ("keep", "reset"),
    "compile": MODES,
}


WITHOUT = "has no effect without a method; nearest: --model.consolidation online_ewc"


def check_agent(hparams: Any) -> None:
    """Raise `ConfigError` unless the arguments of `VariationalActorCritic` can work together.

    The settings of one group are checked in its own class.
    """
    for key, known in CHOICES.items():
        check_choice(f"model.{key}", hparams[key], known)
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
    if hparams.bayesian != "none":
        check_family(hparams)


def check_family(hparams: Any) -> None:
    """Raise `ConfigError` unless the posterior family allows the compilation and the consolidation."""
    family = POSTERIORS[hparams.posterior]
    problem = f"records CUDA graphs, but {family.cuda_graph_obstacle}; use default"
    recorded = hparams.compile in REPLAYED
    check(not (family.cuda_graph_obstacle and recorded), "model.compile", hparams.compile, problem)
    able = [name for name in POSTERIORS if not POSTERIORS[name].anchoring_obstacle]
    rule = f"{family.anchoring_obstacle}; choose --model.posterior {' or '.join(able)}"
    anchors = hparams.consolidation in ("ewc", "online_ewc")
    check(not (anchors and family.anchoring_obstacle), "model.consolidation", hparams.consolidation, rule)
