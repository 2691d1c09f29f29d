"""What distributions over weights cost: a training step with Bayesian heads against the same network with plain heads.

    python benchmarks/bayes_cost.py [--rounds 40] [--steps 10]

Both agents take short turns in one process, on the same minibatches, batch 32, one thread; the median ratio over rounds
of whole updates (targets, loss, backward, optimizer, moving average) is printed for each encoder and written to
`docs/results/bayes_cost.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
from common import origin, write

from bayes_rl.module import VariationalActorCritic
from bayes_rl.types import Batch, Transition

BATCH, ACTIONS = 32, 4
SHAPES = {"nature": (4, 84, 84), "impala": (4, 84, 84), "minatar": (4, 10, 10), "mlp": (8,)}
HIDDEN = {"nature": 512, "impala": 256, "minatar": 128, "mlp": 128}


def minibatch(shape: tuple[int, ...]) -> Batch:
    """Random transitions."""
    observations = torch.randint(0, 255, (2, BATCH, *shape), dtype=torch.uint8) if len(shape) == 3 else None
    before, after = observations if observations is not None else torch.randn(2, BATCH, *shape)
    numbers = torch.randint(ACTIONS, (BATCH,)), torch.randn(BATCH), torch.full((BATCH,), 0.95)
    return Batch(Transition(before, *numbers, after), 10_000, 0)


def updater(encoder: str, bayesian: str) -> Callable[[], None]:
    """One whole update of an agent, without Lightning's loop."""
    torch.manual_seed(0)
    agent = VariationalActorCritic(
        encoder=encoder,
        hidden_dim=HIDDEN[encoder],
        bayesian=bayesian,
        observation_shape=SHAPES[encoder],
        num_actions=ACTIONS,
    )
    agent._trainer = MagicMock(log_every_n_steps=0, gradient_clip_val=None, global_step=1)
    optimizer = agent.configure_optimizers()
    batch = minibatch(SHAPES[encoder])

    def update() -> None:
        optimizer.zero_grad()
        agent.training_step(batch, 0).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(*agent._averaged, agent.hparams.tau)

    return update


def seconds(update: Callable[[], None], steps: int) -> float:
    """Wall-clock of `steps` updates."""
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each agent")
    parser.add_argument("--steps", type=int, default=10, help="updates per turn")
    parser.add_argument("--encoders", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--output", type=Path, default=Path("docs/results/bayes_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {
        **origin(" ".join(["python", *sys.argv])),
        "batch": BATCH,
        "threads": 1,
    }
    for encoder in options.encoders:
        agents = {name: updater(encoder, name) for name in ("heads", "none")}
        for update in agents.values():
            seconds(update, 5)  # warm up
        times: dict[str, list[float]] = {name: [] for name in agents}
        for round in range(options.rounds):
            for name in sorted(agents, reverse=round % 2 == 1):
                times[name].append(1000 * seconds(agents[name], options.steps) / options.steps)
        ratios = [a / b for a, b in zip(times["heads"], times["none"], strict=True)]
        result[encoder] = {
            "bayesian_ms": round_to(statistics.median(times["heads"])),
            "plain_ms": round_to(statistics.median(times["none"])),
            "ratio_median": round_to(statistics.median(ratios)),
            "ratio_quartiles": [round_to(q) for q in statistics.quantiles(ratios, n=4)],
        }
        print(encoder, result[encoder], flush=True)
    write(options.output, result)


def round_to(value: float) -> float:
    """Three decimals."""
    return round(value, 3)


if __name__ == "__main__":
    main()
