"""What numbers below 1e-38 cost: a step of the optimizer from a checkpoint's averages, with them and with them flushed.

    python benchmarks/denormals.py runs/quickstart/version_0/checkpoints/last.ckpt [--threads 1] [--rounds 100]

Gradients are zero, as those of the weights are whose averages got so small. Medians of turns are printed and written to
`docs/results/denormals.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import RESULTS, origin, write

from bayes_rl.agent.low_overhead import flush_denormals_in_workers, flushed_denormals


def optimizer_of(state: dict[str, dict[str, torch.Tensor]]) -> torch.optim.AdamW:
    """Adam with a copy of these averages, of weights that stay where they are."""
    parameters = [torch.nn.Parameter(torch.zeros_like(values["exp_avg"])) for values in state.values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    for parameter, values in zip(parameters, state.values(), strict=True):
        optimizer.state[parameter] = {name: value.clone() for name, value in values.items()}
        parameter.grad = torch.zeros_like(parameter)
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each")
    parser.add_argument("--output", type=Path, default=RESULTS / "denormals.json")
    options = parser.parse_args()
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
    command = " ".join(["python", *sys.argv])
    result = {**origin(command), "threads": options.threads, "share_of_averages": round(share, 3), **medians}
    print(result)
    write(options.output, result)


if __name__ == "__main__":
    main()
