"""Cost of distributions over weights: an update of an agent with distributions against one with plain layers.

    python -m benchmarks bayesian_heads [--rounds 40] [--steps 10] [--arms gaussian_process heads all ivon]

The arms are a Gaussian process with a learned noise of returns, Bayesian heads, Bayesian layers everywhere by local
reparameterisation (`all`), and a Gaussian of every weight by natural gradients (`ivon`). An arm and the plain agent
take short turns in one process, on the same minibatches, batch 32, one thread. The result is the median ratio over
rounds of whole updates (targets, loss, backward, optimizer, moving average), for each encoder and arm. N grows at every
update, as it does until a replay is full. The process also acts in turns with the plain agent, for 16 environments, the
one by draws and the other greedily.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from unittest.mock import MagicMock

import torch

from bayes_rl.agent.low_overhead import keep_freed_memory
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.networks import NetworkSettings
from bayes_rl.types import Batch, Transition
from benchmarks.runner import Benchmark, Cell, Options, Row

BATCH, ACTIONS = 32, 4
SHAPES = {"nature": (4, 84, 84), "impala": (4, 84, 84), "minatar": (4, 10, 10), "mlp": (8,)}
HIDDEN = {"nature": 512, "impala": 256, "minatar": 128, "mlp": 128}
ARMS: dict[str, dict[str, Any]] = {
    "gaussian_process": {
        "bayesian": "gaussian_process",
        "prior_function_scale": 1.0,
        "likelihood": {"family": "return_gaussian"},
    },
    "heads": {"bayesian": "heads"},
    "all": {"bayesian": "all"},
    "ivon": {"bayesian": "none", "optimizer": {"family": "ivon"}},
}
"""Options of the agents with distributions."""
MORE = {"nature": 1, "impala": 1, "minatar": 10, "mlp": 25}
"""Factors of the rounds: other processes disturb short updates most."""


def minibatch(shape: tuple[int, ...]) -> Batch:
    """Return random transitions."""
    observations = torch.randint(0, 255, (2, BATCH, *shape), dtype=torch.uint8) if len(shape) == 3 else None
    before, after = observations if observations is not None else torch.randn(2, BATCH, *shape)
    numbers = torch.randint(ACTIONS, (BATCH,)), torch.randn(BATCH), torch.full((BATCH,), 0.95)
    return Batch(Transition(before, *numbers, after), 10_000, 0)


def make_agent(encoder: str, **options: Any) -> VariationalActorCritic:
    """Return an agent outside of Lightning's loop, by options of the network and of other groups."""
    torch.manual_seed(0)
    of_network = {field.name for field in fields(NetworkSettings)}
    settings = {key: value for key, value in options.items() if key not in of_network}
    network = NetworkSettings(encoder, HIDDEN[encoder], **{k: v for k, v in options.items() if k in of_network})
    shapes: dict[str, Any] = {"observation_shape": SHAPES[encoder], "num_actions": ACTIONS}
    agent = VariationalActorCritic(network, **shapes, **settings)
    agent._trainer = MagicMock(log_every_n_steps=0, gradient_clip_val=None, global_step=0)
    agent._trainer.datamodule = None  # no replay: the process chooses its units by the first minibatch
    return agent


def updater(agent: VariationalActorCritic, encoder: str) -> Callable[[], None]:
    """Return a function that does one whole update of an agent."""
    optimizer = agent.configure_optimizers()
    batch = minibatch(SHAPES[encoder])

    def update() -> None:
        nonlocal batch
        batch = batch._replace(num_data=batch.num_data + 1)
        optimizer.zero_grad()
        agent.training_step(batch, 0).backward()
        agent.on_after_backward()
        agent.on_before_optimizer_step(optimizer)
        optimizer.step()
        agent.update_moving_average()
        agent.trainer.global_step += 1  # type: ignore[misc]  # a mock: what happens every few updates has its share

    return update


def actor(agent: VariationalActorCritic, encoder: str, by_draw: bool) -> Callable[[], None]:
    """Return a function that chooses the actions of 16 environments."""
    observations = minibatch(SHAPES[encoder]).transition.observation[:16]

    def act() -> None:
        if by_draw:
            agent.act_by_draw(observations, list(range(16)))
        else:
            agent.act(observations)

    return act


def seconds(update: Callable[[], None], steps: int) -> float:
    """Return the wall-clock time of `steps` updates."""
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return time.perf_counter() - start


def exclusive_quartiles(ratios: list[float]) -> list[float]:
    """Return the quartiles of ratios, which are all equal for a single round."""
    return [round_to(q) for q in (statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3)]


def compare(agents: dict[str, Callable[[], None]], rounds: int, steps: int) -> dict[str, Any]:
    """Measure two agents in turns of `steps` updates: milliseconds of an update, and the ratio of first to second."""
    for update in agents.values():
        seconds(update, 5)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in agents}
    for round in range(rounds):
        for name in sorted(agents, reverse=round % 2 == 1):
            times[name].append(1000 * seconds(agents[name], steps) / steps)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        **{f"{name}_ms": round_to(statistics.median(values)) for name, values in times.items()},
        "ratio_median": round_to(statistics.median(ratios)),
        "ratio_quartiles": exclusive_quartiles(ratios),
    }


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return one cell for each encoder and arm."""
    return [{"encoder": encoder, "arm": arm} for encoder in options.encoders for arm in options.arms]


def measure(cell: Cell, options: Options) -> Row:
    """Compare an agent with distributions with the plain one on one encoder."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `fit` does
    encoder, arm = cell["encoder"], cell["arm"]
    agents = {arm: make_agent(encoder, **ARMS[arm]), "none": make_agent(encoder, bayesian="none")}
    rounds = options.rounds * MORE[encoder]
    row = compare({name: updater(agent, encoder) for name, agent in agents.items()}, rounds, options.steps)
    if arm == "gaussian_process":
        of_acting = {name: actor(agent, encoder, name == arm) for name, agent in agents.items()}
        row |= {f"acting_{key}": value for key, value in compare(of_acting, rounds, options.steps).items()}
    return row


def round_to(value: float) -> float:
    """Round to three decimals."""
    return round(value, 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the updates of a turn, the encoders and the arms."""
    parser.add_argument("--steps", type=int, default=10, help="updates per turn")
    parser.add_argument("--encoders", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    add_arguments=add_arguments,
    shared={"rounds": 40},
    facts=lambda options: {"batch": BATCH, "threads": 1},
)
