"""Fixed random functions that make posterior draws differ where there are no data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_rl.networks.encoders import build_encoder
from bayes_rl.networks.layer_factory import LayerFactory, apply


class PriorFunction(nn.Module):
    """Fixed random values added to those that are learned (Osband, Aslanides and Cassirer 2018, arXiv:1806.03335).

    A draw's prior is linear in its index: sum_j index_j p_j(s, a), p an untrained encoder of the same kind. Where
    there are data the learned part compensates for it. Elsewhere draws differ by it, and Thompson sampling explores.

    Args:
        encoder: name of the encoder.
        observation_shape: of one observation.
        num_actions: A.
        hidden_dim: of the encoder.
        scale: standard deviation over draws, states and actions, in return units.
        layers: makes the layers.
    """

    def __init__(
        self,
        encoder: str,
        observation_shape: tuple[int, ...],
        num_actions: int,
        hidden_dim: int,
        scale: float,
        layers: LayerFactory,
    ) -> None:
        super().__init__()
        settings, family = layers.settings, layers.family
        self.encoder = build_encoder(
            encoder, observation_shape, hidden_dim, LayerFactory(settings, "none", layers.categories)
        )
        self.values = nn.Linear(self.encoder.out_features, num_actions * family.index_size, bias=False)
        # Features have unit second moment before their ReLU, half of it after.
        variance = 2 / self.encoder.out_features / family.index_second_moment()
        nn.init.normal_(self.values.weight, std=scale * variance**0.5)
        self.num_actions = num_actions
        self.requires_grad_(False)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Evaluate prepared observations `[D or 1, B, ...]` and indices `[D, d]` to `[D, B, A]`."""
        features = apply(self.encoder, x.flatten(0, 1), "mean").float()
        with torch.autocast(x.device.type, enabled=False):
            values = self.values(features).unflatten(-1, (-1, self.num_actions)).unflatten(0, x.shape[:2])
            if len(values) == 1:
                return torch.einsum("bja,dj->dba", values[0], index)
            return torch.einsum("dbja,dj->dba", values, index)
