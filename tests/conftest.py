"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start_for_every_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, use one thread, and work in an empty folder, so that no test depends on those before it.

    A test that runs the command line changes the number of threads of the process.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
