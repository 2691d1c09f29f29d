"""Monitor of the consolidation penalty: the share of frozen weights, and warnings of a strength that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FROZEN_DISTANCE = 0.01
"""Distance from the anchor, relative to the rms weight of the tensor, that a frozen weight cannot exceed."""


MIN_RATIO, MAX_RATIO = 1e-6, 1e3
"""Bounds of penalty / |loss|. Below the bounds the penalty has no effect, above them the loss has none."""


@torch.no_grad()
def frozen_share(
    parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float, optimizer: torch.optim.Optimizer
) -> float:
    """Return the share of the protected weights, in [0, 1], that the penalty keeps from changing.

    At the distance d_i = rms gradient_i / (lambda F_i) from the anchor, the gradient of the penalty is as large as the
    usual gradient. A weight is frozen if d_i is below `FROZEN_DISTANCE` times the rms weight of its tensor.

    Args:
        parameters: name to protected parameter.
        fisher: name to Fisher diagonal, shaped as the parameter.
        strength: lambda.
        optimizer: of the parameters. With another one than Adam or AdamW the share is unknown, and 0 is returned. The
            rms gradient is the root of Adam's `exp_avg_sq`, bias-corrected; it includes the gradient of the penalty. A
            weight whose rms gradient is 0 is not counted as frozen.
    """
    frozen, weights = 0.0, 0
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        return 0.0
    beta_2 = {id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        weights += parameter.numel()
        state = optimizer.state.get(parameter)
        if state:
            correction = 1 - beta_2[id(parameter)] ** float(state["step"])
            largest = strength * fisher[name] * FROZEN_DISTANCE * parameter.square().mean().sqrt()
            rms_gradient = (state["exp_avg_sq"] / correction).sqrt()
            frozen += float(((rms_gradient > 0) & (rms_gradient < largest)).sum())
    return frozen / max(1, weights)


class PenaltyMonitor:
    """Comparison of penalty and loss, which warns at most once of a strength that does not fit.

    Args:
        strength: lambda, for the message.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._first_update: int | None = None  # of the calls since the last task
        self._largest_ratio, self._warned = 0.0, False

    def restart(self) -> None:
        """Forget earlier calls, because a task was added to the penalty."""
        self._first_update, self._largest_ratio = None, 0.0

    def strength_warning(self, penalty: float, loss: float, update: int, min_updates: int = 1000) -> str | None:
        """Return a warning if lambda does not fit the loss, at most once in the life of this object.

        Lambda is too large if the penalty exceeds `MAX_RATIO` |loss|. Lambda is too small if the penalty was below
        `MIN_RATIO` |loss| at every call since the last task, and these calls span at least `min_updates` updates.

        Args:
            penalty: part of the penalty that weights can change, in this update, in nats.
            loss: loss of this update without the penalty, in nats.
            update: number of this update.
            min_updates: updates between the first call after a task and a warning that lambda is too small.
        """
        if self._warned:
            return None
        self._first_update = update if self._first_update is None else self._first_update
        ratio = penalty / max(abs(loss), 1e-12)
        self._largest_ratio = max(self._largest_ratio, ratio)
        too_small = self._largest_ratio < MIN_RATIO and update - self._first_update >= min_updates
        self._warned = too_small or ratio > MAX_RATIO
        if not self._warned:
            return None
        advice = "nothing is protected, raise it" if too_small else "nothing else is learned, lower it"
        return f"--model.consolidation.ewc_lambda {self.strength:g}: the penalty is {ratio:.1g} of the loss: {advice}"
