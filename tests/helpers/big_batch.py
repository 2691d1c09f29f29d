"""Training of the same agent by one process with whole batches, or by ranks with their parts of them."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from bayes_rl.agent import compilation
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.bayes import ops
from bayes_rl.networks.random_features import variance_over_ranks
from bayes_rl.training.callbacks import graceful_stop
from bayes_rl.training.callbacks.graceful_stop import GracefulStop
from bayes_rl.training.rank_strategy import RankStrategy
from bayes_rl.types import Batch
from bayes_rl.utils import shared_memory
from bayes_rl.utils.ranks import OwnNoise, average_over_ranks, average_values_over_ranks, num_ranks, own_rank
from bayes_rl.utils.shared_memory import SharedMemory
from bayes_rl.utils.stop_signals import STOP, Stopped
from tests.helpers.agents import EWC, LOW_RANK, MEMBERS, NATURAL, PROCESS, EachUpdate, fit, make_batch, make_module
from tests.helpers.options import merged

BATCH, UPDATES, NUM_TASK_SAMPLES = 32, 50, 20
RANDOM_PAIRS: dict[str, Any] = {"objective": {"update_pairs": "random"}}
LEARNED = {"likelihood": {"family": "learned_gaussian"}}
AGENTS: dict[str, dict[str, Any]] = {
    "mean_field": {},
    "members": MEMBERS,
    "low_rank": LOW_RANK,
    "every_weight": merged({"network": {"bayesian": "all"}}, LEARNED),
    "process": merged(PROCESS, LEARNED),
    "natural": NATURAL,
    "ewc": EWC,
    "vcl": {"consolidation": {"method": "vcl", "ewc_lambda": 1.0, "fisher_samples": 20}, "num_tasks": 2},
    "compiled": {"compile": "default"},
    "random_pairs": merged(RANDOM_PAIRS, EWC),
    "shared_random_pairs": merged(RANDOM_PAIRS, MEMBERS, {"network": {"shared_trunk": True}}),
    "moving_average": {"objective": {"target": "ema"}},
    "by_ddp": merged(RANDOM_PAIRS, MEMBERS),  # ranks on several machines and on GPUs use DDP
    "accumulated": merged(RANDOM_PAIRS, EWC),  # an update by two minibatches, of which each trains one pair
}

CASES = [(agent, double) for agent in AGENTS for double in (True, False) if agent != "compiled" or not double]
"""Names of agents, with whether they train in float64. A compiled update would turn features to float32."""


def make_batches() -> list[Batch]:
    torch.manual_seed(7)
    return [make_batch(BATCH) for _ in range(UPDATES)]


@contextlib.contextmanager
def noise_of_samples() -> Iterator[None]:
    """Number the noise of outputs by the samples of the whole batch: each rank takes the part of its own samples."""
    part = BATCH // num_ranks()

    def standard_normal(like: Tensor) -> Tensor:
        (axis,) = [axis for axis, size in enumerate(like.shape) if size == part]
        whole = [BATCH if number == axis else size for number, size in enumerate(like.shape)]
        return torch.randn(whole, dtype=like.dtype).narrow(axis, own_rank() * part, part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "standard_normal", standard_normal)
        patch.setattr(OwnNoise, "drawing", lambda self: contextlib.nullcontext())  # all ranks draw whole batches
        yield


def trained(agent: str, double: bool) -> dict[str, Tensor]:
    """Return the state of an agent after `UPDATES` updates, of this process's part of each batch."""
    with pytest.MonkeyPatch.context() as patch, noise_of_samples(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(compilation, "BACKEND", "aot_eager")  # generating code takes longer than the training
        if double:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of features, before the heads
            torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(0)
            module, batches = make_module(AGENTS[agent]), make_batches()
            part = slice(own_rank() * BATCH // num_ranks(), (own_rank() + 1) * BATCH // num_ranks())
            cut: Callable[[Tensor], Tensor] = lambda x: x[part]  # noqa: E731
            own = [batch._replace(transition=batch.transition.map(cut)) for batch in batches]
            torch.manual_seed(1)
            several: dict[str, Any] = {"accumulate_grad_batches": 2 if agent == "accumulated" else 1}
            if num_ranks() > 1:
                options = {"bucket_cap_mb": 25} if agent == "by_ddp" else {}
                several |= {"strategy": RankStrategy(**options), "devices": num_ranks()}
            fit(module, own, EachUpdate(_end_a_task), **several, precision="64-true" if double else "32-true")
        finally:
            torch.set_default_dtype(torch.float32)
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _end_a_task(trainer: pl.Trainer, module: VariationalActorCritic) -> None:
    """Consolidate in the middle of training, if there is a method that does so once a task."""
    method = module.consolidation
    if method.method != "none" and not method.consolidate_every and trainer.global_step == UPDATES // 2:
        module.consolidate()


def trained_with_faults() -> dict[str, Any]:
    """Train on batches of which one has a reward, and one a loss with finite gradients, that is not finite.

    Both faults come to the last rank alone.
    """
    torch.manual_seed(0)
    module, batches = make_module(), make_batches()[:8]
    if own_rank() == num_ranks() - 1:
        batches[2].transition.reward[3] = float("nan")
        record = module.guard.record_loss

        def recorded(loss: Tensor, parts: dict[str, Tensor]) -> Tensor:
            return record(loss + float("inf") if module.global_step == 5 else loss, parts)

        module.guard.record_loss = recorded  # type: ignore[method-assign]
    fit(module, batches, strategy=RankStrategy(), devices=num_ranks())
    state = {name: value.detach().clone() for name, value in module.twin.state_dict().items()}
    return {"skipped": module.guard.skipped, "state": state}


EXCHANGES: list[tuple[Any, str]] = [(dist, "all_reduce"), (dist, "broadcast"), (SharedMemory, "combine")]
"""Functions by which ranks exchange tensors."""


class Signal(pl.Callback):
    """Signal to the last rank during an update, and record of what the ranks exchange."""

    def __init__(self, update: int) -> None:
        self.update, self.exchanges = update, [0]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.exchanges[-1] += 1
                return function(*args, **kwargs)

            return call

        for owner, name in EXCHANGES:
            setattr(owner, name, counted(getattr(owner, name)))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.exchanges.append(0)
        if trainer.global_step == self.update and own_rank() == num_ranks() - 1:
            STOP.received = signal.SIGTERM


def trained_until_signal() -> tuple[int, list[int]]:
    """Train until a signal to the last rank stops all, and return the number of updates, and of exchanges in each."""
    callback = Signal(update=9)
    batches = make_batches()
    module = make_module(PROCESS)
    settings = {"strategy": RankStrategy(), "devices": num_ranks(), "log_every_n_steps": 5}
    with STOP.listening(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(graceful_stop, "SECONDS", 1e6)
        for owner, name in EXCHANGES:  # the callback replaces them
            patch.setattr(owner, name, getattr(owner, name))
        try:
            fit(module, batches, callback, GracefulStop(), **settings)
        except Stopped:
            pass
        finally:
            STOP.received = None
    return module.trainer.global_step, callback.exchanges[1:]


def averages() -> dict[str, Tensor]:
    """Return the averages of numbers that differ by rank, and of a matrix with a vector."""
    rank = float(own_rank())
    named = average_values_over_ranks({"whole": rank, "tensor": torch.tensor(3 * rank)}, torch.device("cpu"))
    matrix, vector = average_over_ranks(torch.full((2, 3), rank), torch.arange(4.0) * rank)
    return {**named, "matrix": matrix, "vector": vector}


def rows() -> Tensor:
    """Return the rows of all ranks. The second column grows from rank to rank, and the third one never changes."""
    numbers = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    numbers[:, 1] += torch.arange(8.0)
    numbers[:, 2] = 0.1
    return numbers


def variance() -> Tensor:
    """Return the variance over the rows of all ranks, of which this rank has its part."""
    return variance_over_ranks(rows().chunk(num_ranks())[own_rank()])


class Wrapped(pl.Callback):
    """Record of whether DDP wraps the agent."""

    found: bool

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found = trainer.model is not pl_module


def wrapped() -> dict[str, bool]:
    """Return whether DDP wraps an agent: as usual, with options of DDP, and if rank 0 can make no memory."""
    found = {}
    for name in ("as usual", "with options", "without memory"):
        callback, options = Wrapped(), {"bucket_cap_mb": 25} if name == "with options" else {}
        with pytest.MonkeyPatch.context() as patch:
            if name == "without memory":
                patch.setattr(shared_memory, "make_file_and_folder", lambda *_: (-1, ""))
            fit(make_module(), make_batches()[:1], callback, strategy=RankStrategy(**options), devices=num_ranks())
        found[name] = callback.found
    return found


class OfRank(NamedTuple):
    """Results of one rank."""

    trained: dict[tuple[str, bool], dict[str, Tensor]]
    faults: dict[str, Any]
    until_signal: tuple[int, list[int]]
    averages: dict[str, Tensor]
    variance: Tensor
    wrapped: dict[str, bool]


def train_all(cases: list[tuple[str, bool]]) -> OfRank:
    """Train the agents of all cases, one with faults, and one until a signal, in a group of processes."""
    dist.init_process_group("gloo")
    agents = {case: trained(*case) for case in cases}
    return OfRank(agents, trained_with_faults(), trained_until_signal(), averages(), variance(), wrapped())
