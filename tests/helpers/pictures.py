"""Figures that are neither drawn nor rendered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

DRAWN = ("bayes_rl.reporting.game_figure.draw_game", "bayes_rl.reporting.uncertainty_figure.draw_uncertainty")
"""Functions that draw the figures of every validation."""


def save_one_pixel(figure: Any, file: str | Path | IO[bytes], **_: Any) -> None:
    """Save a PNG of one pixel in the place of a figure."""
    Image.new("RGB", (1, 1)).save(file, format="PNG")


@contextmanager
def without_figures() -> Iterator[None]:
    """Leave the figures of validations empty, and save one pixel in the place of any figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)
        for function in DRAWN:
            patch.setattr(function, lambda *_: Figure())
        yield


@pytest.fixture(scope="module", autouse=True)
def _figures_are_not_rendered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw figures in modules with the marker `pictures` alone: a run has several, each of which takes a second."""
    if request.node.get_closest_marker("pictures"):
        yield
        return
    with without_figures():
        yield
