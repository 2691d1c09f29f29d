"""Figures that are saved without being rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image


def save_one_pixel(figure: Any, file: str | Path | IO[bytes], **_: Any) -> None:
    """Save a PNG of one pixel in the place of a figure."""
    Image.new("RGB", (1, 1)).save(file, format="PNG")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Render figures in tests with the marker `pictures` alone: a run draws several, half a second each.

    A conftest that imports this hook applies it to the tests of its folder.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("pictures"):
            patch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)
        yield
