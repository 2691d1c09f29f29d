"""Guard that skips updates whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayes_rl.errors import RunError
from bayes_rl.utils.ranks import average_over_ranks, average_values_over_ranks, num_ranks

SKIPS_IN_A_ROW = 5
"""Number of consecutive skipped updates at which a run stops: such a run would not recover by itself."""


class UpdateGuard:
    """Guard that skips updates whose loss or gradient is not finite, and counts the skipped updates.

    A fused optimizer on a GPU skips an update by its `found_inf`: weights, averages and step counters do not change,
    and the CPU does not wait for the device. For any other optimizer, the guard removes the gradients. A gradient
    scaler skips updates itself and adapts its scale to them, so that under a scaler only losses are tested. An update
    that is not finite on one rank is skipped on all: it makes the averaged gradients NaN on every rank.

    Attributes:
        skipped: number of all skipped updates.
        in_a_row: number of consecutive skipped updates up to the latest update.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._parts: dict[str, Tensor] = {}
        # Test result of the previous update and the event that ends its copy from the device.
        self._pending: tuple[Tensor, Any] | None = None

    def record_loss(self, loss: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Record a minibatch's loss for the test before the next step, and return the loss to differentiate.

        With several ranks, the gradient of the returned loss is NaN if the loss is not finite. A finite loss keeps its
        gradient, bit for bit.

        Args:
            loss: scalar.
            parts: names and values of the loss's terms, scalars. An error names the terms that are not finite.
        """
        self._losses.append(loss.detach())
        self._parts = {name: part.detach() for name, part in parts.items()}
        return loss if num_ranks() == 1 else loss * (1 + 0 * loss.detach())

    def check(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        scaled: bool = False,
        more: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """Skip the optimizer's next step unless the recorded losses and the gradients are finite.

        Args:
            optimizer: optimizer whose gradients are computed and whose step follows.
            network: network that the optimizer trains; an error names its parameters.
            scaled: whether a gradient scaler runs the optimizer's step.
            more: computes further terms of the loss, scalars by name, for the error's text.

        Raises:
            RunError: if `SKIPS_IN_A_ROW` consecutive updates were skipped; the text names the values that are not
                finite.
        """
        self.synchronize()
        fused = bool(optimizer.defaults.get("fused"))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values = [p.grad for p in parameters if p.grad is not None and not scaled] + self._losses
        self._losses = []
        if not values:
            return
        non_finite = torch.zeros((), dtype=torch.float32, device=values[0].device)
        # The gradient scaler's test reads all tensors in one pass. The scale of 1 leaves the values unchanged.
        torch._amp_foreach_non_finite_check_and_unscale_(values, non_finite, torch.ones_like(non_finite))
        if scaled:  # no gradient has been tested, and losses are those of this rank
            non_finite = average_over_ranks(non_finite)[0].ceil()
        optimizer_skips = fused and non_finite.is_cuda and not scaled
        if optimizer_skips:
            optimizer.found_inf = non_finite  # type: ignore[attr-defined]
        if (optimizer_skips or scaled) and non_finite.is_cuda and not self.in_a_row:
            # The previous update was finite, so that no error is due now and the result can be read one update later.
            self._read_later(non_finite)
            return
        skip = bool(non_finite)
        self._count(skip, network, more)
        if skip and not (optimizer_skips or scaled):
            for parameter in parameters:
                parameter.grad = None

    def _read_later(self, non_finite: Tensor) -> None:
        """Start the copy of a test result to the CPU without waiting for the device."""
        host = torch.empty((), pin_memory=True)
        host.copy_(non_finite, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = host, copied

    def synchronize(self) -> None:
        """Wait for the pending test result of the previous update, if any, and count that update."""
        if self._pending is not None:
            (host, copied), self._pending = self._pending, None
            copied.synchronize()
            self._count(bool(host))

    def _count(
        self, skip: bool, network: nn.Module | None = None, more: Callable[[], dict[str, Tensor]] = dict
    ) -> None:
        """Count an update. Given its network, raise `RunError` after too many consecutive skipped updates."""
        self.in_a_row = self.in_a_row + 1 if skip else 0
        self.skipped += skip
        if network is not None and self.in_a_row >= SKIPS_IN_A_ROW:
            raise RunError(f"{self.in_a_row} updates in a row were left out: {self._describe_cause(network, more())}")

    def _describe_cause(self, network: nn.Module, more: dict[str, Tensor]) -> str:
        """Return the loss's terms that are not finite, or else the first parameter with a gradient that is not.

        The terms are averages over ranks, which all come here together: those of one rank make them NaN or infinite.
        """
        terms = self._parts | more
        device = next(iter(terms.values())).device if terms else torch.device("cpu")
        parts = {name: float(value) for name, value in average_values_over_ranks(terms, device).items()}
        if broken := [f"{name} is {value:g}" for name, value in parts.items() if not np.isfinite(value)]:
            return ", ".join(broken)
        gradients = ((name, p.grad) for name, p in network.named_parameters())
        names = (name for name, grad in gradients if grad is not None and not grad.isfinite().all())
        name = next(names, None)
        return "the loss is not finite" if name is None else f"the gradient of {name} is not finite, the loss is"
