"""What keeping finished tasks costs: the EWC penalty in a training step, and registering a task.

    python benchmarks/consolidation_cost.py [--rounds 40] [--steps 10] [--threads 1 2]

A Nature-size agent with its penalty against the same agent without, in short turns in one process, batch 32; then the
seconds that the Fisher diagonal of 2000 samples takes, actors and critics protected. Written to
`docs/results/consolidation.json`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import torch
from bayes_cost import ACTIONS, SHAPES, compare, make_agent, updater
from common import origin, write

SAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each agent")
    parser.add_argument("--steps", type=int, default=10, help="updates per turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for the registration")
    parser.add_argument("--output", type=Path, default=Path("docs/results/consolidation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    agents = {name: make_agent("nature", consolidation=name, num_tasks=2) for name in ("online_ewc", "none")}
    keeper, twin = agents["online_ewc"].consolidator, agents["online_ewc"].twin
    assert keeper is not None
    observation = torch.randint(0, 255, (SAMPLES, *SHAPES["nature"]), dtype=torch.uint8)
    action = torch.randint(ACTIONS, (SAMPLES,))
    result: dict[str, object] = {**origin(" ".join(["python", *sys.argv])), "batch": 32, "samples": SAMPLES}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for threads in options.threads:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        keeper.consolidate(twin, observation, action, None, torch.Generator().manual_seed(0))
        result[f"registration_seconds_{threads}_threads"] = round(time.perf_counter() - start, 1)
        print(threads, "threads:", result[f"registration_seconds_{threads}_threads"], "s", flush=True)
    result["registration_more_memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    torch.set_num_threads(1)
    updates = {name: updater(agent, "nature") for name, agent in agents.items()}
    result["penalty"] = compare(updates, options.rounds, options.steps)
    result["protected_weights"] = sum(keeper.ewc.anchor(name).numel() for name in keeper.ewc.names)
    result["kept_mib"] = round(keeper.memory_bytes / 2**20, 1)
    print(result["penalty"], flush=True)
    write(options.output, result)


if __name__ == "__main__":
    main()
