"""Epinet: the deviations of the Q-values of posterior draws from the mean."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.layers import BayesLinear
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.random_features import RandomFourierFeatures

PERIOD = 65_537
"""Number of transitions after which the signs repeat: a prime, so that no two environments have signs in step."""


class Epinet(nn.Module):
    """Deviations of the Q-values of posterior draws from the mean (Osband et al. 2023, arXiv:2107.08924).

    A deviation is linear in fixed features of the state: random Fourier features of arrays, the one-hot vector of
    integers. Each draw has random weights that never change, its prior function, and learned weights that are added.
    Where there are data, the learned weights take the prior function away. Elsewhere the draws differ by the prior
    function, however long the agent learns, because the features do not learn.

    The learned weights are a Bayesian layer. Their prior has the variance of the prior functions' weights, which says
    that a draw is its prior function unless data say otherwise.

    Targets of a draw are perturbed by their own TD errors, times signs that are random but fixed for each transition
    and component of the index: the wild bootstrap (Wu 1986). So draws differ by what the noise of the data leaves open.

    Args:
        observation_shape: shape of one observation.
        num_actions: A.
        layers: factory of the networks' layers, which holds the settings of the posterior.
        num_features: m, number of random features of arrays, >= 1.
        length_scale: distance beyond which two states are no longer alike; 1 is the root mean squared distance of two
            random states of the replay, over sqrt(2).
        scale: standard deviation of a prior function, in return units, > 0.
        perturbation: weight of the TD errors in the targets of draws, >= 0.

    Attributes:
        features: random features of arrays; None for integers.
        gain: return units for each unit of the weights.
        signs: +1 or -1 for each transition and component of the index, `[PERIOD, K]` int8. They are the same in every
            agent, and therefore not part of its state.
    """

    signs: Tensor

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        layers: LayerFactory,
        num_features: int,
        length_scale: float,
        scale: float,
        perturbation: float = 0.0,
    ) -> None:
        super().__init__()
        self.perturbation = perturbation
        self.features: RandomFourierFeatures | None = None
        inputs, std = num_features, 1.0
        if layers.categories:
            # Adam moves every weight by its step size. In its own units the one weight of an integer is small, so that
            # a step of it has the effect of a step of all m weights of an array.
            inputs, std = layers.categories, num_features**-0.5
        else:
            self.features = RandomFourierFeatures(observation_shape, num_features, length_scale)
        # Weights are in units of the prior function: a step of Adam has the same effect at every scale.
        self.gain = scale / std
        settings = replace(layers.settings, prior_precision=std**-2, init_scale=1e-3)
        self.layer = BayesLinear(inputs, num_actions, settings)
        nn.init.zeros_(self.layer.bias)
        family = layers.family
        prior = std * family.index_second_moment() ** -0.5 * torch.randn(family.index_size, num_actions, inputs)
        self.prior = nn.Parameter(prior, requires_grad=False)
        self._index_scale = family.index_second_moment() ** -0.5
        signs = torch.randint(2, (PERIOD, family.index_size), generator=torch.Generator().manual_seed(0))
        self.register_buffer("signs", (2 * signs - 1).to(torch.int8), persistent=False)

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

    def perturbations(self, slot: Tensor, draws: Draws) -> Tensor:
        """Return what the TD errors of transitions are multiplied by, `[D, B]`: mean 0 and variance 1 over draws.

        Args:
            slot: places of the transitions in the replay, `[B]`.
            draws: D draws.
        """
        signs = self.signs.index_select(0, slot % PERIOD).to(draws.index.dtype)
        return self._index_scale * (draws.index @ signs.t())
