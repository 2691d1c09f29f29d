"""Independent Gaussians, one for each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayes_rl.bayes.ops import sampled_linear
from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.bayes.posteriors.base import KLTerms, PosteriorFamily, add_gaussian_parameters, register_posterior
from bayes_rl.bayes.priors import GaussianPrior

if TYPE_CHECKING:
    from bayes_rl.bayes.layers import BayesLayer


@register_posterior("mean_field")
class MeanField(PosteriorFamily):
    """Gaussian N(mu, s^2) for each weight, independent of all others: draws have no index."""

    ignored_settings = ("size", "num_draws")

    def add_parameters(self, layer: BayesLayer) -> None:
        """Create means, log-variances and biases."""
        add_gaussian_parameters(layer, self.settings)

    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and biases, which do not depend on an index."""
        return parameters.mean[None], parameters.bias[None]

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return the outputs of the mean weights, which all rows share."""
        return layer.product(x, parameters.mean, parameters.bias)

    def sample_linear(self, x: Tensor, parameters: PosteriorParameters, detached_outputs: int) -> Tensor | None:
        """Sample the outputs and compute the KL divergence in one operation, whose gradient is written by hand."""
        y, kl = sampled_linear(
            x,
            parameters.means,
            parameters.raw_log_vars,
            parameters.biases,
            parameters.log_var_limit,
            self.settings.prior_precision,
            detached_outputs,
        )
        if isinstance(parameters.prior, GaussianPrior):  # the operation computes the divergence from this prior only
            parameters.kl = kl
        return y

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the divergence of independent Gaussians."""
        prior = parameters.prior or self.prior
        return KLTerms(prior.kl_divergence(parameters))

    @torch.no_grad()
    def become_prior(self, layer: BayesLayer) -> None:
        """Copy means and precisions to the prior."""
        layer.prior_mean.copy_(layer.weight_mu)
        layer.prior_precision.copy_((-layer.log_var()).exp())
