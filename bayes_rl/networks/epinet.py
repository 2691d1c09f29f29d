"""Epinet: the deviations of the Q-values of posterior draws from the mean."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.layers import BayesLinear
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.random_features import RandomFourierFeatures


class Epinet(nn.Module):
    """Deviations of the Q-values of posterior draws from the mean (Osband et al. 2023, arXiv:2107.08924).

    A deviation is linear in fixed features of the state: random Fourier features of arrays, the one-hot vector of
    integers. Each draw has random weights that never change, its prior function, and learned weights that are added.
    Where there are data, the learned weights take the prior function away. Elsewhere the draws differ by the prior
    function, however long the agent learns, because the features do not learn.

    The learned weights are a Bayesian layer. Their prior N(0, scale^2) says that a draw is its prior function unless
    data say otherwise.

    Args:
        observation_shape: shape of one observation.
        num_actions: A.
        layers: factory of the networks' layers, which holds the settings of the posterior.
        num_features: m, number of random features of arrays, >= 1.
        length_scale: distance beyond which two states are no longer alike; 1 is the root mean squared distance of two
            random states of the replay, over sqrt(2).
        scale: standard deviation of a prior function, in return units, > 0.

    Attributes:
        features: random features of arrays; None for integers.
    """

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        layers: LayerFactory,
        num_features: int,
        length_scale: float,
        scale: float,
    ) -> None:
        super().__init__()
        self.features: RandomFourierFeatures | None = None
        inputs, self.gain = layers.categories, math.sqrt(num_features)
        if not layers.categories:
            self.features = RandomFourierFeatures(observation_shape, num_features, length_scale)
            inputs, self.gain = num_features, 1.0
        # Adam moves every weight by its step size. The gain lets one weight of an integer have the effect of the m
        # weights of an array, which move together.
        scale_of_weights = scale / self.gain
        settings = replace(layers.settings, prior_precision=scale_of_weights**-2, init_scale=1e-3)
        self.layer = BayesLinear(inputs, num_actions, settings)
        nn.init.zeros_(self.layer.bias)
        family = layers.family
        std = scale_of_weights / math.sqrt(family.index_second_moment())
        self.prior = nn.Parameter(std * torch.randn(family.index_size, num_actions, inputs), requires_grad=False)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        """Return deviations `[D, B, A]` in return units.

        Args:
            x: observations that `TwinActorCritic.prepare` returned, `[D or 1, B, ...]`.
            draws: D draws.
        """
        features = x if self.features is None else self.features(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        with torch.autocast(x.device.type, enabled=False):
            prior = torch.tensordot(draws.index, self.prior, 1)
            return self.gain * (self.layer(features, draws) + self.layer.batched(features, prior, None))
