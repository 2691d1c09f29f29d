"""Ranks of one machine combine tensors by memory that they share. Here, the ranks are threads of one process."""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_rl.utils import shared_memory
from bayes_rl.utils.shared_memory import SharedMemory

RANK: ContextVar[int] = ContextVar("RANK")
"""Rank of the present thread."""


def on_ranks(
    ranks: int,
    work: Callable[[SharedMemory, int], Any],
    capacity: int = 4096,
    timeout: float | None = 20,
    closes: bool = True,
) -> list[Any]:
    """Return what a function of a memory and its rank returns on each rank.

    An error takes the place of a result, and None if there is no memory.
    """
    texts, barrier = [""] * ranks, threading.Barrier(ranks, timeout=20)

    def gather(rank: int, text: str) -> list[str]:
        texts[rank] = text
        barrier.wait()
        found = list(texts)
        barrier.wait()
        return found

    def run(rank: int) -> Any:
        RANK.set(rank)
        try:
            memory = SharedMemory.of_ranks(rank, ranks, capacity, timeout, functools.partial(gather, rank))
        except RuntimeError as error:
            return error
        if memory is None:
            return None
        try:
            return work(memory, rank)
        finally:
            if closes:
                memory.close()

    with ThreadPoolExecutor(ranks) as pool:
        return [future.result(60) for future in [pool.submit(run, rank) for rank in range(ranks)]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of temporary files, in which nothing may be left; nor may a file stay open."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = Path("/proc/self/fd")
    gc.collect()  # what earlier tests have left
    before = len(os.listdir(files)) if files.is_dir() else 0
    yield tmp_path
    assert not list(tmp_path.iterdir())
    if before:
        gc.collect()
        assert len(os.listdir(files)) <= before


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


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_that_reads_late_reads_the_numbers_of_its_exchange(ranks: int) -> None:
    """The other ranks have begun the next exchange, and have written to their slots."""

    def work(memory: SharedMemory, rank: int) -> list[float]:
        def late(first: Tensor, second: Tensor, out: Tensor) -> Tensor:
            time.sleep(0.02 * rank)
            return torch.add(first, second, out=out)

        found = []
        for number in range(4):
            tensor = torch.tensor(float(number))
            memory.combine([tensor], late)
            found.append(tensor.item())
        return found

    assert on_ranks(ranks, work) == [[0.0, ranks * 1.0, ranks * 2.0, ranks * 3.0]] * ranks


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
        with pytest.raises(RuntimeError, match="the connection to rank 1 has ended"):
            memory.combine([torch.ones(3)])
        assert time.perf_counter() - begin < 10
        return "failed"

    assert on_ranks(3, work) == ["failed", "ended", "failed"]


def test_a_rank_that_is_silent_fails_the_others_in_the_end() -> None:
    done = threading.Event()

    def work(memory: SharedMemory, rank: int) -> bool:
        if rank == 1:
            return done.wait(20)
        with pytest.raises(RuntimeError, match=r"rank 1 timed out: it sent nothing for 0\.2 s"):
            memory.combine([torch.ones(3)])
        done.set()
        return True

    assert on_ranks(2, work, timeout=0.2) == [True, True]


@pytest.mark.parametrize("different", ["size", "key"])
def test_ranks_that_exchange_different_tensors_fail(different: str) -> None:
    """Tensors of one size can be others, such as gradients of two networks alike: their keys differ."""

    def work(memory: SharedMemory, rank: int) -> str:
        with pytest.raises(RuntimeError, match="exchange") as error:
            memory.combine([torch.ones(3 + rank * (different == "size"))], key=7 + rank)
        return str(error.value)

    first, second = ("3 numbers (key 7)", "4 numbers (key 8)" if different == "size" else "3 numbers (key 8)")
    assert on_ranks(2, work, timeout=None) == [
        f"ranks 0 and 1 exchange different tensors: {first} and {second}",
        f"ranks 1 and 0 exchange different tensors: {second} and {first}",
    ]


def test_tensors_of_several_dtypes_are_refused() -> None:
    """One of them would lose digits without a word."""

    def work(memory: SharedMemory, rank: int) -> bool:
        with pytest.raises(ValueError, match="one dtype"):
            memory.combine([torch.ones(3), torch.ones(3, dtype=torch.float64)])
        return True

    assert on_ranks(2, work) == [True, True]


def shared(memory: SharedMemory, rank: int) -> str:
    return "shared"


def fail(*_: Any) -> NoReturn:
    raise OSError("not here")


@pytest.mark.parametrize("name", ["memory_file", "ftruncate"])
def test_without_memory_all_ranks_do_without(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os if name == "ftruncate" else shared_memory, name, fail)
    assert on_ranks(3, shared) == [None, None, None]


def test_without_a_folder_all_ranks_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    assert on_ranks(2, shared) == [None, None]


def test_without_a_path_that_is_short_enough_all_ranks_do_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = folder / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert on_ranks(2, shared) == [None, None]
    deep.rmdir()


def test_if_one_rank_has_no_socket_all_ranks_do_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = shared_memory.listen
    monkeypatch.setattr(shared_memory, "listen", lambda path, *rest: None if path.name == "1" else listen(path, *rest))
    assert on_ranks(3, shared) == [None, None, None]


def test_ranks_of_two_machines_share_no_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "machine", lambda: f"machine {RANK.get() // 2}")
    assert on_ranks(2, shared) == ["shared", "shared"]
    assert on_ranks(4, shared) == [None] * 4


@pytest.mark.parametrize(("function", "failing"), [("connect", 1), ("connect", 0), ("share_file", 0)])
def test_a_rank_that_fails_while_ranks_connect_fails_the_others(
    function: str, failing: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(shared_memory, function)

    def called(*arguments: Any) -> Any:
        return fail() if RANK.get() == failing else original(*arguments)

    monkeypatch.setattr(shared_memory, function, called)
    monkeypatch.setattr(shared_memory, "GREETING_SECONDS", 0.3)
    errors = on_ranks(2, shared)
    assert [str(error) for error in errors] == ["the connection to another rank has failed"] * 2


@pytest.mark.parametrize("in_memory", [True, False])
def test_nothing_is_in_the_file_system_while_ranks_share_memory(
    in_memory: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)

    def work(memory: SharedMemory, rank: int) -> list[Path]:
        numbers = torch.ones(2)
        memory.combine([numbers])
        assert numbers.tolist() == [2, 2]
        memory.combine([numbers])  # all ranks have made their memory
        return list(folder.iterdir())

    assert on_ranks(2, work) == [[], []]


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no processes by fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_process_that_lives_longer_does_not_keep_others_waiting() -> None:
    first, second = on_ranks(2, lambda memory, rank: memory, closes=False)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        first.close()
        first.close()  # closing twice does nothing
        begin = time.perf_counter()
        with pytest.raises(RuntimeError, match="the connection to rank 0 has ended"):
            second.combine([torch.ones(1)])
        assert time.perf_counter() - begin < 10
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        second.close()


def test_a_message_can_come_in_pieces() -> None:
    first, second = socket.socketpair()
    with first, second:
        threading.Timer(0.05, second.sendall, [b"six"]).start()
        second.sendall(b"sixty")
        assert shared_memory.receive(first, 8) == b"sixtysix"
