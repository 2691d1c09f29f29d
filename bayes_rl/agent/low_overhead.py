"""Reduction of the time that Lightning, the memory allocator and denormal numbers add to every update.

With a small network this time is a large share of an update. No result changes, except for numbers below 1e-38. The
measurements are in `docs/results/learner.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler

NOTHING = contextlib.nullcontext()
"""Context manager without effect, shared by all hooks that are not profiled."""


UPDATE_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
"""Hooks of a callback that Lightning calls at every update."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameter numbers from glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors for the tensors of the next update.

    By default, glibc returns large freed blocks to the system, which clears and maps each page again for the next
    update. With tensors of tens of megabytes, this takes a third of an update. The price: the process never shrinks
    below its largest size. With another C library or system, the function has no effect.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # these mean another C library or system
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flush denormal numbers (below 1e-38) to zero in this thread, inside the context.

    If a gradient becomes zero, for example because a unit is off, Adam's average of the gradient shrinks to the
    smallest denormal number and remains there. A processor needs a hundred times as long for a denormal number as for
    another number. After 26 000 updates of the quickstart, a third of all averages were denormal, and a step of the
    optimizer took four times as long (`docs/results/denormals.json`).

    Yields:
        None. At exit, the thread's previous mode is restored.
    """
    was_flushing = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def flush_denormals_in_workers() -> None:
    """Start torch's worker threads with denormal numbers (below 1e-38) flushed to zero for the process's lifetime.

    Worker threads inherit the mode of the thread that starts them. The function has no effect on threads that have
    started before.
    """
    with flushed_denormals():
        torch.ones(2**20).add_(1.0)  # large enough for torch to use, and hence start, its worker threads


def pass_over_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Make Lightning skip the hooks of every update that a callback does not override.

    Lightning formats a name and opens a context for every call. With dozens of callbacks, this takes longer than the
    work of the callbacks.

    Args:
        callbacks: callbacks of the trainer. A hook that a callback does not override becomes None on that callback.
    """
    for callback in callbacks:
        for name in UPDATE_HOOKS:
            if getattr(getattr(callback, name), "__func__", None) is getattr(Callback, name):
                setattr(callback, name, None)


def remember_signature(function: Any) -> None:
    """Store the signature of a function on the function, where `inspect` looks first.

    Lightning asks `inspect` for the parameters of `training_step` at every update, which otherwise parses them anew.

    Args:
        function: function of a class, not a bound method.
    """
    function.__signature__ = inspect.signature(function)


class NoProfiler(PassThroughProfiler):
    """Profiler that measures nothing and opens no new context for each of the forty hooks of an update."""

    def profile(self, action_name: str) -> Any:
        """Return the shared context without effect.

        Args:
            action_name: name of the hook, ignored.

        Returns:
            `NOTHING`.
        """
        return NOTHING


class LowOverheadModule(pl.LightningModule):
    """LightningModule with little overhead around its updates."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and set Lightning's hook name without torch's search for parameters."""
        if name == "_current_fx_name":  # Lightning sets the name before and after every hook, so speed matters
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        """Keep freed memory, store a signature, skip idle hooks, and replace the default profiler by `NoProfiler`."""
        super().on_fit_start()
        keep_freed_memory()
        remember_signature(type(self).training_step)
        pass_over_idle_hooks(self.trainer.callbacks)  # type: ignore[attr-defined]
        if type(self.trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
            self.trainer.profiler = NoProfiler()  # type: ignore[attr-defined]

    def on_fit_end(self) -> None:
        """Restore the hooks that `on_fit_start` has removed from the callbacks."""
        super().on_fit_end()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            for name in UPDATE_HOOKS:
                if getattr(callback, name) is None:
                    delattr(callback, name)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reset the logged values of the previous update, which Lightning would read again after every later update.

        Args:
            batch: minibatch of the update, passed on to Lightning.
            batch_idx: number of the update within the epoch.
        """
        super().on_train_batch_start(batch, batch_idx)
        results = self.trainer._results
        if results and not next(iter(results.values())).has_reset:
            for value in results.values():
                if not value.meta.on_epoch:  # Lightning averages a value with on_epoch until the epoch ends
                    value.reset()
