"""Gaussian whose covariance is diagonal plus low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.bayes.posteriors.base import KLTerms, PosteriorFamily, add_gaussian_parameters, register_posterior

if TYPE_CHECKING:
    from bayes_rl.bayes.layers import BayesLayer
    from bayes_rl.bayes.settings import PosteriorSettings


@register_posterior("low_rank")
class LowRank(PosteriorFamily):
    """Gaussian w = mu + C z + s eps with z of `size` standard normal numbers that all layers share.

    The covariance is s^2 I + C C^T, whose determinant is that of all layers' weights jointly.
    """

    extra_parameters = ("weight_factor",)  # C, `[d, *shape]`
    priors = ("gaussian",)
    cuda_graph_obstacle = "the determinant of a low_rank posterior waits for the device"

    def __init__(self, settings: PosteriorSettings, sequential: bool = False) -> None:
        super().__init__(settings, sequential)
        self.index_size = settings.size

    def add_parameters(self, layer: BayesLayer) -> None:
        """Create means, log-variances, biases and the factor C."""
        scale = add_gaussian_parameters(layer, self.settings)
        # A draw of C z is as large as an initial mean.
        factor = torch.randn(self.index_size, *layer.shape)
        layer.weight_factor = nn.Parameter(scale / math.sqrt(self.index_size) * factor)

    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu + C z for each index z, and the biases."""
        factor = parameters.extras["weight_factor"]
        return parameters.mean + torch.tensordot(index, factor, 1), parameters.bias[None]

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs with a fresh z for every row, by d + 1 products for all rows together."""
        factor = parameters.extras["weight_factor"]
        z = x.new_zeros(len(x), len(factor), dtype=parameters.mean.dtype).normal_()
        columns = layer.product(x, factor.flatten(0, 1), None).unflatten(1, (len(factor), -1))
        mixed = torch.einsum("bk...,bk->b...", columns, z)
        return layer.product(x, parameters.mean, parameters.bias) + mixed

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the divergence without its log-determinant, and C^T S^-1 C `[d, d]`, where S is the diagonal of s^2.

        The log-determinant depends on all layers together. `shared_kl` computes it from the sum of these matrices.
        """
        prior, factor = parameters.prior or self.prior, parameters.extras["weight_factor"]
        kl = prior.kl_divergence(parameters)
        scaled = (factor * (-0.5 * parameters.log_var).exp()).flatten(1)
        assert prior.precision is not None  # `priors` allows no other
        return KLTerms(kl + 0.5 * prior.precision * factor.square().sum(), scaled @ scaled.T)

    def shared_kl(self, shared: Sequence[Tensor]) -> Tensor:
        """Return minus half the log-determinant of I + C^T S^-1 C, with C^T S^-1 C summed over layers."""
        return -half_log_det(torch.stack(list(shared)).sum(0) if len(shared) > 1 else shared[0])


def half_log_det(gram: Tensor) -> Tensor:
    """Return log det(I + gram) / 2 of a Gram matrix `[d, d]`, as a scalar.

    Rounding can make some eigenvalues negative, so they are computed and clamped; a Cholesky factorisation would fail.
    """
    return 0.5 * torch.linalg.eigvalsh(gram).clamp_min(0).log1p().sum()
