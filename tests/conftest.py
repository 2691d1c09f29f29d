"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers import one_parser


@pytest.fixture(autouse=True)
def _same_start_for_every_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, use one thread, and work in an empty folder, so that no test depends on those before it.

    A test that runs the command line changes the number of threads of the process.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shared_parser() -> Iterator[None]:
    """Let the command lines of all tests with this fixture be read by one parser."""
    with one_parser.one_parser():
        yield
