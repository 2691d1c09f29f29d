"""Sums of tensors over the ranks of one machine, through memory that all ranks share.

Torch's Gloo sends tensors by sockets even within a machine, which takes milliseconds for the gradients of a small
agent. Here every rank writes its tensors into the shared memory, and the ranks add them up there.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bayes_rl.errors import RunError

ALIGNMENT = 64  # bytes; the length of a cache line
GREETING_SECONDS = 60.0  # patience with ranks that connect
LONGEST_FOLDER = 90  # bytes of a path; the path of a socket has at most 104 (macOS) or 108


class SharedMemory:
    """Memory of the ranks of one machine, by which they combine tensors.

    Every rank has a slot, and there is one more slot for the result. A rank copies its tensors to its slot, and waits
    until all ranks have done so. Then it combines its part of all slots, in the order of the ranks, waits again, and
    copies the result. The result has the same bits on every rank, and the time hardly depends on the number of ranks.

    The ranks wait by messages: each sends the size of its tensors to all others by sockets. If a process ends, its
    sockets close, and no rank waits in vain. The memory has no name in the file system, so that a process that is
    killed leaves nothing behind.

    Args:
        rank: number of this process, from 0.
        slots: memory that all ranks see, `[R + 1, capacity]` uint8, for R ranks.
        peers: number of each other rank to a socket that is connected to that rank.
    """

    def __init__(self, rank: int, slots: Tensor, peers: dict[int, socket.socket]) -> None:
        self._rank, self._slots, self._peers = rank, slots, peers

    @classmethod
    def of_ranks(
        cls, rank: int, ranks: int, capacity: int, timeout: float, gather: Callable[[str], list[str]]
    ) -> SharedMemory | None:
        """Make the memory together with the other ranks. All ranks must call this function.

        Args:
            rank: number of this process, from 0.
            ranks: R, number of processes, all of this machine.
            capacity: bytes of a slot.
            timeout: seconds of waiting for another rank after which an exchange fails.
            gather: returns the texts of all ranks, in their order.

        Returns:
            None if rank 0 cannot make memory or sockets on this system.
        """
        capacity = -(-capacity // ALIGNMENT) * ALIGNMENT
        size = (ranks + 1) * capacity
        file, folder = prepare(size) if rank == 0 else (-1, "")
        (folder, *_) = gather(folder)
        if not folder:
            return None
        peers = connect(rank, ranks, Path(folder), lambda: gather(""))
        file = pass_on(file, rank, peers)
        gather("")  # all ranks are connected
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        with os.fdopen(file, "r+b") as opened:
            memory = mmap.mmap(opened.fileno(), size)
        for peer in peers.values():
            peer.settimeout(timeout)
        return cls(rank, torch.frombuffer(memory, dtype=torch.uint8).view(ranks + 1, capacity), peers)

    def combine(self, tensors: list[Tensor], operation: Callable[..., Tensor] = torch.add, mean: bool = False) -> None:
        """Replace each tensor by the sum, or another combination, of those of all ranks.

        All ranks call this function in the same order, with tensors of the same shapes.

        Args:
            tensors: on the processor, of one dtype; written in place. Those that do not fit into a slot are combined in
                parts.
            operation: of two tensors, with `out`, as `torch.add` or `torch.maximum`.
            mean: divide the result by the number of ranks.

        Raises:
            RunError: if another rank has ended, keeps silent for too long, or exchanges tensors of another size.
        """
        flat = [tensor.reshape(-1) for tensor in tensors]
        sizes = [tensor.numel() for tensor in flat]
        memory = self._slots.view(flat[0].dtype)
        if sum(sizes) > memory.shape[1]:
            together = torch.cat(flat)
            for part in together.split(memory.shape[1]):
                self.combine([part], operation, mean)
            results = together.split(sizes)
        else:
            *slots, result = memory[:, : sum(sizes)].unbind()
            torch.cat(flat, out=slots[self._rank])
            self._wait(sum(sizes))
            first, second, *others = (slot.tensor_split(len(slots))[self._rank] for slot in slots)
            own = result.tensor_split(len(slots))[self._rank]
            operation(first, second, out=own)
            for other in others:
                operation(own, other, out=own)
            if mean:
                own.div_(len(slots))
            self._wait(sum(sizes))
            results = result.split(sizes)
        torch._foreach_copy_(tensors, [new.view(tensor.shape) for tensor, new in zip(tensors, results, strict=True)])

    def close(self) -> None:
        """Close the sockets. The memory is free once the last rank has closed or ended."""
        for peer in self._peers.values():
            peer.close()
        del self._slots

    def _wait(self, size: int) -> None:
        """Wait until all ranks have come to this point of an exchange of `size` numbers."""
        message = size.to_bytes(8, "little")
        try:
            for peer in self._peers.values():
                peer.sendall(message)
            for rank, peer in self._peers.items():
                found = int.from_bytes(receive(peer, 8), "little")
                if found != size:
                    raise RunError(f"rank {rank} exchanges {found} numbers and rank {self._rank} {size}")
        except TimeoutError as error:
            raise RunError(f"a rank has sent nothing for {peer.gettimeout():g} s") from error
        except OSError as error:
            raise RunError("another rank has ended in the middle of an exchange") from error


def prepare(size: int) -> tuple[int, str]:
    """Make a file of `size` bytes without a name, and a folder for sockets.

    Returns:
        Descriptor of the file and path of the folder; -1 and "" if the system has no such files or sockets.
    """
    folder = tempfile.mkdtemp(prefix="bayes_rl_")
    file = -1
    try:
        if len(os.fsencode(folder)) > LONGEST_FOLDER or not hasattr(socket, "send_fds"):
            raise OSError("no sockets")
        file = memory_file()
        os.ftruncate(file, size)
        if hasattr(os, "posix_fallocate"):  # otherwise, writing to memory that is not there would end the process
            os.posix_fallocate(file, 0, size)
    except OSError:
        if file >= 0:
            os.close(file)
        shutil.rmtree(folder, ignore_errors=True)
        return -1, ""
    return file, folder


def memory_file() -> int:
    """Return the descriptor of a new file without a name, in memory if the system can do so."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bayes_rl")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def connect(rank: int, ranks: int, folder: Path, meet: Callable[[], object]) -> dict[int, socket.socket]:
    """Return the number of each other rank with a socket that is connected to that rank.

    Args:
        rank: number of this process.
        ranks: number of all.
        folder: of the sockets' names, which only this user can read.
        meet: waits until all ranks have called it.
    """
    found = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / str(rank)))
        listener.listen(ranks)
        listener.settimeout(GREETING_SECONDS)
        meet()
        for other in range(rank):
            found[other] = socket.socket(socket.AF_UNIX)
            found[other].connect(str(folder / str(other)))
            found[other].sendall(rank.to_bytes(8, "little"))
        for _ in range(rank + 1, ranks):
            peer, _ = listener.accept()
            peer.settimeout(GREETING_SECONDS)
            found[int.from_bytes(receive(peer, 8), "little")] = peer
    return found


def pass_on(file: int, rank: int, peers: dict[int, socket.socket]) -> int:
    """Send the descriptor of a file from rank 0 to all other ranks, and return it there."""
    if rank > 0:
        _, (file,), _, _ = socket.recv_fds(peers[0], 1, 1)
        return file
    for peer in peers.values():
        socket.send_fds(peer, [b"m"], [file])
    return file


def receive(peer: socket.socket, size: int) -> bytes:
    """Return `size` bytes from a socket.

    Raises:
        ConnectionError: if the other side has closed.
    """
    found = b""
    while len(found) < size:
        part = peer.recv(size - len(found))
        if not part:
            raise ConnectionResetError("closed by the other side")
        found += part
    return found
