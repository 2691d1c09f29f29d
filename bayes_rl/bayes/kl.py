"""KL divergence of any module that has variational layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.layers import BayesLayer, BayesLinear, EvaluatedLayers, joint_parameters
from bayes_rl.bayes.posteriors import KLTerms, PosteriorFamily


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
    terms = _terms((layers, evaluated))
    return _sum_of_terms([layer_terms.additive for _, layer_terms in terms], terms)


def half_of_joint_kl(trained: CountedLayers, common: CountedLayers, other: CountedLayers) -> Tensor:
    """Return the part of one of two pairs in the divergence of both pairs together: a scalar in nats.

    The parts of the two pairs add up to the joint divergence of all layers, and so do their gradients. A part has the
    whole gradient by the weights of its pair, half of the gradient by weights that the pairs have in common, and none
    by the weights of the other pair.

    Args:
        trained: layers of the pair.
        common: layers that both pairs have.
        other: layers of the other pair. They count only where weights of different layers depend on each other.
    """
    trained_terms, common_terms = _terms(trained), _terms(common)
    additive = [terms.additive for _, terms in trained_terms] + [0.5 * terms.additive for _, terms in common_terms]
    kl = _sum_of_terms(additive, [])
    if all(terms.shared is None for _, terms in trained_terms + common_terms):
        return kl
    with torch.no_grad():
        other_terms = _terms(other)
    halved = [(family, _with_half_the_gradient(terms)) for family, terms in common_terms]
    shared = _sum_of_terms([], trained_terms + halved + other_terms)
    return kl + shared - 0.5 * shared.detach()


CountedLayers = tuple[Iterable[BayesLayer], Iterable[EvaluatedLayers]]
"""Layers, and further layers that a forward pass by the present weights has evaluated."""


LayerTerms = list[tuple[PosteriorFamily, KLTerms]]
"""Terms of the divergence of layers, or of groups of layers, with their families."""


def _with_half_the_gradient(terms: KLTerms) -> KLTerms:
    """Return terms of the same values, whose shared term passes on half of its gradient."""
    return terms if terms.shared is None else terms._replace(shared=0.5 * (terms.shared + terms.shared.detach()))


def _terms(layers: CountedLayers) -> LayerTerms:
    """Return the terms of the divergence of all layers."""
    groups: dict[Any, list[BayesLayer]] = {}
    # Linear layers with the same number of inputs form a group, because few large operations are faster than many.
    for layer in layers[0]:
        group_of_one = id(layer) if not isinstance(layer, BayesLinear) else 0
        key = (layer.settings, layer.family.sequential, layer.shape[-1], group_of_one)
        groups.setdefault(key, []).append(layer)
    parts = [*layers[1], *(EvaluatedLayers(group, joint_parameters(group)) for group in groups.values())]
    return [(part.layers[0].family, part.kl_terms()) for part in parts]


def _sum_of_terms(additive: list[Tensor], terms: LayerTerms) -> Tensor:
    """Return the sum of additive terms and of what `terms` share, each family by itself; 0 without any."""
    shared: dict[type, list[Tensor]] = {}
    families = {type(family): family for family, _ in terms}
    for family, layer_terms in terms:
        if layer_terms.shared is not None:
            shared.setdefault(type(family), []).append(layer_terms.shared)
    sums = [torch.stack(additive).sum()] if len(additive) > 1 else list(additive)
    sums += [families[family_class].shared_kl(contributions) for family_class, contributions in shared.items()]
    if not sums:
        return torch.zeros(())
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return total
