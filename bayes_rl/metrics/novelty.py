"""Metric of how well uncertainty tells novel states from the states of the games just played."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from bayes_rl.metrics.calibration import check_not_negative, check_vectors


def novelty_auroc(known: Tensor, novel: Tensor) -> Tensor:
    """Return the area under the ROC curve of a standard deviation that tells novel states from known states.

    The area is P(novel > known) + P(novel = known) / 2 for a novel and a known state drawn at random: 1 if the
    standard deviation of every novel state is above that of every known state, 0.5 if it tells nothing, and below 0.5
    if the agent is more certain of novel states.

    Args:
        known: standard deviations of known states, `[K]`.
        novel: standard deviations of novel states, `[N]`.

    Returns:
        A scalar float32, 0 to 1; NaN if there are no known or no novel states, or if a number is not finite.
    """
    both = torch.cat([known, novel])
    if not len(known) or not len(novel) or not both.isfinite().all():
        return torch.tensor(math.nan, device=both.device)
    # Ranks, because torchmetrics takes numbers above 1 for logits, and its sigmoid makes great numbers equal.
    ranks = both.unique(return_inverse=True)[1]
    is_novel = (torch.arange(len(both), device=both.device) >= len(known)).long()
    return binary_auroc(ranks / ranks.max().clamp(min=1), is_novel, validate_args=False)


class NoveltyAUROC(Metric):
    """Area under the ROC curve (`novelty_auroc`) of known states against each kind of novel states.

    `compute` returns `novelty_auroc_KIND` for each kind that was updated since the last reset; NaN if that was without
    states.

    Args:
        kinds: names of the kinds of novel states.
    """

    full_state_update = False
    known: list[Tensor]

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.kinds = kinds
        self._kinds_seen: set[str] = set()
        for name in ("known", *kinds):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, kind: str, std: Tensor) -> None:
        """Add states.

        Args:
            kind: `known`, or a kind of novel states.
            std: standard deviations of Q in these states, `[M]`, in return units.

        Raises:
            ValueError: if the kind is unknown, `std` is no vector, or a standard deviation is negative.
        """
        if kind not in ("known", *self.kinds):
            raise ValueError(f"kind must be known or one of {self.kinds}, got {kind!r}")
        check_vectors(std=std)
        check_not_negative(std=std)
        self._kinds_seen.add(kind)
        getattr(self, kind).append(std.detach().float())

    def deviations(self) -> dict[str, Tensor]:
        """Return the standard deviations of each kind that was updated, known states among them, each `[M]`."""
        # With several ranks the state is one tensor by now, whose length says nothing about updates.
        return {kind: dim_zero_cat(getattr(self, kind)) for kind in ("known", *self.kinds) if kind in self._kinds_seen}

    def reset(self) -> None:
        """Forget all states."""
        super().reset()
        self._kinds_seen.clear()

    def compute(self) -> dict[str, Tensor]:
        """Return the areas by name."""
        found = self.deviations()
        known = found.pop("known", torch.empty(0, device=self.device))
        return {f"novelty_auroc_{kind}": novelty_auroc(known, std) for kind, std in found.items()}
