"""Guard that skips updates whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayes_rl.errors import RunError

SKIPS_IN_A_ROW = 5
"""Updates left out one after the other at which a run stops: it would not get out of that by itself."""


class UpdateGuard:
    """Leaves out updates whose loss or gradient is not finite, and counts them.

    A fused optimizer on a GPU is told by its `found_inf`: weights, averages and step counters stay as they are, and
    nothing waits. Of another one the gradients are taken away. Under a gradient scaler, which leaves out updates
    itself and finds its scale by it, only losses are counted.

    Attributes:
        skipped: updates left out in all.
        in_a_row: the newest ones of them, without any between.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._losses: list[Tensor] = []
        self._parts: dict[str, Tensor] = {}
        self._verdict: tuple[Tensor, Any] | None = None  # of the update before, under way from the device

    def record_loss(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Remember a minibatch's loss, and the parts to name if it is not finite, for the optimizer's step."""
        self._losses.append(loss.detach())
        self._parts = {name: part.detach() for name, part in parts.items()}

    def check(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        scaled: bool = False,
        more: Callable[[], dict[str, Tensor]] = dict,
    ) -> None:
        """Before a step of the optimizer: have it left out unless all is finite.

        Args:
            optimizer: about to take a step along gradients that are there already.
            network: whose parameters it trains, for their names.
            scaled: whether a gradient scaler stands between.
            more: finds further parts of the loss, to be named in the error.

        Raises:
            RunError: for the `SKIPS_IN_A_ROW`th update left out in a row, naming what is not finite.
        """
        self.synchronize()
        fused = bool(optimizer.defaults.get("fused"))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        values = [p.grad for p in parameters if p.grad is not None and not scaled] + self._losses
        self._losses = []
        if not values:
            return
        found = torch.zeros((), device=values[0].device)
        # The gradient scaler's own test: everything in one pass, times 1.
        torch._amp_foreach_non_finite_check_and_unscale_(values, found, torch.ones_like(found))
        told = fused and found.is_cuda and not scaled
        if told:
            optimizer.found_inf = found  # type: ignore[attr-defined]
        if (told or scaled) and found.is_cuda and not self.in_a_row:
            self._ask_later(found)  # all was well: it is enough to hear of it at the next update
            return
        bad = bool(found)
        self._count(bad, network, more)
        if bad and not (told or scaled):
            for parameter in parameters:
                parameter.grad = None

    def _ask_later(self, found: Tensor) -> None:
        host = torch.empty((), pin_memory=True)
        host.copy_(found, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._verdict = host, arrived

    def synchronize(self) -> None:
        """Count the update before, if that was put off; for it the device is waited for."""
        if self._verdict is not None:
            (host, arrived), self._verdict = self._verdict, None
            arrived.synchronize()
            self._count(bool(host))

    def _count(self, bad: bool, network: nn.Module | None = None, more: Callable[[], dict[str, Tensor]] = dict) -> None:
        self.in_a_row = self.in_a_row + 1 if bad else 0
        self.skipped += bad
        if network is not None and self.in_a_row >= SKIPS_IN_A_ROW:
            raise RunError(f"{self.in_a_row} updates in a row were left out: {self._cause(network, more())}")

    def _cause(self, network: nn.Module, more: dict[str, Tensor]) -> str:
        """What is not finite: parts of the loss, else the first parameter whose gradient is not."""
        parts = {name: float(value) for name, value in (self._parts | more).items()}
        if named := [f"{name} is {value:g}" for name, value in parts.items() if not np.isfinite(value)]:
            return ", ".join(named)
        gradients = ((name, p.grad) for name, p in network.named_parameters())
        bad = (name for name, grad in gradients if grad is not None and not grad.isfinite().all())
        name = next(bad, None)
        return "the loss is not finite" if name is None else f"the gradient of {name} is not finite, the loss is"
