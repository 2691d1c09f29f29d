"""Measures of the features that a network has learned: dormant units and effective rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DORMANT = 0.025
"""Share of its layer's mean activity up to which a unit counts as dormant (Sokar et al. 2023)."""


def dormant_share(activities: Sequence[Tensor], threshold: float = DORMANT) -> Tensor:
    """Return the share of dormant units among the units of all layers (Sokar et al. 2023, arXiv:2302.12902).

    A unit is dormant if its activity is at most `threshold` times the mean activity of its layer's units. All units of
    a layer without any activity are dormant.

    Args:
        activities: of each layer the mean over states of each unit's absolute output, `[units]`. A unit of a
            convolution is a channel, whose outputs are averaged over positions too.
        threshold: share of the mean activity, >= 0.

    Returns:
        A scalar float32 in [0, 1]; NaN if there are no units.
    """
    dormant = [(activity <= threshold * activity.mean()).float() for activity in activities]
    return torch.cat(dormant).mean() if dormant else torch.tensor(torch.nan)


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of a matrix of features (Roy and Vetterli 2007).

    It is exp of the entropy of the singular values, which are divided by their sum: k if k singular values are equal
    and all others 0.

    Args:
        features: of M states, `[M, F]`.

    Returns:
        A scalar float32, 1 to min(M, F); 0 if all features are 0, and NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return torch.tensor(torch.nan, device=features.device)
    values = torch.linalg.svdvals(features.float())
    if not values.any():
        return torch.zeros((), device=features.device)
    return torch.special.entr(values / values.sum()).sum().exp()
