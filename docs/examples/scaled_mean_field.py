r"""Example of a new posterior family: Gaussians whose standard deviations have a scale in common for each layer.

w = mu + a s eps, with s for each weight and a for each layer. The scale lets a layer become certain, or uncertain,
as a whole, with far fewer updates than its weights need one by one. Import this file, then name the family:

    python docs/examples/scaled_mean_field.py fit --config cartpole --model.posterior.family scaled_mean_field \
        --model.network.bayesian heads --model.network.prior_function_scale 0 --model.exploration epsilon
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_rl.bayes import BayesLayer, KLTerms, PosteriorFamily, PosteriorParameters, register_posterior
from bayes_rl.bayes.posteriors.base import add_gaussian_parameters


@register_posterior("scaled_mean_field")
class ScaledMeanField(PosteriorFamily):
    """Gaussian N(mu, (a s)^2) for each weight, with one scale a for each layer."""

    def add_parameters(self, layer: BayesLayer) -> None:
        """Create means, log s^2, biases, and log a^2, which begins at 0."""
        add_gaussian_parameters(layer, self.settings)
        layer.register_parameter("log_scale", nn.Parameter(torch.zeros(())))

    def raw_log_var(self, layer: BayesLayer) -> Tensor:
        """Return log (a s)^2, `[*shape]`."""
        return layer.weight_log_var + layer.get_parameter("log_scale")

    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means: no part of a weight depends on an index."""
        return parameters.mean[None], parameters.bias[None]

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return the layer's outputs by its mean weights, which all rows share."""
        return layer.product(x, parameters.mean, parameters.bias)

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the divergence of independent Gaussians."""
        return KLTerms((parameters.prior or self.prior).kl_divergence(parameters))


if __name__ == "__main__":
    from bayes_rl.cli import main

    main()
