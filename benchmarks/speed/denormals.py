"""Cost of numbers below 1e-38: a step of the optimizer on a checkpoint's averages, with them and with them flushed.

    python -m benchmarks denormals runs/quickstart/version_0/checkpoints/last.ckpt [--threads 1] [--rounds 100]

Gradients are zero, as are those of the weights whose averages became that small. Results are medians over turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bayes_rl.agent.low_overhead import flush_denormals_in_workers, flushed_denormals
from benchmarks.runner import Benchmark, Cell, Options, Row


def optimizer_of(state: dict[str, dict[str, torch.Tensor]]) -> torch.optim.AdamW:
    """Return Adam with a copy of these averages, for weights that do not change."""
    parameters = [torch.nn.Parameter(torch.zeros_like(values["exp_avg"])) for values in state.values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    for parameter, values in zip(parameters, state.values(), strict=True):
        optimizer.state[parameter] = {name: value.clone() for name, value in values.items()}
        parameter.grad = torch.zeros_like(parameter)
    return optimizer


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the one cell of this benchmark."""
    return [{"optimizer": "AdamW"}]


def measure(cell: Cell, options: Options) -> Row:
    """Measure steps with denormal numbers and with denormal numbers flushed, in turns."""
    torch.set_num_threads(options.threads)
    state = torch.load(options.checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    averages = torch.cat([values["exp_avg"].flatten() for values in state.values()])
    share = ((averages != 0) & (averages.abs() < torch.finfo(averages.dtype).tiny)).float().mean().item()
    flush_denormals_in_workers()
    contexts: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "kept": contextlib.nullcontext,
        "flushed": flushed_denormals,
    }
    arms = {name: (optimizer_of(state), context) for name, context in contexts.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name, (optimizer, context) in arms.items():
            start = time.perf_counter()
            with context():
                optimizer.step()
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {f"{name}_ms": round(statistics.median(values), 3) for name, values in times.items()}
    return {"share_of_averages": round(share, 3), **medians}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint."""
    parser.add_argument("checkpoint", type=Path)


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    add_arguments=add_arguments,
    shared={"threads": 1, "rounds": 100},
)
