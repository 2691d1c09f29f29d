"""What Lightning does around every update, at a cost that a small network can bear.

None of it changes a result. The figures are in `docs/results/learner_throughput.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import PassThroughProfiler

NOTHING = contextlib.nullcontext()
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


class Unmeasured(PassThroughProfiler):
    """The profiler that measures nothing, without making a context of its own for each of forty hooks."""

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return NOTHING


class LeanModule(pl.LightningModule):
    """A LightningModule whose updates spend their time on what is learned."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # set before and after each hook; a module looks for parameters in it
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        """Measure nothing cheaply, unless something is to be measured; and keep the memory of freed tensors."""
        super().on_fit_start()
        keep_freed_memory()
        if type(self.trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
            self.trainer.profiler = Unmeasured()  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let go of what the update before has logged: Lightning would read it again after every one to come."""
        super().on_train_batch_start(batch, batch_idx)
        results = self.trainer._results
        if results and not next(iter(results.values())).has_reset:
            for value in results.values():
                if not value.meta.on_epoch:  # those are still being averaged
                    value.reset()
