"""Settings of consolidation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes_rl.continual.fisher import Network
from bayes_rl.errors import check, check_choice

METHODS = ("none", "ewc", "online_ewc", "vcl")


@dataclass(frozen=True)
class ConsolidationSettings:
    """What is done at the end of a task.

    Args:
        method: `none`; `ewc`, an anchor and a Fisher diagonal for each task (Kirkpatrick et al. 2017,
            arXiv:1612.00796); `online_ewc`, one anchor and a decayed Fisher diagonal (Schwarz et al. 2018,
            arXiv:1805.06370); `vcl`, the posterior of Bayesian weights becomes their prior, and only deterministic
            parameters are anchored, as by `ewc`.
        ewc_lambda: strength of the penalty, >= 0, in nats per squared unit of weight and unit of Fisher; 0: none.
        protect: whose weights: of the `actor`s, the `critic`s or `both`.
        fisher: expectation over what the network says (`true`), or at what was done and observed (`empirical`).
        fisher_samples: transitions of a task that the Fisher is averaged over, >= 1.
        fisher_norm: `none`, or `mean`: a task's Fisher is divided by its mean over all protected weights.
        online_decay: what a task leaves of the Fisher of those before it, in [0, 1], for `online_ewc`.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    method: str = "none"
    ewc_lambda: float = 0.0
    protect: str = "both"
    fisher: str = "true"
    fisher_samples: int = 2000
    fisher_norm: str = "none"
    online_decay: float = 1.0

    def __post_init__(self) -> None:
        check_choice("model.consolidation", self.method, METHODS)
        rule = "must be zero or positive, and finite"
        check(0 <= self.ewc_lambda < math.inf, "model.ewc_lambda", self.ewc_lambda, rule)
        check_choice("model.protect", self.protect, ("actor", "critic", "both"))
        check_choice("model.fisher", self.fisher, ("true", "empirical"))
        check(self.fisher_samples >= 1, "model.fisher_samples", self.fisher_samples, "must be at least 1 transition")
        check_choice("model.fisher_norm", self.fisher_norm, ("none", "mean"))
        check(0 <= self.online_decay <= 1, "model.online_decay", self.online_decay, "must lie within 0 and 1")

    def networks(self) -> list[Network]:
        """Those that are protected."""
        return [(kind, pair) for kind in ("actor", "critic") if self.protect in (kind, "both") for pair in range(2)]
