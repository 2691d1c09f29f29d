"""Gaussian posterior over all trained parameters of a network whose layers are plain."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_rl.bayes.settings import PosteriorSettings


class WeightPosterior(nn.Module):
    """Independent Gaussians N(mean, 1 / precision) over all trained parameters of a network, biases and gains too.

    The means are the parameters of the network. The precisions are buffers of this module, so that a checkpoint and an
    exported agent hold the whole posterior. The optimizer `IVON` changes both.

    Args:
        parameters: trained parameters by name; the constructor reads their names and shapes.
        settings: `prior_precision` k of the prior N(0, 1 / k) of every weight, and `init_log_var`, the logarithm of the
            initial variance of every weight.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: PosteriorSettings) -> None:
        super().__init__()
        self.prior_precision, self.init_precision = settings.prior_precision, math.exp(-settings.init_log_var)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        self._keys = {name: f"precision_{name.replace('.', '__')}" for name in parameters}  # buffers have no dots
        for name, parameter in parameters.items():
            self.register_buffer(self._keys[name], torch.full_like(parameter, self.init_precision, requires_grad=False))

    def precision(self, name: str) -> Tensor:
        """Return 1 / variance of the weights of one parameter, shaped as the parameter."""
        return self._buffers[self._keys[name]]  # type: ignore[return-value]

    def std(self, name: str) -> Tensor:
        """Return the standard deviation of the weights of one parameter, shaped as the parameter."""
        return self.precision(name).rsqrt()

    def kl_divergence(self, means: Mapping[str, Tensor]) -> Tensor:
        """Return KL(q || prior), a scalar in nats: the sum of (k (m^2 + s^2) - 1 - log(k s^2)) / 2 over all weights.

        Args:
            means: m, the network's parameters by name.
        """
        prior, parts = self.prior_precision, []
        for name in self.shapes:
            ratio = prior / self.precision(name)
            parts.append(0.5 * (prior * means[name].detach().square() + ratio - 1 - ratio.log()).sum())
        return torch.stack(parts).sum()

    def log_variances(self) -> Tensor:
        """Return log s^2 of all weights in one vector."""
        return torch.cat([-self.precision(name).log().flatten() for name in self.shapes])
