"""One process of a group, which calls a function of the tests."""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(words: list[str], rank: int, ranks: int, port: int, **options: Any) -> subprocess.Popen[Any]:
    """Start one of several processes on this machine, as torchrun would."""
    group = {
        **{"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"},
    }
    usual = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment = {**os.environ, **usual, **{key: str(value) for key, value in group.items()}}
    return subprocess.Popen([sys.executable, *words], env=environment, **options)


def call_on_ranks(ranks: int, function: str, folder: Path, *arguments: Any) -> list[Any]:
    """Call a function in a group of new processes, and return what it returned on each.

    Args:
        ranks: number of processes.
        function: as `module:name`.
        folder: of the files with arguments and results.
        arguments: of the function.
    """
    (folder / "arguments").write_bytes(pickle.dumps(arguments))
    port = free_port()
    words = ["-m", "tests.helpers.rank_process", function, str(folder)]
    processes = [start(words, rank, ranks, port) for rank in range(ranks)]
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * ranks
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(ranks)]


if __name__ == "__main__":
    path, place = sys.argv[1], Path(sys.argv[2])
    module, name = path.split(":")
    found = getattr(importlib.import_module(module), name)(*pickle.loads((place / "arguments").read_bytes()))
    (place / f"result{os.environ['RANK']}").write_bytes(pickle.dumps(found))
