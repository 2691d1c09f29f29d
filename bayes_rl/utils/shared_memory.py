"""Sums of tensors over the ranks of one machine, through memory that all ranks share.

Torch's Gloo sends tensors by sockets even within a machine, which takes milliseconds for the gradients of a small
agent. Here every rank writes its tensors into the shared memory, and the ranks add them up there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; the length of a cache line
GREETING_SECONDS = 60.0  # patience with ranks that connect


class SharedMemory:
    """Memory of the ranks of one machine, by which they combine tensors.

    Every rank has a slot, and there is one more slot for the result. A rank copies its tensors to its slot, and waits
    until all ranks have done so. Then it combines its part of all slots, in the order of the ranks, waits again, and
    copies the result. The result has the same bits on every rank.

    The ranks wait by messages: each sends the size and the key of its tensors to all others by sockets. If a process
    ends, its sockets close, and the other ranks stop waiting. The memory has no name in the file system, so that a
    process that is killed leaves nothing behind.

    Args:
        rank: number of this process, from 0.
        slots: memory that all ranks see, `[R + 1, capacity]` uint8, for R ranks.
        peers: number of each other rank to a socket that is connected to that rank.
    """

    def __init__(self, rank: int, slots: Tensor, peers: dict[int, socket.socket]) -> None:
        self._rank, self._slots, self._peers = rank, slots, peers
        _OPEN.add(self)

    @classmethod
    def of_ranks(
        cls, rank: int, ranks: int, capacity: int, timeout: float | None, gather: Callable[[str], list[str]]
    ) -> SharedMemory | None:
        """Make the memory together with the other ranks. All ranks must call this function.

        Args:
            rank: number of this process, from 0.
            ranks: R, number of processes, >= 2.
            capacity: bytes of a slot.
            timeout: seconds of waiting for another rank after which an exchange fails; None waits for ever.
            gather: function of this rank's text that waits for all ranks, and returns their texts in order.

        Returns:
            None on all ranks, if they are not on one machine, have different capacities, or if the system has no
            memory or no sockets for them.

        Raises:
            RuntimeError: if a rank ends, or is silent for a minute, while the ranks connect.
        """
        capacity = -(-capacity // ALIGNMENT) * ALIGNMENT
        with contextlib.ExitStack() as until_made, contextlib.ExitStack() as peers_of_failure:
            file, folder = prepare((ranks + 1) * capacity, until_made) if rank == 0 else (-1, "")
            (folder, *_) = gather(folder)
            if not folder:
                return None
            listener = listen(Path(folder, str(rank)), ranks, until_made)
            places = gather(f"{machine()} {capacity}" if listener is not None else "")
            if listener is None or "" in places or len(set(places)) > 1:
                return None
            peers: dict[int, socket.socket] = {}
            peers_of_failure.callback(close_all, peers)
            try:
                connect(rank, ranks, Path(folder), listener, peers)
                file = pass_on(file, rank, peers, until_made)
            except OSError as error:
                raise RuntimeError("the connection to another rank has failed") from error
            memory = mmap.mmap(file, (ranks + 1) * capacity)
            gather("")  # all ranks are connected: the folder can go
            peers_of_failure.pop_all()
        for peer in peers.values():
            peer.settimeout(timeout)
        return cls(rank, torch.frombuffer(memory, dtype=torch.uint8).view(ranks + 1, capacity), peers)

    def combine(
        self,
        tensors: list[Tensor],
        operation: Callable[..., Tensor] = torch.add,
        mean: bool = False,
        key: int = 0,
    ) -> None:
        """Replace each tensor by the sum, or another combination, of those of all ranks.

        All ranks call this function in the same order, with tensors of the same shapes.

        Args:
            tensors: on the processor, of one dtype; written in place. Those that do not fit into a slot are combined in
                parts.
            operation: function of two tensors with the argument `out`, as `torch.add` or `torch.maximum`.
            mean: divide the result by the number of ranks.
            key: number of 32 bits that tells what is exchanged. Ranks with different keys fail.

        Raises:
            ValueError: if the tensors have several dtypes.
            RuntimeError: if another rank has ended, sends nothing for too long, or exchanges something else.
        """
        flat = [tensor.reshape(-1) for tensor in tensors]
        if len({tensor.dtype for tensor in flat}) > 1:
            raise ValueError("tensors that are combined have one dtype")
        sizes = [tensor.numel() for tensor in flat]
        memory = self._slots.view(flat[0].dtype)
        if sum(sizes) > memory.shape[1]:
            together = torch.cat(flat)
            for part in together.split(memory.shape[1]):
                self.combine([part], operation, mean, key)
            results = together.split(sizes)
        else:
            *slots, result = memory[:, : sum(sizes)].unbind()
            torch.cat(flat, out=slots[self._rank])
            self._wait(sum(sizes), key)
            first, second, *others = (slot.tensor_split(len(slots))[self._rank] for slot in slots)
            own = result.tensor_split(len(slots))[self._rank]
            operation(first, second, out=own)
            for other in others:
                operation(own, other, out=own)
            if mean:
                own.div_(len(slots))
            self._wait(sum(sizes), key)
            results = result.split(sizes)
        torch._foreach_copy_(tensors, [new.view(tensor.shape) for tensor, new in zip(tensors, results, strict=True)])

    def close(self) -> None:
        """Close the sockets. The memory is free once the last rank has closed or ended."""
        close_all(self._peers)
        _OPEN.discard(self)
        del self._slots

    def _wait(self, size: int, key: int) -> None:
        """Wait until all ranks have come to this point of an exchange of `size` numbers."""
        message = size.to_bytes(8, "little") + key.to_bytes(4, "little")
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # a rank that has ended is found out by reading
                peer.sendall(message)
        for rank, peer in self._peers.items():
            try:
                found = receive(peer, len(message))
            except TimeoutError as error:
                raise RuntimeError(f"rank {rank} timed out: it sent nothing for {peer.gettimeout():g} s") from error
            except OSError as error:
                raise RuntimeError(f"the connection to rank {rank} has ended") from error
            if found != message:
                numbers = int.from_bytes(found[:8], "little")
                raise RuntimeError(f"rank {rank} exchanges {numbers} numbers, and rank {self._rank} other {size}")


_OPEN: weakref.WeakSet[SharedMemory] = weakref.WeakSet()
"""Memories of this process. A child process that lives longer must not hold their sockets open."""


def _close_in_child() -> None:
    for memory in list(_OPEN):
        memory.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def machine() -> str:
    """Return a name of this machine since it was started."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


def close_all(peers: dict[int, socket.socket]) -> None:
    """Close the sockets to all other ranks."""
    for peer in peers.values():
        peer.close()


def prepare(size: int, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Make a file of `size` bytes without a name, and a folder for sockets, until the stack closes.

    Returns:
        Descriptor of the file and path of the folder; -1 and "" if the system has no such file or folder.
    """
    try:
        file = memory_file()
        stack.callback(os.close, file)
        os.ftruncate(file, size)
        if hasattr(os, "posix_fallocate"):  # otherwise, writing to memory that is not there would end the process
            os.posix_fallocate(file, 0, size)
        folder = tempfile.TemporaryDirectory(prefix="bayes_rl_", ignore_cleanup_errors=True)
        return file, stack.enter_context(folder)
    except OSError:
        return -1, ""


def memory_file() -> int:
    """Return the descriptor of a new file without a name, in memory if the system can do so."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bayes_rl")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def listen(path: Path, ranks: int, stack: contextlib.ExitStack) -> socket.socket | None:
    """Return a socket that other ranks can connect to by its path until the stack closes; None if there is none."""
    if not hasattr(socket, "send_fds"):
        return None
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.settimeout(GREETING_SECONDS)
    try:
        listener.bind(str(path))
        listener.listen(ranks)
    except OSError:  # the folder is on another machine, its path is too long, or its disk has no sockets
        return None
    return listener


def connect(rank: int, ranks: int, folder: Path, listener: socket.socket, peers: dict[int, socket.socket]) -> None:
    """Connect to the ranks before this one, and let those behind it connect.

    Args:
        rank: number of this process.
        ranks: number of all.
        folder: of the sockets, each named by its rank.
        listener: socket of this rank.
        peers: number of each other rank to the socket that is connected to it; filled by this function.

    Raises:
        OSError: if a rank cannot be reached or does not answer.
    """
    for other in range(rank):
        peers[other] = socket.socket(socket.AF_UNIX)
        peers[other].settimeout(GREETING_SECONDS)
        peers[other].connect(str(folder / str(other)))
        peers[other].sendall(rank.to_bytes(8, "little"))
    for _ in range(rank + 1, ranks):
        peer, _ = listener.accept()
        peer.settimeout(GREETING_SECONDS)
        peers[int.from_bytes(receive(peer, 8), "little")] = peer


def pass_on(file: int, rank: int, peers: dict[int, socket.socket], stack: contextlib.ExitStack) -> int:
    """Send the descriptor of a file from rank 0 to all other ranks, and return it there until the stack closes.

    Raises:
        OSError: if rank 0 does not answer or has ended.
    """
    if rank == 0:
        for peer in peers.values():
            socket.send_fds(peer, [b"m"], [file])
        return file
    _, files, _, _ = socket.recv_fds(peers[0], 1, 1)
    if not files:
        raise ConnectionResetError("closed by rank 0")
    stack.callback(os.close, files[0])
    return files[0]


def receive(peer: socket.socket, size: int) -> bytes:
    """Return `size` bytes from a socket.

    Raises:
        OSError: if the other side has closed, or sends nothing for too long.
    """
    found = b""
    while len(found) < size:
        part = peer.recv(size - len(found))
        if not part:
            raise ConnectionResetError("closed by the other side")
        found += part
    return found
