"""Second thread of the learner, for work that does not depend on the work of the calling thread.

A minibatch's targets do not depend on its values, and the gradient of a layer's weights does not depend on the gradient
of its inputs. Such pairs run on two cores at once. Each number is computed by the same operations as by one thread, so
that all results keep their bits, and a run does not depend on whether there is a second thread.

Threads of OpenMP, torch's other way to use a second core, wait for each other by spinning after every operation: they
are slow as soon as another program runs. The thread here waits for a few long pieces of work without taking time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Work(Generic[T]):
    """Call of a function, by the second thread or by the thread that wants its result, whichever comes first.

    The function runs with the caller's modes: gradients, autocast on the CPU and denormal numbers. It must not draw
    random numbers of torch, because their order would depend on the threads.

    Args:
        function: function without arguments.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._grad, self._flush = torch.is_grad_enabled(), _is_flushing()
        self._autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self._begun, self._unfinished = threading.Lock(), threading.Lock()
        self._unfinished.acquire()  # until the result exists, so that `result` waits
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function, unless another thread has begun to."""
        if not self._begun.acquire(blocking=False):
            return
        function, self._function = self._function, None
        assert function is not None
        try:
            if torch.is_grad_enabled() != self._grad or self._autocast is not None or _is_flushing() != self._flush:
                self._result = self._in_modes(function)
            else:
                self._result = function()
        except BaseException as error:
            self._error = error
        finally:
            self._unfinished.release()

    def _in_modes(self, function: Callable[[], T]) -> T:
        was_flushing = _is_flushing()
        torch.set_flush_denormal(self._flush)
        try:
            with torch.set_grad_enabled(self._grad), torch.autocast("cpu", self._autocast, self._autocast is not None):
                return function()
        finally:
            torch.set_flush_denormal(was_flushing)

    def result(self) -> T:
        """Return what the function returned, or raise its error; call the function if nobody has begun to."""
        self.run()
        with self._unfinished:
            pass
        if self._error is not None:
            raise self._error
        result: T = self._result
        return result


def _is_flushing() -> bool:
    """Return whether this thread flushes denormal numbers to zero."""
    return sys.float_info.min / 2 == 0.0


class SideThread:
    """Thread that does work in the order in which it was given.

    The thread starts with the first work. The thread gets no work if twice the number of torch's threads exceeds the
    number of cores.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work[Any]] | None = None
        self.count_cores(1)

    def count_cores(self, processes: int) -> None:
        """Count the cores of this process: its share of the machine's, and no more than it is bound to.

        Args:
            processes: number of processes that share the machine, this one included.
        """
        all_cores = os.cpu_count() or 1
        bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
        self._cores = min(bound, max(1, all_cores // processes))

    def has_core(self) -> bool:
        """Return whether the thread can run without taking a core from the calling thread."""
        return 2 * torch.get_num_threads() <= self._cores

    def begin(self, function: Callable[[], T]) -> Work[T]:
        """Let the thread call `function`, and return its work, whose `result` must be asked for.

        Without a core, the function is called when its result is asked for.
        """
        work = Work(function)
        if self.has_core():
            if self._queue is None:
                self._queue = SimpleQueue()
                arguments = self._queue, torch.get_num_threads()
                threading.Thread(target=_do_all, args=arguments, name="bayes_rl side thread", daemon=True).start()
            self._queue.put(work)
        return work

    def forget(self) -> None:
        """Forget the thread, which a fork has left behind in the parent process."""
        self._queue = None


def _do_all(queue: SimpleQueue[Work[Any]], num_threads: int) -> None:
    torch.set_num_threads(num_threads)  # OpenMP stores the number for each calling thread
    while True:
        queue.get().run()


SIDE_THREAD = SideThread()
"""The learner's second thread."""


def begin(function: Callable[[], T], beside: bool) -> Callable[[], T]:
    """Begin to call a function, and return a function that returns its result.

    Args:
        function: see `Work`.
        beside: True offers the call to the second thread; False calls the function now.
    """
    if beside:
        return SIDE_THREAD.begin(function).result
    result = function()
    return lambda: result


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=SIDE_THREAD.forget)
