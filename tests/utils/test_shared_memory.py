"""Ranks of one machine combine tensors by memory that they share. Here, the ranks are threads of one process."""

from __future__ import annotations

import functools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.errors import RunError
from bayes_rl.utils import shared_memory
from bayes_rl.utils.shared_memory import SharedMemory


def on_ranks(
    ranks: int, work: Callable[[SharedMemory, int], Any], capacity: int = 4096, timeout: float = 20
) -> list[Any]:
    """Return what a function of a memory and its rank returns on each rank; None on all if there is no memory."""
    texts, barrier = [""] * ranks, threading.Barrier(ranks, timeout=20)

    def gather(rank: int, text: str) -> list[str]:
        texts[rank] = text
        barrier.wait()
        found = list(texts)
        barrier.wait()
        return found

    def run(rank: int) -> Any:
        memory = SharedMemory.of_ranks(rank, ranks, capacity, timeout, functools.partial(gather, rank))
        if memory is None:
            return None
        try:
            return work(memory, rank)
        finally:
            memory.close()

    with ThreadPoolExecutor(ranks) as pool:
        return [future.result(60) for future in [pool.submit(run, rank) for rank in range(ranks)]]


def tensors_of(rank: int, seed: int) -> list[Tensor]:
    rng = np.random.default_rng([rank, seed])
    return [torch.from_numpy(rng.normal(size=shape)) for shape in ((3, 5), (), (1,), (2, 3, 4), (0,), (37,))]


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("capacity", [4096, 64], ids=["at once", "in parts"])
def test_sums_means_and_maxima_are_those_of_all_ranks(ranks: int, capacity: int) -> None:
    """Many exchanges in a row, of which each rank comes late to some: nothing is read too early or too late."""

    def work(memory: SharedMemory, rank: int) -> list[list[Tensor]]:
        found, rng = [], np.random.default_rng(rank)
        for seed in range(30):
            tensors = tensors_of(rank, seed)
            if rng.random() < 0.3:
                time.sleep(0.002)
            operation = torch.maximum if seed % 3 == 2 else torch.add
            memory.combine(tensors, operation, mean=seed % 3 == 1)
            found.append(tensors)
        return found

    results = on_ranks(ranks, work, capacity)
    for seed in range(30):
        of_ranks = [tensors_of(rank, seed) for rank in range(ranks)]
        for number, parts in enumerate(zip(*of_ranks, strict=True)):
            values = torch.stack(parts)
            if seed % 3 == 2:
                expected = values.amax(0) if values.numel() else values[0]
            else:
                expected = values.mean(0) if seed % 3 == 1 else values.sum(0)
            for rank in range(ranks):
                torch.testing.assert_close(results[rank][seed][number], expected, rtol=1e-14, atol=1e-15)
                assert torch.equal(results[rank][seed][number], results[0][seed][number])  # the same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16])
def test_numbers_keep_their_type(dtype: torch.dtype) -> None:
    def work(memory: SharedMemory, rank: int) -> Tensor:
        numbers = torch.arange(5).to(dtype) * (rank + 1)
        memory.combine([numbers])
        return numbers

    for found in on_ranks(3, work):
        assert torch.equal(found, (torch.arange(5) * 6).to(dtype))


def test_a_tensor_that_is_not_contiguous_is_written_too() -> None:
    def work(memory: SharedMemory, rank: int) -> Tensor:
        matrix = torch.full((3, 2), float(rank))
        memory.combine([matrix.t()])
        return matrix

    assert all(found.eq(1).all() for found in on_ranks(2, work))


def test_a_rank_that_ends_fails_the_others_at_once() -> None:
    def work(memory: SharedMemory, rank: int) -> str:
        memory.combine([torch.ones(3)])
        if rank == 1:
            return "ended"
        begin = time.perf_counter()
        with pytest.raises(RunError, match="another rank has ended"):
            memory.combine([torch.ones(3)])
        assert time.perf_counter() - begin < 10
        return "failed"

    assert on_ranks(3, work) == ["failed", "ended", "failed"]


def test_a_rank_that_keeps_silent_fails_the_others_in_the_end() -> None:
    done = threading.Event()

    def work(memory: SharedMemory, rank: int) -> bool:
        if rank == 1:
            return done.wait(20)
        with pytest.raises(RunError, match=r"a rank has sent nothing for 0\.2 s"):
            memory.combine([torch.ones(3)])
        done.set()
        return True

    assert on_ranks(2, work, timeout=0.2) == [True, True]


def test_ranks_that_exchange_different_tensors_fail() -> None:
    def work(memory: SharedMemory, rank: int) -> str:
        with pytest.raises(RunError, match="exchanges") as error:
            memory.combine([torch.ones(3 + rank)])
        return str(error.value)

    assert on_ranks(2, work) == ["rank 1 exchanges 4 numbers and rank 0 3", "rank 0 exchanges 3 numbers and rank 1 4"]


def no_file() -> int:
    raise OSError("no memory")


@pytest.mark.parametrize("missing", ["file", "room", "path"])
def test_without_memory_or_sockets_all_ranks_do_without(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30 if missing == "path" else "short")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if missing == "file":
        monkeypatch.setattr(shared_memory, "memory_file", no_file)
    if missing == "room":
        monkeypatch.setattr(os, "ftruncate", lambda file, size: no_file())
    assert on_ranks(3, lambda memory, rank: "shared") == [None, None, None]
    assert not list(folder.iterdir())


@pytest.mark.parametrize("in_memory", [True, False])
def test_nothing_is_left_in_the_file_system(in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)

    def work(memory: SharedMemory, rank: int) -> list[Path]:
        numbers = torch.ones(2)
        memory.combine([numbers])
        assert numbers.tolist() == [2, 2]
        return list(tmp_path.iterdir())  # while the memory is in use

    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    assert on_ranks(2, work) == [[], []]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_message_can_come_in_pieces() -> None:
    first, second = socket.socketpair()
    with first, second:
        threading.Timer(0.05, second.sendall, [b"lo"]).start()
        second.sendall(b"hel")
        assert shared_memory.receive(first, 5) == b"hello"
