"""What happens around every update, at a cost that a small network can bear.

None of it changes a result, but for numbers below 1e-38. The figures are in `docs/results/learner.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler

NOTHING = contextlib.nullcontext()


UPDATE_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for those of the next update; elsewhere nothing is done.

    Returned to the system, each page is cleared and mapped again: with tensors of tens of megabytes that takes a third
    of an update. The process stays as large as it was at its largest.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """In here, in this thread, numbers below 1e-38 are zero.

    Adam's average of a gradient that has become zero, as that of a unit that is off, shrinks to the smallest such
    number and stays there; processors take a hundred times as long for one as for others. After 26 000 updates of the
    quickstart a third of all averages were such, and a step of the optimizer took four times as long
    (`docs/results/denormals.json`).
    """
    before = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flush_denormals_in_workers() -> None:
    """Have the other threads of torch, if there are none yet, begin with numbers below 1e-38 being zero, for good."""
    with flushed_denormals():
        torch.ones(2**20).add_(1.0)  # large enough to be shared out


def pass_over_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Have Lightning pass over those hooks of every update that a callback does not have.

    It makes a name and a context for each call, of callbacks by the dozen, which takes longer than what they do.
    """
    for callback in callbacks:
        for name in UPDATE_HOOKS:
            if getattr(getattr(callback, name), "__func__", None) is getattr(Callback, name):
                setattr(callback, name, None)


class NoProfiler(PassThroughProfiler):
    """The profiler that measures nothing, without making a context of its own for each of forty hooks."""

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return NOTHING


class LowOverheadModule(pl.LightningModule):
    """A LightningModule whose updates spend their time on what is learned."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # set before and after each hook; a module looks for parameters in it
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        """Measure nothing cheaply, unless something is to be measured; call nobody who has nothing to do."""
        super().on_fit_start()
        keep_freed_memory()
        pass_over_idle_hooks(self.trainer.callbacks)  # type: ignore[attr-defined]
        if type(self.trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
            self.trainer.profiler = NoProfiler()  # type: ignore[attr-defined]

    def on_fit_end(self) -> None:
        """Leave the callbacks as they were."""
        super().on_fit_end()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            for name in UPDATE_HOOKS:
                if getattr(callback, name) is None:
                    delattr(callback, name)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let go of what the update before has logged: Lightning would read it again after every one to come."""
        super().on_train_batch_start(batch, batch_idx)
        results = self.trainer._results
        if results and not next(iter(results.values())).has_reset:
            for value in results.values():
                if not value.meta.on_epoch:  # those are still being averaged
                    value.reset()
