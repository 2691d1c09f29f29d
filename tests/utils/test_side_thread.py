"""The learner's second thread: who does the work, by which modes, and what becomes of errors and forks."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from bayes_rl.utils.side_thread import SideThread, Work, begin


@pytest.fixture
def thread() -> SideThread:
    """Return a thread that has a core, whatever this machine has."""
    thread = SideThread()
    thread._cores = 2
    return thread


def modes() -> tuple[bool, bool, bool]:
    """Return this thread's modes: gradients, autocast, flushed denormals."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), sys.float_info.min / 2 == 0.0


def test_the_thread_works_beside_the_caller(thread: SideThread) -> None:
    """Each waits for the other, which one thread alone could not."""
    here, there = threading.Event(), threading.Event()

    def answer() -> str:
        there.set()
        assert here.wait(60)
        return threading.current_thread().name

    work = thread.begin(answer)
    assert there.wait(60)
    here.set()
    assert work.result() == "bayes_rl side thread"


def test_work_is_done_once_by_the_first_who_comes(thread: SideThread) -> None:
    blocked = threading.Event()
    first = thread.begin(lambda: blocked.wait(60))
    calls: list[str] = []
    second = thread.begin(lambda: calls.append(threading.current_thread().name))
    second.result()  # the thread is busy, so that the caller does it
    blocked.set()
    assert first.result()
    assert thread.begin(lambda: len(calls)).result() == 1
    assert calls == [threading.current_thread().name]


def test_without_a_core_the_caller_does_the_work() -> None:
    thread = SideThread()
    thread._cores = 1
    assert not thread.has_core()
    assert thread.begin(threading.current_thread).result() is threading.current_thread()
    torch.set_num_threads(2)
    thread._cores = 2
    assert not thread.has_core()


def test_an_error_reaches_the_caller(thread: SideThread) -> None:
    def fail() -> None:
        raise ValueError("no")

    work = thread.begin(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            work.result()
    assert thread.begin(lambda: 5).result() == 5


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_work_has_the_modes_of_the_caller(thread: SideThread, grad: bool, autocast: bool, flush: bool) -> None:
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, autocast):
        torch.set_flush_denormal(flush)
        try:
            work = Work(modes)
            other = threading.Thread(target=work.run)
            other.start()
            other.join()
            assert work.result() == modes() == (grad, autocast, flush)
        finally:
            torch.set_flush_denormal(False)


def test_the_thread_keeps_its_own_modes(thread: SideThread) -> None:
    with torch.no_grad():
        assert not thread.begin(torch.is_grad_enabled).result()
    assert thread.begin(torch.is_grad_enabled).result()


def test_work_that_is_not_beside_is_done_at_once() -> None:
    calls: list[int] = []
    result = begin(lambda: calls.append(1) or 7, beside=False)  # type: ignore[func-returns-value]
    assert calls == [1]
    assert result() == result() == 7
    assert calls == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_starts_a_thread_of_its_own() -> None:
    assert begin(lambda: 1, beside=True)() == 1
    child = os.fork()
    if child == 0:
        os._exit(begin(lambda: 42, beside=True)())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
