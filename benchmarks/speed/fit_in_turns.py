"""Fit of any version of this program that waits for its turns: a script for `versions`, not a benchmark.

    python benchmarks/speed/fit_in_turns.py CHECKOUT WARM_UP UPDATES [options of fit]

After `WARM_UP` updates it writes a line, and for each line that it reads it learns for `UPDATES` updates and writes
their time, the time of all threads and of the main thread on the processor, and the frames, as JSON. Between turns it
waits.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO


def clocks() -> tuple[float, float, float]:
    """Return the time, and that of all threads and of this thread on the processor, in seconds."""
    return time.perf_counter(), time.process_time(), time.thread_time()


class Turns:
    """Turns of a fit, counted at each minibatch of its stream.

    Args:
        stream: class of the stream in the checkout.
        warm_up: updates before the first turn.
        updates: updates of a turn.
        output: where lines are written.
    """

    def __init__(self, stream: Any, warm_up: int, updates: int, output: TextIO) -> None:
        self._minibatches, self._output = stream.__iter__, output
        self._end, self._updates, self._count = warm_up, updates, 0
        self._start: tuple[tuple[float, float, float], int] | None = None
        turns = self
        stream.__iter__ = lambda self: turns.minibatches(self)

    def minibatches(self, stream: Any) -> Iterator[Any]:
        """Yield the minibatches of an epoch, and wait between turns."""
        for minibatch in self._minibatches(stream):
            yield minibatch
            self._count += 1
            if self._count == self._end:
                self._end_turn(stream)

    def _end_turn(self, stream: Any) -> None:
        line = "ready"
        if self._start is not None:
            wall, cpu, main = (end - start for start, end in zip(self._start[0], clocks(), strict=True))
            frames = (stream.vector_steps - self._start[1]) * stream.envs.num_envs * stream.frame_skip
            line = json.dumps({"wall": wall, "cpu": cpu, "main": main, "frames": frames})
        self._output.write(f"{line}\n")
        if not sys.stdin.readline():
            os._exit(0)  # the benchmark is over, and nothing of the run is wanted
        self._end = self._count + self._updates
        self._start = clocks(), stream.vector_steps


def main(checkout: Path, warm_up: int, updates: int, options: list[str]) -> None:
    """Fit with the program of a checkout."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the fit prints is no line of this script
    sys.path.insert(0, str(checkout))
    module: Any = None
    for name in ("bayes_rl.stream", "bayes_rl.data.stream"):  # of version 0.1.0, and of later ones
        with suppress(ModuleNotFoundError):
            module = importlib.import_module(name)
    if not Path(module.__file__).is_relative_to(checkout):
        raise SystemExit(f"{checkout} is not the checkout that Python imports: {module.__file__}")
    Turns(module.ReplayStream, warm_up, updates, output)
    sys.argv = ["cli.py", "fit", *options]
    runpy.run_path(str(checkout / "cli.py"), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
