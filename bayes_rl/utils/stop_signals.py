"""Signals that ask the process to stop: SIGINT (Ctrl+C), SIGTERM and SIGHUP."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


PATIENCE = 4.0
"""Seconds from the first signal until the process is ended, wherever the main thread is."""


PATIENCE_WITH_RANKS = 30.0
"""The same for a rank of a run, whose update waits for the slowest rank."""


SAVE_PATIENCE = 60.0
"""Seconds from the first signal until the process is ended while `StopSignals.saving` is set."""


class Stopped(SystemExit):
    """Exit that a signal asked for, with exit code 128 + number of the signal."""


class StopSignals:
    """Listener for SIGINT, SIGTERM and SIGHUP.

    The first signal raises `Stopped` in the main thread: at once, or, while `deferred` is set, at the next call of
    `allow`. A second signal ends the process at once, without `Stopped`; while `saving` is set, a second signal does
    nothing. The process also ends without `Stopped` `PATIENCE` seconds after the first signal, or `PATIENCE` seconds
    after the end of a save; a save has `SAVE_PATIENCE` seconds. A thread watches for these ends, because the main
    thread hears no signal inside a library, and because foreign code may catch `Stopped`.

    Attributes:
        received: number of the first signal, or None before it.
        deferred: whether `Stopped` waits for the next call of `allow`, because no checkpoint holds the newest updates.
        saving: whether a save is pending or running. While `saving` is set, a second signal does nothing.
        patience: seconds from the first signal until the process is ended; None for `PATIENCE`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = self.saving = False
        self.patience: float | None = None
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._terminals: list[int] = []  # those of descriptors 1 (stdout) and 2 (stderr) that are terminals

    @property
    def is_listening(self) -> bool:
        """Return whether this object hears the signals of the process."""
        return self._pipe is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals within this block. An inner block, and one in another thread, changes nothing."""
        if self._pipe is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._begin()
        try:
            yield
        finally:
            if self.received is None:  # else the process is about to end
                self._end()

    def _begin(self) -> None:
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        for number in SIGNALS:
            if not (number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN):  # nohup
                self._previous[number] = signal.getsignal(number)
        self.take_over()
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=[reading], name="stop signals", daemon=True).start()

    def take_over(self) -> None:
        """Install the handlers again, after other code has installed its own. Without a listener, do nothing."""
        for number in self._previous:
            signal.signal(number, self._hear)

    def _end(self) -> None:
        assert self._pipe is not None
        signal.set_wakeup_fd(-1)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous, (_, writing), self._pipe = {}, self._pipe, None
        os.close(writing)  # the watching thread reads the end of the pipe

    def forget_in_child(self) -> None:
        """Restore the handlers in a forked process, which must not write to the pipe of its parent."""
        if self._pipe is not None and self.received is None:
            os.close(self._pipe[0])
            self._end()

    def _leave_terminals(self) -> None:
        """Send further output to nowhere instead of a terminal, which is closed: a write to it would fail."""
        with open(os.devnull, "wb") as nowhere:
            for stream in self._terminals:
                os.dup2(nowhere.fileno(), stream)

    def _hear(self, number: int, frame: Any) -> None:
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminals()  # also as a second signal: a save may still print
        if self.received is not None:
            if not self.saving:
                os._exit(128 + self.received)
            return
        self.received = number
        if not self.deferred:
            self.leave()
        with contextlib.suppress(OSError):  # of a reader that the signal has ended too, as in `bayes-rl fit | tee`
            os.write(1, b"\nstopping after this update; once more to leave at once\n")  # `print` could interrupt itself

    def leave(self) -> NoReturn:
        """Raise `Stopped` with the exit code of the first signal."""
        assert self.received is not None
        raise Stopped(128 + self.received)

    def allow(self) -> None:
        """End the deferral, because everything is saved. A signal that came before raises `Stopped` now."""
        self.deferred = self.saving = False
        if self.received is not None:
            self.leave()

    @contextlib.contextmanager
    def save_in_progress(self) -> Iterator[None]:
        """Let a save within this block finish before a signal ends the process."""
        before = self.deferred, self.saving
        self.deferred = self.saving = True
        try:
            yield
        finally:
            self.deferred, self.saving = before
        if self.received is not None and not self.deferred:
            self.leave()

    def _watch(self, pipe: int) -> None:
        """End the process at a second signal, or when the patience with the first one is over."""
        signals: list[int] = []
        began = saved = 0.0
        while True:
            if select.select([pipe], [], [], 0.05 if signals else None)[0]:
                content = os.read(pipe, 64)
                if not content:
                    os.close(pipe)
                    return
                began = began if signals else time.monotonic()
                signals += [number for number in content if number in SIGNALS]
                continue  # the main thread comes first
            now = time.monotonic()
            saved = now if self.saving else saved
            late = now - began > SAVE_PATIENCE if self.saving else now - max(began, saved) > (self.patience or PATIENCE)
            if late or (len(signals) > 1 and not self.saving):
                os._exit(128 + signals[0])


def end_process(stop: Stopped) -> NoReturn:
    """End the process with the exit code of a signal, after the functions that modules registered for the exit.

    Python would release every module first, which takes seconds on a loaded machine.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or on a full disk
            stream.flush()
    assert isinstance(stop.code, int)
    os._exit(stop.code)


STOP = StopSignals()
"""The listener of this process."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STOP.forget_in_child)
