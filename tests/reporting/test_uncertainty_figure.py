"""Picture of the tests of uncertainty: every line and bar by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bayes_rl.evaluation.game_metrics import Evidence
from bayes_rl.metrics.calibration import LEVELS
from bayes_rl.reporting.uncertainty_figure import draw_uncertainty

COVERAGE = torch.linspace(0.1, 0.9, len(LEVELS), dtype=torch.float64)
FOUND = Evidence(
    {"known": torch.tensor([0.0, 1.0, 1.0, 4.0]), "noise": torch.tensor([2.0, 4.0]), "unvisited": torch.empty(0)},
    torch.tensor([0.3, 0.1, 0.2]),
    torch.tensor([5.0, 1.0, 3.0]),
    COVERAGE,
)


def test_each_panel_shows_its_numbers() -> None:
    figure = draw_uncertainty({"game": FOUND}, "title")
    spread, risk, calibration = figure.axes
    labels = [text.get_text() for text in spread.get_legend().get_texts()]
    # Of 8 pairs the novel state has the greater std in 6 (2 > 0, 1, 1; 4 > 0, 1, 1), and 4 = 4 counts half.
    assert labels == ["played", "noise, AUROC 0.81"]
    # 40 bins of width 0.1 from 0 to 4: the corners of an outline at the left end of a bin have its height.
    outlines = [np.round(patch.get_xy(), 6) for patch in spread.patches]
    for outline, wanted in zip(outlines, ({0.0: 0.25, 1.0: 0.5, 3.9: 0.25}, {2.0: 0.5, 3.9: 0.5}), strict=True):
        assert {y for _, y in outline} == {0.0, *wanted.values()}
        assert all((left, share) in map(tuple, outline) for left, share in wanted.items())
    chance, by_std, by_errors = risk.lines
    assert set(chance.get_ydata()) == {3.0}
    assert by_std.get_xdata() == pytest.approx([1 / 3, 2 / 3, 1])
    assert by_std.get_ydata() == pytest.approx([1, 2, 3])
    assert by_errors.get_ydata() == pytest.approx([1, 2, 3])
    assert "area 1.00" in by_std.get_label()
    diagonal, coverage = calibration.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert coverage.get_xdata() == pytest.approx(LEVELS)
    assert coverage.get_ydata() == pytest.approx(COVERAGE)


def test_several_tasks_have_a_row_each() -> None:
    figure = draw_uncertainty({"one": FOUND, "two": FOUND}, "title")
    assert len(figure.axes) == 6
    assert [axes.get_title().split(":")[0] for axes in figure.axes[::3]] == ["one", "two"]


def test_missing_numbers_leave_panels_empty() -> None:
    nothing = torch.empty(0)
    for deviations, std in (
        ({"known": nothing}, nothing),
        ({"known": torch.tensor([math.nan])}, torch.tensor([math.nan])),
    ):
        figure = draw_uncertainty({"game": Evidence(deviations, std, std, COVERAGE * math.nan)}, "title")
        assert [len(axes.lines) for axes in figure.axes] == [0, 0, 1]
