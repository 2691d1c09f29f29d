"""Busy processes beside which versions take turns."""

from __future__ import annotations

import argparse
import subprocess

import pytest

from benchmarks.speed import versions


def test_versions_take_turns_beside_no_and_beside_one_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def record(*arguments: object) -> subprocess.Popen[bytes]:
        started.append(start(*arguments))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(versions.subprocess, "Popen", record)
    running: list[int] = []
    for cell in versions.cells(argparse.Namespace(), []):
        with versions.busy_processes(cell["busy"]):
            running.append(sum(process.poll() is None for process in started))
    assert running == [0, 1]
    assert all(process.poll() is not None for process in started)
