"""KL divergence of any module that has variational layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.layers import BayesLayer, BayesLinear, PosteriorParameters, half_log_det, joint_parameters


def bayesian_layers(module: nn.Module) -> dict[str, BayesLayer]:
    """All variational layers in the tree below `module` by name, in registration order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BayesLayer)}


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q || prior) of the tree below `module`: a scalar in nats, summed over layers, 0 without any."""
    return joint_kl(bayesian_layers(module).values())


def joint_kl(layers: Iterable[BayesLayer], known: Iterable[tuple[BayesLayer, PosteriorParameters]] = ()) -> Tensor:
    """KL(q || prior) of all `layers` jointly: a scalar in nats.

    `low_rank` layers share their index, so that their determinant is taken jointly: the whole exceeds the sum of the
    layers' own divergences by what they tell about each other.

    Args:
        layers: in any number and of any settings.
        known: more layers, or groups of equal ones by their first, with their moments.
    """
    groups: dict[Any, list[BayesLayer]] = {}
    for layer in layers:  # linear layers of equal inputs at once: many small operations take longer than few
        alone = not isinstance(layer, BayesLinear)
        groups.setdefault((layer.settings, layer.weight_mu.shape[-1], id(layer) if alone else 0), []).append(layer)
    parts = [layer.kl_terms(moments) for layer, moments in known]
    parts += [group[0].kl_terms(joint_parameters(group)) for group in groups.values()]
    if not parts:
        return torch.zeros(())
    total = torch.stack([part for part, _ in parts]).sum() if len(parts) > 1 else parts[0][0]
    grams = [gram for _, gram in parts if gram is not None]
    return total - half_log_det(torch.stack(grams).sum(0)) if grams else total
