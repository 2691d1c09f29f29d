"""Monitor of the consolidation penalty: the share of weights that it freezes, and whether its strength fits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FROZEN = 0.01
"""Fraction of its tensor's root mean square: a weight that cannot get further from its anchor counts as frozen."""


SCALES = (1e-6, 1e3)
"""Ratios of penalty and |loss| below and above which one of the two has no effect."""


@torch.no_grad()
def frozen_share(
    parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float, optimizer: torch.optim.Optimizer
) -> float:
    """Return the share of the protected weights, in [0, 1], that the penalty holds in place.

    A weight's reach is d_i = rms gradient_i / (lambda F_i), the distance from the anchor at which the penalty pulls as
    strongly as gradients usually do. A weight is frozen where d_i is below `FROZEN` rms weight of its tensor.

    Args:
        parameters: name to protected parameter.
        fisher: name to Fisher diagonal, shaped as the parameter.
        strength: lambda.
        optimizer: Adam or AdamW of the parameters. The rms gradient is the root of its `exp_avg_sq`, bias-corrected;
            it includes the penalty's own part. A weight whose rms gradient is 0 counts as free: nothing pulls at it.
    """
    frozen, weights = 0.0, 0
    decay = {id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        weights += parameter.numel()
        state = optimizer.state.get(parameter)
        if state:
            correction = 1 - decay[id(parameter)] ** float(state["step"])
            pull = strength * fisher[name] * FROZEN * parameter.square().mean().sqrt()
            rms = (state["exp_avg_sq"] / correction).sqrt()
            frozen += float(((rms > 0) & (rms < pull)).sum())
    return frozen / max(1, weights)


class PenaltyMonitor:
    """Check of the penalty's strength against the loss, which reports at most once.

    Args:
        strength: lambda, for the message.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._first_update: int | None = None  # of the checks since the last consolidation
        self._largest_ratio, self._warned = 0.0, False

    def restart(self) -> None:
        """Begin anew, at a consolidation."""
        self._first_update, self._largest_ratio = None, 0.0

    def out_of_scale(self, penalty: float, loss: float, update: int, patience: int = 1000) -> str | None:
        """Return a message if lambda does not fit, once in the life of this object.

        Lambda does not fit if the penalty exceeds `SCALES[1]` |loss|, or if it was below `SCALES[0]` |loss| at every
        call since a consolidation, over `patience` updates.

        Args:
            penalty: part of the penalty that weights can change, of this update, in nats.
            loss: of this update without the penalty.
            update: number of this update. Not every update has to be asked about.
            patience: updates from the first call after a consolidation.
        """
        if self._warned:
            return None
        self._first_update = update if self._first_update is None else self._first_update
        ratio = penalty / max(abs(loss), 1e-12)
        self._largest_ratio = max(self._largest_ratio, ratio)
        weak = self._largest_ratio < SCALES[0] and update - self._first_update >= patience
        self._warned = weak or ratio > SCALES[1]
        if not self._warned:
            return None
        advice = "nothing is protected, raise it" if weak else "nothing else is learned, lower it"
        return f"--model.consolidation.ewc_lambda {self.strength:g}: the penalty is {ratio:.1g} of the loss: {advice}"
