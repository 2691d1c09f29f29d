"""Settings of a posterior over weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.priors import PRIORS
from bayes_rl.errors import check, check_choice


@dataclass(frozen=True)
class PosteriorSettings:
    """Settings of the prior and the posterior over weights.

    Args:
        family: family of the posterior q. `mean_field`: N(mu, s^2) for each weight. `low_rank`: w = mu + C z + s eps
            with z of `size` standard normal numbers shared by all layers. `members`: a mixture of `size` Gaussians of
            equal weight and common s, whose component is shared by all layers. Or a family registered by the user.
        size: d, the length of z, or the number of members, >= 1.
        num_draws: number of draws of z in an update, >= 1. `members` ignores it and trains all members.
        prior: `gaussian` N(0, 1 / prior_precision), or the improper `log_uniform` of variational dropout.
        prior_precision: 1 / variance of the Gaussian prior, > 0.
        init_log_var: mean of the initial log s^2 (natural logarithm), within +-log_var_limit.
        log_var_limit: log s^2 is clamped to +- this, in (0, 60].
        init_scale: standard deviation of the initial means, in units of that of a layer without distributions,
            1 / sqrt(3 fan-in), > 0.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    family: str = "mean_field"
    size: int = 8
    num_draws: int = 8
    prior: str = "gaussian"
    prior_precision: float = 10.0
    init_log_var: float = -9.0
    log_var_limit: float = 11.0
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        family = POSTERIORS[self.family]
        check_choice("model.posterior.prior", self.prior, PRIORS)
        check(self.size >= 1, "model.posterior.size", self.size, "must be at least 1")
        check(self.num_draws >= 1, "model.posterior.num_draws", self.num_draws, "must be at least 1")
        positive = {"prior_precision": self.prior_precision, "log_var_limit": self.log_var_limit}
        for key, value in (positive | {"init_scale": self.init_scale}).items():
            check(0 < value < math.inf, f"model.posterior.{key}", value, "must be positive and finite")
        message = "must be at most 60, as sums of exponentials overflow beyond"
        check(self.log_var_limit <= 60, "model.posterior.log_var_limit", self.log_var_limit, message)
        message = f"must lie within +-{self.log_var_limit:g} (a natural logarithm of a variance)"
        check(abs(self.init_log_var) <= self.log_var_limit, "model.posterior.init_log_var", self.init_log_var, message)
        family.check(self)
