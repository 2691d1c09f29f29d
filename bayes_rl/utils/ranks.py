"""Ranks: the processes of one run, and what they exchange beside gradients. One process alone exchanges nothing.

A run of several processes is a run of torch's process group, which Lightning makes. Ranks of one machine exchange
tensors by memory that they share, once `share_memory` has been called; all else goes through the process group. All
ranks must call the functions that exchange something in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bayes_rl.utils.shared_memory import SharedMemory

T = TypeVar("T")

_memory: SharedMemory | None = None  # while ranks of one machine share memory


def num_ranks() -> int:
    """Return the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def share_memory(capacity: int, timeout: float | None) -> bool:
    """Exchange tensors on processors by shared memory until `unshare_memory`.

    Args:
        capacity: bytes that a rank exchanges at once; more are exchanged in parts.
        timeout: seconds of waiting for another rank after which an exchange fails; None waits for ever.

    Returns:
        Whether the ranks share memory now. They cannot if they are on several machines.
    """
    global _memory
    unshare_memory()
    _memory = SharedMemory.of_ranks(own_rank(), num_ranks(), capacity, timeout, gather_from_ranks)
    return _memory is not None


def unshare_memory() -> None:
    """Close the shared memory, if there is one, and exchange all tensors by the process group again."""
    global _memory
    if _memory is not None:
        _memory.close()
    _memory = None


def _combine(tensor: Tensor, largest: bool = False) -> None:
    """Replace a contiguous tensor by its sum over ranks, or by the largest of each number."""
    if _memory is not None and tensor.device.type == "cpu":
        _memory.combine([tensor], torch.maximum if largest else torch.add)
    else:
        dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)


def sum_over_ranks(*numbers: int) -> tuple[int, ...]:
    """Return the sum over ranks of each whole number."""
    if num_ranks() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.int64)
    _combine(total)
    return tuple(total.tolist())


def max_over_ranks(*numbers: int) -> tuple[int, ...]:
    """Return the largest over ranks of each whole number."""
    if num_ranks() == 1:
        return numbers
    largest = torch.tensor(numbers, dtype=torch.int64)
    _combine(largest, largest=True)
    return tuple(largest.tolist())


def average_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Return the mean over ranks of each tensor. A mean has the same bits on every rank.

    Args:
        tensors: of one dtype and one device.
    """
    means = list(tensors) if num_ranks() == 1 else [tensor.clone() for tensor in tensors]
    average_in_place(means)
    return means


def average_in_place(tensors: list[Tensor], key: int = 0) -> None:
    """Replace each tensor by its mean over ranks.

    The tensors have one dtype and one device, because they are exchanged together: an exchange takes about as long for
    ten small tensors as for one.

    Args:
        tensors: written in place.
        key: number of 32 bits that tells which tensors they are. Ranks that share memory compare it.
    """
    if num_ranks() == 1 or not tensors:
        return
    if _memory is not None and tensors[0].device.type == "cpu":
        _memory.combine(tensors, mean=True, key=key)
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    parts = together.div_(num_ranks()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def average_values_over_ranks(values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, Tensor | float]:
    """Return the mean over ranks of each named number, as float32 scalars on the device. All ranks name the same.

    One process alone gets its own numbers as they are: a GPU would wait for copies of Python's numbers.
    """
    if num_ranks() == 1:
        return dict(values)
    numbers = [torch.as_tensor(value, dtype=torch.float32, device=device).detach() for value in values.values()]
    return dict(zip(values, average_over_ranks(*numbers), strict=True))


def gather_from_ranks(value: T) -> list[T]:
    """Return the values of all ranks, in the order of their numbers. They are pickled, so they must be small."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


class OwnNoise:
    """Random numbers of one rank alone, beside those that all ranks draw alike from the default generator.

    The default generator of every rank has the same state. From it come the numbers that belong to the whole batch: the
    actor-critic pair that an update trains, the draws of all weights. The noise of the outputs belongs to a transition,
    so that each rank draws it from a state of its own.

    Args:
        seed: of this rank's numbers.
        device: of the tensors that hold the numbers.

    Attributes:
        state: of the generator, as bytes.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.state = torch.Generator(device).manual_seed(seed).get_state()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this rank's numbers within this block."""
        common = self._exchange(self.state)
        try:
            yield
        finally:
            self.state = self._exchange(common)

    def _exchange(self, state: Tensor) -> Tensor:
        """Set the state of the device's default generator, and return the state before."""
        if self._device.type == "cuda":
            before = torch.cuda.get_rng_state(self._device)
            torch.cuda.set_rng_state(state, self._device)
        else:
            before = torch.get_rng_state()
            torch.set_rng_state(state)
        return before
