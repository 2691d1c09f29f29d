"""Stop signals: exit codes, deferral, second signals, and code that does not listen."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import bayes_rl
from bayes_rl.utils import stop_signals

ROOT = Path(bayes_rl.__file__).parents[1]
BEGIN = """
import contextlib, ctypes, os, signal, sys, time
from bayes_rl.utils import stop_signals
from bayes_rl.utils.stop_signals import STOP, Stopped, end_process
stop_signals.PATIENCE = 0.5
def say(word):
    print(word, flush=True)
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def hear_every_signal() -> None:
    """Restore the default handlers: under `nohup`, a process inherits that SIGHUP is ignored."""
    for number in CODES:
        signal.signal(number, signal.SIG_DFL)


def begin(code: str, **options: object) -> subprocess.Popen[str]:
    """Start a process that listens to signals while it runs `code`, once it has printed `ready`."""
    body = "\n".join("        " + line for line in code.strip().splitlines())
    program = f"{BEGIN}\ntry:\n    with STOP.listening():\n{body}\nexcept Stopped as stop:\n    end_process(stop)\n"
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "preexec_fn": hear_every_signal, **options}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **given
    )
    if process.stdout is not None:
        assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str], seconds: float = 20) -> tuple[int, str]:
    """Return the exit code of a process and what it printed since."""
    if process.stdout is None:
        return process.wait(timeout=seconds), ""
    watchdog = threading.Timer(seconds, process.kill)  # `read` has no limit of its own
    watchdog.start()
    with process.stdout:  # `communicate` forgets what was buffered
        printed = process.stdout.read()
    watchdog.cancel()
    return process.wait(timeout=seconds), printed


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_process_at_once_with_its_exit_code(number: int) -> None:
    process = begin('say("ready"); time.sleep(60)')
    process.send_signal(number)
    assert ended(process) == (CODES[number], "")  # type: ignore[index]


@pytest.mark.parametrize("number", CODES)
def test_a_deferred_signal_ends_the_process_after_the_work(number: int) -> None:
    code = """
STOP.deferred = True
say("ready")
while STOP.received is None:
    time.sleep(0.01)
say("work done")
STOP.allow()
say("not reached")
"""
    process = begin(code)
    process.send_signal(number)
    printed = "\nstopping after this update; once more to leave at once\nwork done\n"
    assert ended(process) == (CODES[number], printed)  # type: ignore[index]


def test_a_second_signal_ends_the_process_at_once_with_the_exit_code_of_the_first() -> None:
    code = """
stop_signals.PATIENCE = 60
STOP.deferred = True
say("ready")
while True:
    time.sleep(0.01)
"""
    process = begin(code)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "once more" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (130, "")


def test_neither_a_second_signal_nor_time_prevents_a_save() -> None:
    code = """
with STOP.save_in_progress():
    say("ready")
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        time.sleep(0.01)
    say("saved")
say("not reached")
"""
    process = begin(code)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    code_of_exit, printed = ended(process)
    assert code_of_exit == 143
    assert printed.splitlines()[-1] == "saved"


def test_after_a_long_save_the_process_ends_by_itself() -> None:
    code = """
import atexit
atexit.register(lambda: (time.sleep(0.2), print("cleaned up")))
with STOP.save_in_progress():
    say("ready")
    time.sleep(1.5)  # longer than the patience, which begins anew
"""
    process = begin(code)
    process.send_signal(signal.SIGTERM)
    code_of_exit, printed = ended(process)
    assert code_of_exit == 143
    assert printed.splitlines()[-1] == "cleaned up"


def test_a_reader_of_the_output_that_has_ended_prevents_no_save(tmp_path: Path) -> None:
    code = f"""
STOP.deferred = True
say("ready")
while STOP.received is None:
    time.sleep(0.01)
open({str(tmp_path / "saved")!r}, "w").close()
STOP.allow()
"""
    process = begin(code)
    assert process.stdout is not None
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert (tmp_path / "saved").exists()


def test_a_save_within_deferred_work_leaves_the_signal_deferred() -> None:
    code = """
STOP.deferred = True
say("ready")
with STOP.save_in_progress():
    while STOP.received is None:
        time.sleep(0.01)
say("still at work")
STOP.allow()
"""
    process = begin(code)
    process.send_signal(signal.SIGTERM)
    code_of_exit, printed = ended(process)
    assert code_of_exit == 143
    assert "still at work" in printed


def test_code_that_catches_everything_is_ended_when_the_patience_is_over() -> None:
    code = """
say("ready")
while True:
    with contextlib.suppress(BaseException):
        time.sleep(60)
"""
    process = begin(code)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "")


def test_a_library_that_does_not_return_is_ended_when_the_patience_is_over() -> None:
    process = begin('say("ready"); ctypes.CDLL(None).system(b"exec sleep 60 >/dev/null 2>&1")')
    time.sleep(0.3)  # until the library has begun
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "")


def test_a_second_signal_ends_a_library_that_does_not_return() -> None:
    code = """
stop_signals.PATIENCE = 60
say("ready")
ctypes.CDLL(None).system(b"exec sleep 60 >/dev/null 2>&1")
"""
    process = begin(code)
    time.sleep(0.3)  # until the library has begun
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "")
    assert time.monotonic() - began < 20


def test_a_work_that_is_never_done_is_ended_when_the_patience_is_over() -> None:
    process = begin('STOP.deferred = True\nsay("ready")\nwhile True:\n    time.sleep(0.01)')
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 129


def test_nohup_is_respected() -> None:
    program = 'say("ready"); time.sleep(1); say("still here")'
    process = begin(program, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "still here\n")


def test_a_closed_terminal_takes_no_output_and_stops_no_save(tmp_path: Path) -> None:
    code = f"""
STOP.deferred = True
open({str(tmp_path / "ready")!r}, "w").close()
while STOP.received is None:
    time.sleep(0.01)
time.sleep(0.3)
say("to a terminal that is closed")
open({str(tmp_path / "saved")!r}, "w").close()
STOP.allow()
"""
    terminal, process_side = pty.openpty()
    process = begin(code, stdout=process_side, stderr=process_side)
    os.close(process_side)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 129
    assert (tmp_path / "saved").exists()


def test_a_signal_to_a_forked_child_does_not_end_its_parent() -> None:
    code = """
say("ready")
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
time.sleep(1)
say("alive")
"""
    assert ended(begin(code)) == (0, "-15\nalive\n")


def test_an_inner_block_changes_nothing() -> None:
    code = """
say("ready")
with STOP.listening():
    pass
say(signal.getsignal(signal.SIGTERM) == STOP._hear)
"""
    assert ended(begin(code)) == (0, "True\n")


def test_the_handlers_before_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "SIGNALS", (signal.SIGINT, signal.SIGTERM))  # SIGHUP is ignored under `nohup`
    before = [signal.getsignal(number) for number in stop_signals.SIGNALS]
    threads = set(threading.enumerate())  # an interrupted command of another test may have left one
    listener = stop_signals.StopSignals()
    with listener.listening():
        assert {thread.name for thread in set(threading.enumerate()) - threads} == {"stop signals"}
        assert [signal.getsignal(number) for number in stop_signals.SIGNALS] == [listener._hear] * 2
    assert [signal.getsignal(number) for number in stop_signals.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_functions_registered_for_the_exit_run_and_output_is_flushed() -> None:
    code = """
import atexit
atexit.register(lambda: print("cleaned up"))
say("ready")
print("unflushed")
time.sleep(60)
"""
    process = begin(code)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "unflushed\ncleaned up\n")
