"""Seconds that ranks take to average gradients, and what they predict for more ranks.

    python -m benchmarks exchange                            # three minutes
    python -m benchmarks exchange --ranks 2 --rounds 50

Processes of this machine average tensors of different sizes: by Gloo, as ranks on several machines do, and by shared
memory, as ranks on the processors of one machine do. The time of Gloo's ring of R ranks is 2 (R - 1) steps, of which
each sends a part of 1 / R: 2 (R - 1) (a + bytes / (R b)) with the latency a of a step and the bytes per second b. Both
are fitted to Gloo's measurements of two ranks, by least squares of relative errors. Each measurement of Gloo is
compared with the prediction.

With the update of one rank on one core, from `python -m benchmarks ranks`, follows what many ranks gain at most: the
share of its time that a rank computes. The rest it waits for the exchange, as if nothing ran beside the exchange.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from bayes_rl.utils.ranks import average_in_place, share_memory, unshare_memory
from benchmarks.runner import RESULTS, Benchmark, Cell, Options, Row, markdown, quartiles

SIZES = (2**8, 2**14, 2**17, 2**20, 2**22)
"""Numbers of float32 values. MinAtar's agent has 140 000 gradients, the quickstart 0.4 million, Nature 1.7 million."""
WAYS = ("gloo", "shared memory")
WARM_UP = 5
SMALL = 1
"""Exchanges of an update beside the gradients: now and then values to log, moments of the Gaussian process, signals."""

ETHERNET = 1e-4, 1.1e9
"""Assumed seconds of a step and bytes per second between machines with an Ethernet of 10 Gbit/s."""


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return every number of ranks with every size, in both ways."""
    return [
        {"ranks": ranks, "values": values, "way": way} for ranks in options.ranks for values in SIZES for way in WAYS
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Average a tensor in a group of processes, again and again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (cell["ranks"], cell["values"], cell["way"], options.rounds, port, folder)
        torch.multiprocessing.spawn(average, arguments, cell["ranks"])
        seconds = np.load(Path(folder, "seconds.npy"))
    return {"milliseconds": quartiles([1000 * float(s) for s in seconds])}


def average(rank: int, ranks: int, values: int, way: str, rounds: int, port: int, folder: str) -> None:
    """Average a tensor with the other ranks, and write the seconds of each time on rank 0."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    tensor, seconds = torch.ones(values), []
    if way == "shared memory" and not share_memory(tensor.nbytes, timeout=60):
        raise RuntimeError("this system has no shared memory")
    for _ in range(WARM_UP + rounds):
        dist.barrier()
        start = time.perf_counter()
        average_in_place([tensor])
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        np.save(Path(folder, "seconds.npy"), seconds[WARM_UP:])
    unshare_memory()
    dist.destroy_process_group()


def ring_seconds(ranks: int, size: float, latency: float, rate: float) -> float:
    """Return the seconds in which a ring of ranks averages a tensor.

    Args:
        ranks: R, >= 1.
        size: of the tensor in bytes.
        latency: seconds of a step, whatever it sends.
        rate: bytes per second between two ranks.
    """
    return 2 * (ranks - 1) * (latency + size / ranks / rate)


def by_gloo(rows: list[Row]) -> list[Row]:
    """Return the measurements of Gloo."""
    return [row for row in rows if row["way"] == "gloo"]


def fitted(rows: list[Row]) -> tuple[float, float]:
    """Return latency in seconds and bytes per second, from the medians of two ranks."""
    of_two = [row for row in by_gloo(rows) if row["ranks"] == 2]
    seconds = np.array([row["milliseconds"][1] / 1000 for row in of_two])
    sizes = np.array([4.0 * row["values"] for row in of_two])
    design = np.stack([2 * np.ones_like(sizes), sizes], 1) / seconds[:, None]  # relative errors count
    latency, per_byte = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
    return float(latency), float(1 / per_byte)


def summarize(rows: list[Row]) -> list[Row]:
    """Return the fitted latency and rate, once two ranks are measured at every size."""
    if sum(row["ranks"] == 2 for row in by_gloo(rows)) < len(SIZES):
        return []
    latency, rate = fitted(rows)
    return [{"latency_microseconds": round(1e6 * latency, 1), "megabytes_per_second": round(rate / 1e6, 1)}]


def computing_share(ranks: int, seconds: float, gradients: int, latency: float, rate: float) -> float:
    """Return the share of an update's time that a rank computes.

    Args:
        ranks: number of ranks.
        seconds: of an update of one rank alone.
        gradients: number of float32 gradients.
        latency: as in `ring_seconds`.
        rate: as in `ring_seconds`.
    """
    exchanged = ring_seconds(ranks, 4 * gradients, latency, rate) + SMALL * ring_seconds(ranks, 8, latency, rate)
    return seconds / (seconds + exchanged)


def predictions(rows: list[Row], of_ranks: list[Row]) -> list[Row]:
    """Return the predicted shares of 2, 8 and 64 ranks.

    Args:
        rows: of this benchmark.
        of_ranks: rows of the benchmark `ranks`.
    """
    found = []
    for task in dict.fromkeys(row["task"] for row in of_ranks):
        alone = [row for row in of_ranks if row["task"] == task and row["arm"] == "one_rank_one_core"]
        seconds = statistics.median(row["seconds"] / row["updates"] for row in alone)
        for network, (latency, rate) in {"Gloo here": fitted(rows), "10 Gbit/s": ETHERNET}.items():
            shares = {
                f"{ranks} ranks": round(computing_share(ranks, seconds, alone[0]["gradients"], latency, rate), 3)
                for ranks in (2, 8, 64)
            }
            update = {"update_ms": round(1000 * seconds, 1), "gradients": alone[0]["gradients"]}
            found.append({"task": task, **update, "network": network, **shares})
    return found


def table(rows: list[Row]) -> str:
    """Return the times beside those that the ring predicts, and the shares of many ranks, as Markdown."""
    summary = summarize(rows)
    if not summary:
        return markdown(rows, ["ranks", "values", "way", "milliseconds"])
    latency, rate = fitted(rows)
    memory = {(row["ranks"], row["values"]): row["milliseconds"] for row in rows if row["way"] == "shared memory"}
    lines = [
        {
            **row,
            "ring": round(1000 * ring_seconds(row["ranks"], 4 * row["values"], latency, rate), 3),
            "shared memory": memory.get((row["ranks"], row["values"])),
        }
        for row in by_gloo(rows)
    ]
    found = markdown(summary) + "\n" + markdown(lines, ["ranks", "values", "milliseconds", "ring", "shared memory"])
    stored = RESULTS / "ranks.json"
    if stored.is_file():
        found += "\n" + markdown(predictions(rows, json.loads(stored.read_text())["measurements"]))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of ranks."""
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="processes that average")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    summarize=summarize,
    add_arguments=add_arguments,
    shared={"rounds": 40},
)
