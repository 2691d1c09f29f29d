"""Sums of tensors over the ranks of one machine, through memory that all ranks share.

Torch's Gloo sends tensors by sockets even within a machine, which takes milliseconds for the gradients of a small
agent. Here every rank writes its tensors into the shared memory, and the ranks add them up there.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; a slot begins on a cache line of its own, and can hold numbers of any dtype
GREETING_SECONDS = 60.0  # a rank that takes longer to connect has failed


class SharedMemory:
    """Memory of the ranks of one machine, by which they combine tensors.

    Three or more ranks have a slot each, and there is one more slot for the result. A rank copies its tensors to its
    slot, and waits until all ranks have done so. Each rank combines one of R parts: it reads this part of every slot,
    in the order of the ranks, and writes to the slot of the result. Then it waits again, and copies the whole result.
    The result has the same bits on every rank.

    Two ranks alone wait once, and read and write less memory. Each of them has two slots, one for every second
    exchange. After the wait a rank combines its tensors with the other rank's slot. The other rank writes to this slot
    again in the next exchange but one. It gets there only after the wait of the next exchange, which this rank begins
    once it has read the slot.

    To wait, a rank sends a message to every other rank, and reads one from each. The message holds the size of the
    tensors and a key, a number that identifies them. If a process ends, its sockets close, and the other ranks stop
    waiting. The memory has no name in the file system, so that no file stays if a process is killed.

    Args:
        rank: number of this process, from 0.
        slots: memory that all ranks see, `[num_slots(R), capacity]` uint8, for R ranks.
        peers: sockets to all other ranks, by the number of the rank.
    """

    def __init__(self, rank: int, slots: Tensor, peers: dict[int, socket.socket]) -> None:
        self._rank, self._slots, self._peers = rank, slots, peers
        self._second = False  # whether two ranks write to their second slots next
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
            gather: function that sends this rank's text to all ranks, and returns all texts in the order of ranks.

        Returns:
            None on all ranks, if they are not on one machine, have different capacities, or if the system has no
            memory or no sockets for them.

        Raises:
            RuntimeError: if a rank ends, or is silent for a minute, while the ranks connect.
        """
        capacity = math.ceil(capacity / ALIGNMENT) * ALIGNMENT
        peers: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as temporary:
            size = num_slots(ranks) * capacity
            file, folder = make_file_and_folder(size, temporary) if rank == 0 else (-1, "")
            folder = gather(folder)[0]
            if not folder:
                return None
            listener = listen(Path(folder, str(rank)), ranks, temporary)
            # Ranks connect once all of them listen, and only if all of them can.
            found = gather(f"{machine()} {capacity}" if listener is not None else "")
            if listener is None or "" in found or len(set(found)) > 1:
                return None
            try:
                connect(rank, ranks, Path(folder), listener, peers)
                file = share_file(file, rank, peers, temporary)
                memory = mmap.mmap(file, size)
                gather("")  # the folder stays until all ranks are connected
            except BaseException as error:
                close_all(peers)
                if isinstance(error, OSError):
                    raise RuntimeError("the connection to another rank has failed") from error
                raise
        for peer in peers.values():
            peer.settimeout(timeout)
        return cls(rank, torch.frombuffer(memory, dtype=torch.uint8).view(-1, capacity), peers)

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
            tensors: on the processor, of one dtype, which share no memory; written in place. Those that do not fit into
                a slot are combined in parts.
            operation: function of two tensors with the argument `out`, as `torch.add` or `torch.maximum`.
            mean: divide the sum by the number of ranks; for sums only. If a rank has an infinite number, the mean is
                infinite or NaN.
            key: number of 32 bits that identifies the tensors. The exchange fails if ranks pass different keys.

        Raises:
            ValueError: if the tensors have several dtypes.
            RuntimeError: if another rank has ended, sends nothing for too long, or exchanges something else.
        """
        flat = [tensor.reshape(-1) for tensor in tensors]
        if len({tensor.dtype for tensor in flat}) > 1:
            raise ValueError("tensors that are combined have one dtype")
        sizes = [tensor.numel() for tensor in flat]
        size, memory = sum(sizes), self._slots.view(flat[0].dtype)
        if size > memory.shape[1]:
            together = torch.cat(flat)
            for part in together.split(memory.shape[1]):
                self.combine([part], operation, mean, key)
            results = together.split(sizes)
        elif len(self._peers) == 1:
            self._combine_two(tensors, flat, memory[:, :size], operation, mean, key)
            return
        else:
            *slots, result = memory[:, :size].unbind()
            torch.cat(flat, out=slots[self._rank])
            self._wait(size, key)  # no rank reads a slot before it is written
            first, second, *others = (slot.tensor_split(len(slots))[self._rank] for slot in slots)
            own = result.tensor_split(len(slots))[self._rank]
            operation(first, second, out=own)
            for other in others:
                operation(own, other, out=own)
            if mean:
                own.div_(len(slots))
            # No rank copies the result before all parts are written. A rank that goes on writes to its own slot alone
            # before the next wait: the others can still copy the result.
            self._wait(size, key)
            results = result.split(sizes)
        torch._foreach_copy_(tensors, [new.view(tensor.shape) for tensor, new in zip(tensors, results, strict=True)])

    def _combine_two(
        self,
        tensors: list[Tensor],
        flat: list[Tensor],
        memory: Tensor,
        operation: Callable[..., Tensor],
        mean: bool,
        key: int,
    ) -> None:
        """Combine the tensors of two ranks by one wait.

        Args:
            tensors: see `combine`.
            flat: tensors, `[size]` each.
            memory: slots, `[4, total size]`, of the dtype of the tensors.
            operation: see `combine`.
            mean: see `combine`.
            key: see `combine`.
        """
        slots = memory[2:] if self._second else memory[:2]
        self._second = not self._second
        torch.cat(flat, out=slots[self._rank])
        self._wait(slots.shape[1], key)  # no rank reads a slot before it is written
        sizes = [tensor.numel() for tensor in flat]
        for tensor, part in zip(tensors, slots[1 - self._rank].split(sizes), strict=True):
            other = part.view(tensor.shape)
            # Both ranks combine in the order of their numbers, so that both get the same bits.
            before, after = (tensor, other) if self._rank == 0 else (other, tensor)
            if mean:
                torch.lerp(before, after, 0.5, out=tensor)  # by one pass over the memory
            else:
                operation(before, after, out=tensor)

    def close(self) -> None:
        """Close the sockets. The system frees the memory when the last rank has closed it or ended.

        Closing twice does nothing.
        """
        close_all(self._peers)
        _OPEN.discard(self)
        self._slots = self._slots[:0]

    def _wait(self, size: int, key: int) -> None:
        """Wait until all ranks have called this function with the same size and key."""
        message = size.to_bytes(8, "little") + key.to_bytes(4, "little")
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # if the rank has ended, reading says so below
                peer.sendall(message)
        for rank, peer in self._peers.items():
            try:
                received = receive(peer, len(message))
            except TimeoutError as error:
                raise RuntimeError(f"rank {rank} timed out: it sent nothing for {peer.gettimeout():g} s") from error
            except OSError as error:
                raise RuntimeError(f"the connection to rank {rank} has ended") from error
            if received != message:
                numbers, other_key = (int.from_bytes(part, "little") for part in (received[:8], received[8:]))
                raise RuntimeError(
                    f"ranks {self._rank} and {rank} exchange different tensors: {size} numbers (key {key}) and "
                    f"{numbers} numbers (key {other_key})"
                )


def num_slots(ranks: int) -> int:
    """Return the number of slots: two of each of two ranks, and otherwise one of each rank and one for the result."""
    return 4 if ranks == 2 else ranks + 1


_OPEN: weakref.WeakSet[SharedMemory] = weakref.WeakSet()
"""Memories of this process."""


def _close_in_child() -> None:
    """Close a child's copies of the sockets. Otherwise other ranks would not notice that its parent has ended."""
    for memory in list(_OPEN):
        memory.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def machine() -> str:
    """Return an identifier of this machine, which changes when the machine is started again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


def close_all(peers: dict[int, socket.socket]) -> None:
    """Close the sockets to all other ranks."""
    for peer in peers.values():
        peer.close()


def make_file_and_folder(size: int, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Make a file of `size` bytes without a name, and a folder for sockets. The stack removes both.

    Returns:
        Descriptor of the file and path of the folder; -1 and "" if the system has no such file or folder.
    """
    try:
        file = memory_file()
        stack.callback(os.close, file)
        os.ftruncate(file, size)
        if hasattr(os, "posix_fallocate"):  # if memory ran out later, writing to it would end the process
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
    """Return a socket that other ranks can connect to by its path; None if the system cannot make one.

    The stack closes the socket.
    """
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
        ranks: number of ranks.
        folder: folder of the sockets; the name of a socket is its rank.
        listener: socket of this rank.
        peers: filled by this function, so that the caller can close the sockets after a failure: sockets to all other
            ranks, by the number of the rank.

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


def share_file(file: int, rank: int, peers: dict[int, socket.socket], stack: contextlib.ExitStack) -> int:
    """Send the file of rank 0 to all ranks, and return this rank's descriptor of the file.

    On the other ranks, the stack closes the descriptor.

    Raises:
        OSError: if rank 0 does not answer or has ended.
    """
    if rank == 0:
        for peer in peers.values():
            socket.send_fds(peer, [b"m"], [file])  # a descriptor goes along with a byte
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
