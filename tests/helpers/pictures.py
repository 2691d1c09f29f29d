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


@pytest.fixture(scope="module", autouse=True)
def _figures_are_not_rendered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Render figures in modules with the marker `pictures` alone: a run draws several, half a second each."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("pictures"):
            patch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)
        yield
