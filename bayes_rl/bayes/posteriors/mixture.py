"""Mixture of Gaussians, an ensemble with a learned spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.bayes.posteriors.base import KLTerms, PosteriorFamily, add_gaussian_parameters, register_posterior

if TYPE_CHECKING:
    from bayes_rl.bayes.layers import BayesLayer
    from bayes_rl.bayes.settings import PosteriorSettings


@register_posterior("members")
class Mixture(PosteriorFamily):
    """Mixture of `size` Gaussians of equal weight and common s, whose component is the same in all layers.

    A component is called member. The index is a one-hot vector that names the member. Every member has its own means
    and biases. The divergence is that of the member and the weights jointly, an upper bound of the divergence of the
    mixture, which is smaller where members overlap.
    """

    value_draws_are_complete = True
    anchoring_obstacle = "protects one network, not the members of a mixture"
    ignored_settings = ("num_draws",)

    def __init__(self, settings: PosteriorSettings, sequential: bool = False) -> None:
        super().__init__(settings, sequential)
        self.index_size = settings.size

    def add_parameters(self, layer: BayesLayer) -> None:
        """Create means and biases of every member, and log-variances."""
        add_gaussian_parameters(layer, self.settings, self.index_size)

    def draw_index(self, generator: torch.Generator) -> Tensor:
        """Return the one-hot vector of a random member, `[K]`."""
        index = torch.zeros(self.index_size)
        index[torch.randint(self.index_size, (), generator=generator)] = 1
        return index

    def fresh_draws(self, count: int, device: torch.device) -> Draws:
        """Return every member once, for any `count`: all members are trained in every update."""
        return replace(self.mean_draws(device), noise=None)

    def value_draws(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> Draws:
        """Return every member equally often, at least `count` draws in all, each with a diagonal part of its own."""
        repetitions = -(-count // self.index_size)
        draws = super().value_draws(shapes, repetitions * self.index_size)
        return replace(draws, index=torch.eye(self.index_size).repeat(repetitions, 1)) if shapes else draws

    def mean_draws(self, device: torch.device) -> Draws:
        """Return every member once, at its mean weights: the mean of networks is not the network of mean weights."""
        return Draws(torch.eye(self.index_size, device=device), {})

    def index_second_moment(self) -> float:
        """Return 1, the squared length of a one-hot vector."""
        return 1.0

    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and biases of the chosen members."""
        member = index.argmax(-1)
        return parameters.mean.index_select(0, member), parameters.bias.index_select(0, member)

    def mean(self, parameters: PosteriorParameters) -> tuple[Tensor, Tensor]:
        """Return the average of the members' means and biases."""
        return parameters.mean.mean(0), parameters.bias.mean(0)

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs with a random member for every row."""
        means = parameters.mean
        index = x.new_zeros(len(x), len(means), dtype=means.dtype)
        index = index.scatter(1, torch.randint(len(means), (len(x), 1), device=x.device), 1)
        outputs = layer.product(x, means.flatten(0, 1), None).unflatten(1, (len(means), -1))
        member_outputs, bias = torch.einsum("bk...,bk->b...", outputs, index), index @ parameters.bias
        return member_outputs + bias.reshape(*bias.shape, *[1] * (member_outputs.ndim - 2))

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the average divergence of the members."""
        prior = parameters.prior or self.prior
        return KLTerms(prior.kl_divergence(parameters, copies=len(parameters.mean)))
