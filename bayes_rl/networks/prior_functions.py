"""Fixed random functions that make posterior draws differ where there are no data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_rl.networks.encoders import build_encoder
from bayes_rl.networks.layer_factory import LayerFactory, apply


class PriorFunction(nn.Module):
    """Fixed random function added to the learned values (Osband, Aslanides and Cassirer 2018, arXiv:1806.03335).

    The function of a draw is linear in the draw's index: sum_j index_j p_j(s, a). The p_j are the outputs of one
    untrained encoder. Where there are data, the learned values compensate for the prior function. In other states the
    draws differ by it, so that Thompson sampling explores them.

    Args:
        encoder: name of the encoder.
        observation_shape: shape of one observation.
        hidden_dim: number of the encoder's features.
        num_actions: A.
        scale: standard deviation over draws, states and actions, in return units.
        layers: factory of the network's layers, whose posterior family decides the length of an index.
    """

    def __init__(
        self,
        encoder: str,
        observation_shape: tuple[int, ...],
        hidden_dim: int,
        num_actions: int,
        scale: float,
        layers: LayerFactory,
    ) -> None:
        super().__init__()
        settings, family = layers.settings, layers.family
        self.encoder = build_encoder(
            encoder,
            observation_shape,
            hidden_dim,
            LayerFactory(settings, "none", layers.categories, width=layers.width),
        )
        self.values = nn.Linear(self.encoder.out_features, num_actions * family.index_size, bias=False)
        # The second moment of a feature is 1 before the encoder's last ReLU and 1 / 2 after it.
        variance = 2 / self.encoder.out_features / family.index_second_moment()
        nn.init.normal_(self.values.weight, std=scale * variance**0.5)
        self.num_actions = num_actions
        self.requires_grad_(False)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the values `[D, B, A]` of D draws.

        Args:
            x: observations that `TwinActorCritic.prepare` returned, `[D or 1, B, ...]`.
            index: indices of the draws, `[D, d]`.
        """
        features = apply(self.encoder, x.flatten(0, 1), "mean").float()
        with torch.autocast(x.device.type, enabled=False):
            values = self.values(features).unflatten(-1, (-1, self.num_actions)).unflatten(0, x.shape[:2])
            if len(values) == 1:
                return torch.einsum("bja,dj->dba", values[0], index)
            return torch.einsum("dbja,dj->dba", values, index)
