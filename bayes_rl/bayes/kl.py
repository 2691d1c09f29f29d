"""KL divergence of any module that has variational layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.layers import BayesLayer, BayesLinear, EvaluatedLayers, joint_parameters


def bayesian_layers(module: nn.Module) -> dict[str, BayesLayer]:
    """Return all variational layers in the tree below `module` by name, in registration order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BayesLayer)}


def kl_divergence(module: nn.Module) -> Tensor:
    """Return KL(q || prior) of the tree below `module`: a scalar in nats, summed over layers, 0 without any."""
    return joint_kl(bayesian_layers(module).values())


def joint_kl(layers: Iterable[BayesLayer], evaluated: Iterable[EvaluatedLayers] = ()) -> Tensor:
    """Return KL(q || prior) of the joint distribution of all layers: a scalar in nats.

    The weights of different layers depend on each other if the posterior has an index that its layers share
    (`low_rank`). The joint divergence then exceeds the sum of the layers' divergences by the mutual information between
    the layers.

    Args:
        layers: any number of layers, of any settings.
        evaluated: further layers that a forward pass by the present weights has evaluated.
    """
    groups: dict[Any, list[BayesLayer]] = {}
    # Linear layers with the same number of inputs form a group, because few large operations are faster than many.
    for layer in layers:
        group_of_one = id(layer) if not isinstance(layer, BayesLinear) else 0
        key = (layer.settings, layer.family.sequential, layer.shape[-1], group_of_one)
        groups.setdefault(key, []).append(layer)
    parts = [*evaluated, *(EvaluatedLayers(group, joint_parameters(group)) for group in groups.values())]
    terms_by_layer = [(part.layers[0].family, part.kl_terms()) for part in parts]
    if not terms_by_layer:
        return torch.zeros(())
    additive = [terms.additive for _, terms in terms_by_layer]
    total = torch.stack(additive).sum() if len(additive) > 1 else additive[0]
    shared: dict[type, list[Tensor]] = {}
    families = {type(family): family for family, _ in terms_by_layer}
    for family, terms in terms_by_layer:
        if terms.shared is not None:
            shared.setdefault(type(family), []).append(terms.shared)
    for family_class, contributions in shared.items():
        total = total + families[family_class].shared_kl(contributions)
    return total
