"""Settings of a posterior over weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes_rl.errors import check, check_choice

POSTERIORS = ("mean_field", "low_rank", "members")


PRIORS = ("gaussian", "log_uniform")


@dataclass(frozen=True)
class PosteriorSettings:
    """What the distribution of a weight is, before and after learning.

    Args:
        posterior: family of q. `mean_field`: N(mu, s^2) for each weight. `low_rank`: w = mu + C z + s eps with z of
            `index_dim` standard normal numbers shared by all layers. `members`: a mixture of `index_dim` Gaussians of
            equal weight and common s, whose component is shared by all layers.
        index_dim: d, the length of z, or the number of members, >= 1.
        prior: `gaussian` N(0, 1 / prior_precision), or the improper `log_uniform` of variational dropout.
        prior_precision: 1 / variance of the Gaussian prior, > 0.
        init_log_var: mean of the initial log s^2 (natural logarithm), within +-log_var_limit.
        log_var_limit: log s^2 is clamped to +- this, in (0, 60].
        init_scale: standard deviation of the initial means, in units of 1 / sqrt(fan-in), > 0.
        sequential: keep a Gaussian prior of its own for every weight, which the posterior can become.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    posterior: str = "mean_field"
    index_dim: int = 8
    prior: str = "gaussian"
    prior_precision: float = 10.0
    init_log_var: float = -9.0
    log_var_limit: float = 11.0
    init_scale: float = 1.0
    sequential: bool = False

    def __post_init__(self) -> None:
        check_choice("model.posterior", self.posterior, POSTERIORS)
        check_choice("model.prior", self.prior, PRIORS)
        check(self.index_dim >= 1, "model.index_dim", self.index_dim, "must be at least 1")
        positive = {"prior_precision": self.prior_precision, "log_var_limit": self.log_var_limit}
        for key, value in (positive | {"init_scale": self.init_scale}).items():
            check(0 < value < math.inf, f"model.{key}", value, "must be positive and finite")
        rule = "must be at most 60, as sums of exponentials overflow beyond"
        check(self.log_var_limit <= 60, "model.log_var_limit", self.log_var_limit, rule)
        limit = f"must lie within +-{self.log_var_limit:g} (a natural logarithm of a variance)"
        check(abs(self.init_log_var) <= self.log_var_limit, "model.init_log_var", self.init_log_var, limit)
        low_rank_uniform = self.prior == "log_uniform" and self.posterior == "low_rank"
        rule = "has a closed form for single weights only: choose posterior mean_field or members, or prior gaussian"
        check(not low_rank_uniform, "model.prior", self.prior, rule)
        rule = "is learned from task to task: only posterior mean_field with prior gaussian can become a prior"
        single = self.posterior == "mean_field" and self.prior == "gaussian"
        check(single or not self.sequential, "model.consolidation", "vcl", rule)
