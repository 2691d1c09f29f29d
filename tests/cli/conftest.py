"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers import one_parser
from tests.helpers.pictures import _figures_are_not_rendered

__all__ = ["_figures_are_not_rendered"]


@pytest.fixture
def shared_parser() -> Iterator[None]:
    """Let the command lines of all tests with this fixture be read by one parser."""
    with one_parser.one_parser():
        yield
