"""KL divergence of any module that has variational layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.layers import BayesLayer, BayesLinear, joint_parameters
from bayes_rl.bayes.parameters import PosteriorParameters


def bayesian_layers(module: nn.Module) -> dict[str, BayesLayer]:
    """Return all variational layers in the tree below `module` by name, in registration order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BayesLayer)}


def kl_divergence(module: nn.Module) -> Tensor:
    """Return KL(q || prior) of the tree below `module`: a scalar in nats, summed over layers, 0 without any."""
    return joint_kl(bayesian_layers(module).values())


def joint_kl(layers: Iterable[BayesLayer], known: Iterable[tuple[BayesLayer, PosteriorParameters]] = ()) -> Tensor:
    """Return KL(q || prior) of all `layers` jointly: a scalar in nats.

    Layers that share their index (`low_rank`) have a determinant jointly: their divergence exceeds the sum of the
    layers' own divergences by what the layers tell about each other.

    Args:
        layers: in any number and of any settings.
        known: further layers, or groups of equal ones by their first, with their parameters.
    """
    groups: dict[Any, list[BayesLayer]] = {}
    for layer in layers:  # linear layers of equal inputs at once: many small operations take longer than few
        alone = not isinstance(layer, BayesLinear)
        key = (layer.settings, layer.family.sequential, layer.shape[-1], id(layer) if alone else 0)
        groups.setdefault(key, []).append(layer)
    parts = [(layer.family, layer.kl_terms(parameters)) for layer, parameters in known]
    parts += [(group[0].family, group[0].kl_terms(joint_parameters(group))) for group in groups.values()]
    if not parts:
        return torch.zeros(())
    own = [terms.own for _, terms in parts]
    total = torch.stack(own).sum() if len(own) > 1 else own[0]
    shared: dict[type, list[Tensor]] = {}
    families = {type(family): family for family, _ in parts}
    for family, terms in parts:
        if terms.shared is not None:
            shared.setdefault(type(family), []).append(terms.shared)
    for kind, contributions in shared.items():
        total = total + families[kind].shared_kl(contributions)
    return total
