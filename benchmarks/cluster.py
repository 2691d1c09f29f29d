"""Cells of a benchmark on the machines of a Ray cluster.

The machines see one disk, with the repository at the same path, and have the program with its extra `cluster`. A cell
whose machine is lost is measured again on another machine: one that keeps checkpoints in `--output` goes on from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bayes_rl.errors import ConfigError
from bayes_rl.sweep import cluster
from bayes_rl.sweep.schedule import RETRIES
from benchmarks import runner


def measure_here(words: Sequence[str], cell: runner.Cell, name: str, options: runner.Options) -> runner.Row | str:
    """Measure a cell in a child process of this machine.

    Args:
        words: command line of the benchmark.
        cell: what to measure.
        name: of the benchmark.
        options: of the benchmark.

    Returns:
        The results with the hardware and the versions of this machine, or the error in one line.
    """
    child = runner.Child(name, cell, words, options.output, 1, show_output=False)
    try:
        result = child.result()
    finally:
        child.kill()
    return result if isinstance(result, str) else {**runner.machine(), **result}


class RemoteChild:
    """Cell that some machine of the cluster measures, with the methods of `runner.Child`.

    Args:
        remote: function `measure_here` as Ray runs it.
        cell: what to measure.
        arguments: further arguments of `measure_here`.
    """

    def __init__(self, remote: Any, cell: runner.Cell, **arguments: Any) -> None:
        self.cell = cell
        self._task = remote.remote(cell=cell, **arguments)

    @property
    def ended(self) -> bool:
        """True once the cell is measured, or has failed for good."""
        import ray

        return bool(ray.wait([self._task], timeout=0)[0])

    def result(self) -> runner.Row | str:
        """Wait for the results, and return them, or the error in one line."""
        import ray

        try:
            result: runner.Row | str = ray.get(self._task)
        except ray.exceptions.RayError as error:
            return " ".join(str(error).split())[:300]
        return result

    def kill(self) -> None:
        """Drop the cell."""
        import ray

        ray.cancel(self._task, force=True)


@contextmanager
def measuring(address: str) -> Iterator[tuple[Any, int]]:
    """Connect to a cluster within this block.

    Args:
        address: `auto`, or `HOST:PORT` of a Ray cluster.

    Yields:
        `measure_here` as Ray runs it, for `RemoteChild`, and the number of cells at the same time: one for each core.

    Raises:
        ConfigError: if Ray is not installed, or no cluster answers.
    """
    if missing := cluster.missing_packages():
        install = "pip install 'bayes_rl[cluster]'"
        raise ConfigError("address", address, f"needs {' and '.join(missing)}, which {install} installs")
    with cluster.connected(address):
        import ray

        paths = os.pathsep.join(filter(None, [str(runner.ROOT), os.environ.get("PYTHONPATH")]))
        options = {"max_calls": 1, "max_retries": RETRIES, "runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        yield ray.remote(num_cpus=1, **options)(measure_here), int(ray.cluster_resources().get("CPU", 0))
