"""Capture of what an update computes: one graph by `torch.compile`, which a GPU replays as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bayes_rl.errors import check

MODES = ("none", "default", "reduce-overhead", "cudagraphs")


REPLAYED = ("reduce-overhead", "cudagraphs")
"""Modes that record CUDA graphs: of compiled code, or of torch's own kernels, which needs no compiler."""


BACKEND = "inductor"  # what compiles; the tests also take torch's debugging ones


def compile_update(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """`function` of tensors and constants, whole, with the random numbers that it has without capture.

    Args:
        function: without side effects on tensors, and without questions to the device.
        mode: one of `MODES`.

    Returns:
        The function itself for `none`. What a recorded graph returns is copied: its next replay writes there again.
    """
    if mode == "none":
        return function
    backend: Any = "cudagraphs" if mode == "cudagraphs" else BACKEND
    options: Any = {"fallback_random": True, "triton.cudagraphs": mode in REPLAYED} if backend == "inductor" else None
    compiled = torch.compile(function, backend=backend, dynamic=False, fullgraph=True, options=options)
    if mode not in REPLAYED:
        return compiled

    def replayed(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, compiled(*arguments))

    return replayed


def check_capture(mode: str, device: torch.device, accumulated: int) -> None:
    """Raise `ConfigError` unless a run on this machine can capture its updates so.

    Args:
        mode: one of `MODES`.
        device: of the learner.
        accumulated: minibatches whose gradients are added up.
    """
    name, cuda, recorded = "model.compile", device.type == "cuda", mode in REPLAYED
    check(cuda or not recorded, name, mode, f"records CUDA graphs, but the device is {device.type}; use default")
    rule = "has room for one minibatch's gradients; drop --trainer.accumulate_grad_batches, or use default"
    check(accumulated == 1 or not recorded, name, mode, rule)
    compilers = [os.environ.get("CC" if cuda else "CXX"), *(("cc", "gcc", "clang") if cuda else ("g++", "clang++"))]
    found = mode in ("none", "cudagraphs") or any(one and shutil.which(one) for one in compilers)
    rule = f"needs a compiler of C or C++, and there is none; use {'cudagraphs' if cuda else 'none'}"
    check(found, name, mode, rule)
