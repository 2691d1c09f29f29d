"""What distributions over weights cost: a training step with Bayesian heads against the same network with plain heads.

    python benchmarks/bayes_cost.py [--rounds 40] [--steps 10]

Both agents take short turns in one process, on the same minibatches, batch 32, one thread; the median ratio over rounds
of whole updates (targets, loss, backward, optimizer, moving average) is printed for each encoder and written to
`docs/results/bayesian_heads.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from common import origin, write

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.types import Batch, Transition

BATCH, ACTIONS = 32, 4
SHAPES = {"nature": (4, 84, 84), "impala": (4, 84, 84), "minatar": (4, 10, 10), "mlp": (8,)}
HIDDEN = {"nature": 512, "impala": 256, "minatar": 128, "mlp": 128}
MORE = {"nature": 1, "impala": 1, "minatar": 10, "mlp": 25}  # turns of short steps, which what else runs disturbs most


def minibatch(shape: tuple[int, ...]) -> Batch:
    """Random transitions."""
    observations = torch.randint(0, 255, (2, BATCH, *shape), dtype=torch.uint8) if len(shape) == 3 else None
    before, after = observations if observations is not None else torch.randn(2, BATCH, *shape)
    numbers = torch.randint(ACTIONS, (BATCH,)), torch.randn(BATCH), torch.full((BATCH,), 0.95)
    return Batch(Transition(before, *numbers, after), 10_000, 0)


def make_agent(encoder: str, **settings: Any) -> VariationalActorCritic:
    """An agent outside of Lightning's loop."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_dim": HIDDEN[encoder], "num_actions": ACTIONS}
    agent = VariationalActorCritic(encoder=encoder, observation_shape=SHAPES[encoder], **sizes, **settings)
    agent._trainer = MagicMock(log_every_n_steps=0, gradient_clip_val=None, global_step=1)
    return agent


def updater(agent: VariationalActorCritic, encoder: str) -> Callable[[], None]:
    """One whole update of an agent."""
    optimizer = agent.configure_optimizers()
    batch = minibatch(SHAPES[encoder])

    def update() -> None:
        optimizer.zero_grad()
        agent.training_step(batch, 0).backward()
        agent.on_before_optimizer_step(optimizer)
        optimizer.step()
        agent.update_moving_average()

    return update


def seconds(update: Callable[[], None], steps: int) -> float:
    """Wall-clock of `steps` updates."""
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return time.perf_counter() - start


def compare(agents: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, object]:
    """Milliseconds of an update of two agents in turns of `steps` updates, and their ratio, first to second."""
    for update in agents.values():
        seconds(update, 5)  # warm up
    times: dict[str, list[float]] = {name: [] for name in agents}
    for round in range(rounds):
        for name in sorted(agents, reverse=round % 2 == 1):
            times[name].append(1000 * seconds(agents[name], steps) / steps)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        **{f"{name}_ms": round_to(statistics.median(values)) for name, values in times.items()},
        "ratio_median": round_to(statistics.median(ratios)),
        "ratio_quartiles": [round_to(q) for q in statistics.quantiles(ratios, n=4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each agent, more where steps are short")
    parser.add_argument("--steps", type=int, default=10, help="updates per turn")
    parser.add_argument("--encoders", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--output", type=Path, default=Path("docs/results/bayesian_heads.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {
        **origin(" ".join(["python", *sys.argv])),
        "batch": BATCH,
        "threads": 1,
    }
    for encoder in options.encoders:
        agents = {name: updater(make_agent(encoder, bayesian=name), encoder) for name in ("heads", "none")}
        result[encoder] = compare(agents, options.rounds * MORE[encoder], options.steps)
        print(encoder, result[encoder], flush=True)
    write(options.output, result)


def round_to(value: float) -> float:
    """Three decimals."""
    return round(value, 3)


if __name__ == "__main__":
    main()
