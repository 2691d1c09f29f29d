"""Settings of the objective and of the optimizer, and checks of the agent's settings."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_rl.agent.compilation import MODES, REPLAYED
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import METHODS
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.errors import check, check_choice
from bayes_rl.networks.layer_factory import PLAIN


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of the loss of an update.

    Args:
        kl_temperature: T, weight of KL / N, >= 0; 1 is the ELBO of the regression on the present TD targets, 0 plain
            maximum likelihood. With a fixed noise only T x noise_std^2 counts.
        bootstrap: action whose value is the value of the next state: the `actor`'s policy, or the `greedy` action.
        target: networks that give the TD targets: the `other` pair (the original), or a moving average of both (`ema`).
        tau: weight of the newest parameters in the moving average, per update, in (0, 1].
        actor_loss: `dpg`, the exact policy gradient, or `cross_entropy` to softmax(Q / policy_temperature).
        policy_temperature: of that softmax, in units of the training reward, > 0.
        entropy_weight: weight of the actors' entropy in their loss, in return units per nat, >= 0.
        update_pairs: pairs that an update trains: `both`, or one at `random` (the original). In expectation the loss of
            one pair is half of the loss of both, in all its terms.

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
        check_choice("model.objective.target", self.target, ("other", "ema"))
        check_choice("model.objective.actor_loss", self.actor_loss, ("dpg", "cross_entropy"))
        check_choice("model.objective.update_pairs", self.update_pairs, ("both", "random"))
        check_choice("model.objective.bootstrap", self.bootstrap, ("actor", "greedy"))
        check(
            self.policy_temperature > 0,
            "model.objective.policy_temperature",
            self.policy_temperature,
            "must be positive",
        )
        check(self.tau > 0, "model.objective.tau", self.tau, "must be positive")
        check(self.tau <= 1, "model.objective.tau", self.tau, "must be at most 1")
        check(
            self.kl_temperature >= 0, "model.objective.kl_temperature", self.kl_temperature, "must be zero or positive"
        )
        check(
            self.entropy_weight >= 0, "model.objective.entropy_weight", self.entropy_weight, "must be zero or positive"
        )


SCHEDULES = ("constant", "linear", "cosine")
"""Values of the option `model.optimizer.schedule`."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimizer, and the schedule of its step sizes.

    Args:
        family: `adam`, or `ivon` (Shen et al. 2024, arXiv:2402.17641), whose weights all have a Gaussian, trunk and
            heads alike: natural-gradient descent of the ELBO by means and variances.
        actor_lr: step size of the actors' heads (and of trunks of their own), > 0. With `ivon`, step sizes are shares
            of a Newton step.
        critic_lr: step size of the critics and of a shared trunk, > 0.
        schedule: of all step sizes: `constant`, or falling to `final_share` in `decay_frames`, `linear` or `cosine`.
        warmup_frames: environment frames of learning in which all step sizes rise linearly from 0, >= 0.
        hold_frames: environment frames of learning after the warm-up in which no step size falls yet, >= 0.
        decay_frames: environment frames of learning after `hold_frames` in which all step sizes fall, >= 0; `linear`
            and `cosine` need them.
        final_share: share of the step sizes that is left after the decay, in [0, 1].
        adam_eps: offset of the denominator of `adam`, >= 0.
        weight_decay: decoupled weight decay of deterministic matrices and kernels by `adam`, per unit of step size,
            >= 0.
        precision_rate: weight of the newest estimate in the curvature of `ivon`, per update, in (0, 1]. Variances
            follow the loss within about 1 / precision_rate updates.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    family: str = "adam"
    actor_lr: float = 2.5e-4
    critic_lr: float = 2.5e-4
    adam_eps: float = 1e-5
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_frames: int = 0
    decay_frames: int = 0
    final_share: float = 0.0
    precision_rate: float = 1e-3
    hold_frames: int = 0

    def __post_init__(self) -> None:
        check_choice("model.optimizer.family", self.family, ("adam", "ivon"))
        rate = self.precision_rate
        check(0 < rate <= 1, "model.optimizer.precision_rate", rate, "must be above 0 and at most 1")
        check_choice("model.optimizer.schedule", self.schedule, SCHEDULES)
        for key in ("warmup_frames", "hold_frames", "decay_frames"):
            check(getattr(self, key) >= 0, f"model.optimizer.{key}", getattr(self, key), "must be zero or more frames")
        check(0 <= self.final_share <= 1, "model.optimizer.final_share", self.final_share, "must lie within 0 and 1")
        falls = self.schedule == "constant" or self.decay_frames > 0
        message = "falls for a number of frames: name --model.optimizer.decay_frames"
        check(falls, "model.optimizer.schedule", self.schedule, message)
        for key in ("actor_lr", "critic_lr"):
            check(getattr(self, key) > 0, f"model.optimizer.{key}", getattr(self, key), "must be positive")
        for key in ("adam_eps", "weight_decay"):
            check(getattr(self, key) >= 0, f"model.optimizer.{key}", getattr(self, key), "must be zero or positive")

    @property
    def is_constant(self) -> bool:
        """True if the step sizes never change."""
        return self.schedule == "constant" and not self.warmup_frames


def check_agent(
    consolidation: ConsolidationSettings,
    posterior: PosteriorSettings,
    objective: ObjectiveSettings,
    optimizer: OptimizerSettings,
    bayesian: str,
    exploration: str,
    compile: str,
    num_tasks: int,
) -> None:
    """Raise `ConfigError` unless settings of different groups can work together.

    The settings of one group are checked in its own class.

    Args:
        consolidation: settings of consolidation.
        posterior: settings of the Bayesian layers.
        objective: settings of the objective.
        optimizer: settings of the optimizer.
        bayesian: which layers are Bayesian.
        exploration: `epsilon`, `thompson` or `both`.
        compile: one of `MODES`.
        num_tasks: T.
    """
    check_choice("model.exploration", exploration, ("epsilon", "thompson", "both"))
    check_choice("model.compile", compile, MODES)
    method, method_class = consolidation.method, consolidation.method_class
    endless = num_tasks == 1 and not consolidation.consolidate_every
    message = "has no end of a task to act at; name several --data.tasks, or --model.consolidation.consolidate_every"
    check(not endless or method_class is METHODS["none"], "model.consolidation.method", method, message)
    natural = optimizer.family == "ivon"
    message = "draws weights, but no layer is Bayesian; nearest: --model.network.bayesian heads"
    check(exploration == "epsilon" or bayesian != "none" or natural, "model.exploration", exploration, message)
    if natural:
        _check_ivon(objective, bayesian)
    message = "knows the states of one task only; nearest: heads"
    check(bayesian != "gaussian_process" or num_tasks == 1, "model.network.bayesian", bayesian, message)
    key, message = "model.objective.kl_temperature", "must be positive with a Gaussian process; nearest: 1"
    check(objective.kl_temperature > 0 or bayesian != "gaussian_process", key, objective.kl_temperature, message)
    obstacle = POSTERIORS[posterior.family].cuda_graph_obstacle if bayesian not in PLAIN else ""
    message = f"records CUDA graphs, but {obstacle}; use default"
    check(not (obstacle and compile in REPLAYED), "model.compile", compile, message)
    method_class.check_posterior(method, posterior, bayesian)


def _check_ivon(objective: ObjectiveSettings, bayesian: str) -> None:
    """Raise `ConfigError` unless the natural-gradient optimizer can give every weight its distribution."""
    key, value = "model.optimizer.family", "ivon"
    message = "gives every weight a distribution, so that layers must be plain; add --model.network.bayesian none"
    check(bayesian == "none", key, value, message)
    message = "needs a temperature of the KL divergence; choose --model.objective.kl_temperature above 0"
    check(objective.kl_temperature > 0, key, value, message)
    message = "needs targets by mean weights; choose --model.objective.target ema"  # a draw's would bias the curvature
    check(objective.target == "ema", key, value, message)
    message = "needs the whole loss in every update; choose --model.objective.update_pairs both"
    check(objective.update_pairs == "both", key, value, message)
