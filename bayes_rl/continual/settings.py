"""Settings of consolidation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes_rl.continual.base import METHODS, ConsolidationMethod
from bayes_rl.continual.fisher import Network
from bayes_rl.errors import check, check_choice

METHOD_OPTIONS = tuple(
    f"consolidation.{name}"
    for name in (
        *("ewc_lambda", "protected_networks", "fisher", "fisher_samples", "fisher_newest"),
        *("fisher_norm", "online_decay"),
    )
)
"""Options of the model that only a consolidation method reads: without a method they have no effect."""


@dataclass(frozen=True)
class ConsolidationSettings:
    """Settings of what happens at the end of a task and at a task switch.

    Args:
        method: `none`; `ewc`, the exact sum of a quadratic penalty for each task, in the memory of one (Kirkpatrick et
            al. 2017, arXiv:1612.00796); `online_ewc`, one penalty with the latest anchor and a Fisher diagonal in which
            earlier tasks decay (Schwarz et al. 2018, arXiv:1805.06370); `vcl`, the posterior of Bayesian weights
            becomes their prior, and all other parameters are protected as by `ewc` (Nguyen et al. 2018,
            arXiv:1710.10628). Or a method registered by the user.
        ewc_lambda: lambda, the strength of the penalty, >= 0, in nats per squared unit of weight and unit of Fisher; 0
            for no penalty, null for the method's default, 0.001. With `vcl` and 0 nothing keeps the deterministic
            parameters, by default nearly the whole network. The property `strength` has the number in use.
        protected_networks: networks whose weights are protected: the `actor`s, the `critic`s or `both`.
        fisher: expectation over the networks' own outputs (`true`), or at the actions and targets of the sample
            (`empirical`).
        fisher_samples: transitions of a task that the Fisher diagonal of the task is averaged over, >= 1.
        fisher_newest: share of the task's replay, its newest part, from which these transitions are drawn, in (0, 1],
            at least `fisher_samples` transitions. Older parts hold states that the present policy no longer visits.
        fisher_norm: `none`, or `mean`: the Fisher diagonal of a task is divided by its mean over all protected weights,
            so that `ewc_lambda` has one scale for all tasks.
        online_decay: factor of the Fisher diagonal of earlier tasks at the end of a task, in [0, 1], for `online_ewc`.
        consolidate_every: updates after which the present task is added to the penalty again and again, as in the
            original system, >= 0; 0 adds each task at its end only.
        optimizer_at_switch: `reset` Adam's averages at a task switch, or `keep` them.
        critic_at_switch: `keep` the critics' output layers at a task switch, or `reset` them.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    method: str = "none"
    ewc_lambda: float | None = None
    protected_networks: str = "both"
    fisher: str = "true"
    fisher_samples: int = 2000
    fisher_newest: float = 0.25
    fisher_norm: str = "mean"
    online_decay: float = 1.0
    consolidate_every: int = 0
    optimizer_at_switch: str = "reset"
    critic_at_switch: str = "keep"

    def __post_init__(self) -> None:
        protects = self.method_class is not METHODS["none"]
        message = "must be zero or positive, and finite"
        check(0 <= self.strength < math.inf, "model.consolidation.ewc_lambda", self.ewc_lambda, message)
        check_choice("model.consolidation.protected_networks", self.protected_networks, ("actor", "critic", "both"))
        check_choice("model.consolidation.fisher", self.fisher, ("true", "empirical"))
        check(
            self.fisher_samples >= 1,
            "model.consolidation.fisher_samples",
            self.fisher_samples,
            "must be at least 1 transition",
        )
        newest, message = self.fisher_newest, "must be a share above 0, at most 1"
        check(0 < newest <= 1, "model.consolidation.fisher_newest", newest, message)
        check_choice("model.consolidation.fisher_norm", self.fisher_norm, ("none", "mean"))
        check(
            0 <= self.online_decay <= 1,
            "model.consolidation.online_decay",
            self.online_decay,
            "must lie within 0 and 1",
        )
        check_choice("model.consolidation.optimizer_at_switch", self.optimizer_at_switch, ("keep", "reset"))
        check_choice("model.consolidation.critic_at_switch", self.critic_at_switch, ("keep", "reset"))
        every = self.consolidate_every
        check(every >= 0, "model.consolidation.consolidate_every", every, "must be zero or more updates")
        message = "has no effect without a method; nearest: --model.consolidation.method online_ewc"
        check(not every or protects, "model.consolidation.consolidate_every", every, message)
        check(not self.ewc_lambda or protects, "model.consolidation.ewc_lambda", self.ewc_lambda, message)
        obstacle = self.method_class.repetition_obstacle
        check(not (every and obstacle), "model.consolidation.consolidate_every", every, obstacle)
        reset = self.critic_at_switch == "reset" and protects and self.protected_networks != "actor"
        message = "resets protected weights; choose --model.consolidation.protected_networks actor"
        check(not reset, "model.consolidation.critic_at_switch", self.critic_at_switch, message)

    @property
    def method_class(self) -> type[ConsolidationMethod]:
        """Class of the method."""
        return METHODS[self.method]

    @property
    def strength(self) -> float:
        """Lambda, which is `ewc_lambda`, or the default of the method if `ewc_lambda` is null."""
        return self.method_class.default_strength if self.ewc_lambda is None else self.ewc_lambda

    def networks(self) -> list[Network]:
        """Return kind and pair of the protected networks."""
        kinds = [kind for kind in ("actor", "critic") if self.protected_networks in (kind, "both")]
        return [(kind, pair) for kind in kinds for pair in range(2)]
