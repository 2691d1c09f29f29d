"""Cost of protecting finished tasks: the EWC penalty in a training step, and the registration of a task.

    python -m benchmarks consolidation [--rounds 40] [--steps 10] [--threads 1 2]

An agent of Nature's size with its penalty against the same agent without, in short turns in one process, batch 32. Then
the seconds that the Fisher diagonal of 2000 samples takes, with actors and critics protected.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from bayes_rl.continual import EWC, TaskSamples
from benchmarks.runner import Benchmark, Cell, Options, Row
from benchmarks.speed.bayesian_heads import ACTIONS, SHAPES, compare, make_agent, updater

SAMPLES = 2000


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the one cell of this benchmark."""
    return [{"encoder": "nature"}]


def measure(cell: Cell, options: Options) -> Row:
    """Register a task with each number of threads, then compare updates with and without the penalty."""
    torch.set_num_threads(1)
    agents = {
        name: make_agent("nature", consolidation={"method": name}, num_tasks=2) for name in ("online_ewc", "none")
    }
    keeper, twin = agents["online_ewc"].consolidator, agents["online_ewc"].twin
    assert isinstance(keeper, EWC)
    observation = torch.randint(0, 255, (SAMPLES, *SHAPES["nature"]), dtype=torch.uint8)
    action = torch.randint(ACTIONS, (SAMPLES,))
    result: Row = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for threads in options.threads:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        keeper.end_task(twin, TaskSamples(observation, action, None, torch.Generator().manual_seed(0)))
        result[f"registration_seconds_{threads}_threads"] = round(time.perf_counter() - start, 1)
    result["registration_more_memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    torch.set_num_threads(1)
    updates = {name: updater(agent, "nature") for name, agent in agents.items()}
    result |= {f"penalty_{key}": value for key, value in compare(updates, options.rounds, options.steps).items()}
    result["protected_weights"] = sum(keeper.ewc.anchor(name).numel() for name in keeper.ewc.names)
    result["kept_mib"] = round(keeper.memory_bytes / 2**20, 1)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the updates of a turn and the threads of the registration."""
    parser.add_argument("--steps", type=int, default=10, help="updates per turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for the registration")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    add_arguments=add_arguments,
    shared={"rounds": 40},
    facts=lambda options: {"batch": 32, "samples": SAMPLES},
)
