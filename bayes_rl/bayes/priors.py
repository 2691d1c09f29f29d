"""Priors over weights, with closed-form KL divergences of a diagonal Gaussian from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bayes_rl.bayes.ops import gaussian_kl
from bayes_rl.utils.registry import Registry

if TYPE_CHECKING:
    from bayes_rl.bayes.parameters import PosteriorParameters
    from bayes_rl.bayes.settings import PosteriorSettings

# Molchanov, Ashukha and Vetrov (2017, arXiv:1701.05369), equation 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695


class Prior(ABC):
    """Prior distribution of all weights of a layer, independent between weights.

    Attributes:
        precision: 1 / variance, if all weights have the same Gaussian prior; otherwise None.
        ignored_settings: fields of `PosteriorSettings` about the prior that the prior does not read.
    """

    precision: float | None = None
    ignored_settings: tuple[str, ...] = ()

    @abstractmethod
    def kl_divergence(self, parameters: PosteriorParameters, copies: int = 1) -> Tensor:
        """Return KL(N(mean, exp(log_var)) || prior) summed over weights, a scalar in nats.

        Args:
            parameters: parameters with means `[*shape]`, or `[copies, *shape]`, and log-variances `[*shape]`.
            copies: number of Gaussians with the same log-variances. Their divergences are averaged.
        """


PRIORS: Registry[Callable[[PosteriorSettings], Prior]] = Registry("model.posterior.prior")
"""Priors by the value of the option `model.posterior.prior`; each is constructed from a `PosteriorSettings`."""


@PRIORS.register("gaussian")
class GaussianPrior(Prior):
    """Gaussian N(0, 1 / precision) for every weight.

    Args:
        settings: settings of the posterior, with the `prior_precision`.
    """

    precision: float

    def __init__(self, settings: PosteriorSettings) -> None:
        self.precision = settings.prior_precision

    def kl_divergence(self, parameters: PosteriorParameters, copies: int = 1) -> Tensor:
        """Return the exact divergence from one Gaussian for all weights."""
        return gaussian_kl(parameters.mean, parameters.raw_log_var, self.precision, parameters.log_var_limit, copies)


@PRIORS.register("log_uniform")
class LogUniformPrior(Prior):
    """Improper log-uniform prior p(|w|) ~ 1 / |w| of variational dropout (Molchanov et al. 2017, arXiv:1701.05369).

    The divergence is the paper's approximation in log alpha = log(s^2 / mu^2), off by less than 0.009 nats a weight.
    It is shifted so that a weight of pure noise costs 0.

    Args:
        settings: not used.
    """

    ignored_settings = ("prior_precision",)

    def __init__(self, settings: PosteriorSettings) -> None:
        pass

    def kl_divergence(self, parameters: PosteriorParameters, copies: int = 1) -> Tensor:
        """Return the approximate divergence."""
        log_alpha = parameters.log_var - 2 * parameters.mean.abs().clamp_min(1e-8).log()
        kl = K1 * (1 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)
        return kl.sum() / copies


class WeightwiseGaussianPrior(Prior):
    """Gaussian with a mean and a precision for each weight: the posterior of an earlier task.

    Args:
        mean: `[*shape]`.
        weight_precision: 1 / variance of each weight, `[*shape]`, > 0.
    """

    def __init__(self, mean: Tensor, weight_precision: Tensor) -> None:
        self.mean, self.weight_precision = mean, weight_precision

    def kl_divergence(self, parameters: PosteriorParameters, copies: int = 1) -> Tensor:
        """Return the exact divergence from a Gaussian for each weight."""
        distance = (parameters.mean - self.mean).square()
        second_moment = (self.weight_precision * (distance + parameters.variance)).sum() / copies
        return 0.5 * (second_moment - (parameters.log_var + self.weight_precision.log() + 1).sum())
