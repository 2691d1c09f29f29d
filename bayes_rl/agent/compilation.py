"""Compilation of an update into one graph by `torch.compile`. A GPU can replay the graph as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bayes_rl.errors import check
from bayes_rl.networks.layer_factory import PLAIN

MODES = ("none", "default", "reduce-overhead", "cudagraphs")
"""Values of the option `model.compile`."""


REPLAYED = ("reduce-overhead", "cudagraphs")
"""Modes that record CUDA graphs.

`reduce-overhead` records compiled code. `cudagraphs` records torch's own kernels and needs no C or C++ compiler.
"""


BACKEND = "inductor"  # a module constant, so that the tests can select torch's debugging backends


def compile_update(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Compile a function of tensors and constants into one graph, with unchanged random numbers.

    Args:
        function: has no side effects on tensors and never waits for a value from the device.
        mode: one of `MODES`.

    Returns:
        The function itself for `none`, otherwise the compiled function. Tensors from a recorded graph are copies,
        because the next replay of the graph overwrites its outputs.
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


def check_capture(mode: str, device: torch.device, accumulated: int, bayesian: str = "none") -> None:
    """Check that a run on this machine can compile its updates by `mode`.

    Args:
        mode: one of `MODES`.
        device: device of the learner.
        accumulated: number of minibatches whose gradients are added up before one optimizer step.
        bayesian: value of the option `model.network.bayesian`.

    Raises:
        ConfigError: if the mode records CUDA graphs, and the device is not a GPU, gradients are accumulated or layers
            are Bayesian; or if the mode needs a compiler of C or C++ that is not installed.
    """
    name, cuda, recorded = "model.compile", device.type == "cuda", mode in REPLAYED
    check(cuda or not recorded, name, mode, f"records CUDA graphs, but the device is {device.type}; use default")
    problem = "has room for one minibatch's gradients; drop --trainer.accumulate_grad_batches, or use default"
    check(accumulated == 1 or not recorded, name, mode, problem)
    # On an H200 with torch 2.11, Bayesian layers had gradients of zero. The cause is cured (docs/results/gpu.md), but
    # the tests on a GPU have not been repeated since.
    problem = f"is not yet shown to train Bayesian layers (model.network.bayesian {bayesian}); use default"
    check(bayesian in PLAIN or not recorded, name, mode, problem)
    compilers = [os.environ.get("CC" if cuda else "CXX"), *(("cc", "gcc", "clang") if cuda else ("g++", "clang++"))]
    available = mode in ("none", "cudagraphs") or any(command and shutil.which(command) for command in compilers)
    problem = f"needs a compiler of C or C++, and there is none; use {'cudagraphs' if cuda else 'none'}"
    check(available, name, mode, problem)
