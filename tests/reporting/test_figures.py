"""Intervals by brute force, tables, bands and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from scipy.stats import t as student

from bayes_rl.reporting.figures import (
    Measures,
    band,
    draw_curves,
    draw_matrices,
    estimate,
    score_table,
    spread,
    summary_table,
    table,
)
from tests.helpers.run_directories import (
    NAN,
    tables,
)

# Intervals


def test_estimate() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, 1.5]], dtype=torch.float64)
    assert estimate(values, torch.mean) == "0.75 (0.50 to 1.00)"  # min to max of the two runs
    assert estimate(values[:1], torch.mean) == "0.50"
    assert estimate(torch.cat([values[:1], torch.tensor([[9.0, NAN]])]), torch.mean) == "0.50 (1 of 2 runs)"
    assert estimate(torch.full((2, 2), NAN), torch.mean) == "-"
    assert estimate(torch.zeros(2, 0), torch.mean) == "-"
    assert estimate(torch.tensor([[-0.001]]), torch.mean) == "0.00"


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 8])
def test_fewer_than_five_runs_have_no_95_percent_interval(runs: int) -> None:
    """Above, the mean has Student's interval."""
    values = torch.from_numpy(np.random.default_rng(runs).standard_normal((runs, 3)))
    means = values.mean(1).numpy()
    text = f"{means.mean():.2f} ({means.min():.2f} to {means.max():.2f})"
    if runs >= 5:
        low, high = student.interval(0.95, runs - 1, means.mean(), means.std(ddof=1) / runs**0.5)
        text = f"{means.mean():.2f} [{low:.2f}, {high:.2f}]"
    assert estimate(values, torch.mean) == text.replace("-0.00", "0.00")


def test_references_widen_an_interval_or_are_too_few_for_one() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 2)))

    def ends(text: str) -> tuple[float, float]:
        low, high = text.partition("[")[2].rstrip("]").split(", ")
        return float(low), float(high)

    alone = estimate(values, torch.mean)
    moved = [[values + shift for shift in (-0.5, -0.2, 0.1, 0.2, 0.4)]]
    (low, high), (wide_low, wide_high) = ends(alone), ends(estimate(values, torch.mean, moved))
    assert wide_low < low < high < wide_high
    assert estimate(values, torch.mean, [[values] * 3, []]) == alone  # references that do not matter
    least, most = values.mean(1).min(), values.mean(1).max()
    for few in (moved[0][:4], [values * NAN]):
        assert estimate(values, torch.mean, [few]).endswith(f"({least:.2f} to {most:.2f})")


def test_summary_trims_only_its_iqm() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0, 13.0]], dtype=torch.float64)
    known = dict.fromkeys(("average performance", "IQM"), values)
    rest = ("new tasks", "forgetting", "backward transfer", "forward transfer", "isolated forgetting")
    text = summary_table({"a": Measures({**known, **dict.fromkeys((*rest, "zero-shot transfer"), values * NAN)})})
    assert tables(text) == [[{"method": "a", "seeds": "1", "average performance": "4.00", "IQM": "1.50"}]]
    assert [line.split(":")[0] for line in text.splitlines()[-2:]] == ["* average performance", "* IQM"]


def test_spread_and_table() -> None:
    assert spread(torch.tensor([1.0, 4.0, NAN, 4.0])) == "3.0 [1.0, 4.0]"
    assert spread(torch.tensor([NAN, 4.0])) == "4.0"
    assert spread(torch.tensor([NAN])) == "-"
    assert table(["a", "long"], [["word", "1"]]) == "| a    | long |\n| ---- | ---- |\n| word | 1    |"
    raw = {"a": torch.tensor([[[0.0], [7.0]], [[0.0], [8.0]]])}
    assert tables(score_table(raw, ["x"], torch.tensor([[0.5], [9.0]]))) == [
        [
            {
                "task": "x",
                "as 0": "0.5",
                "as 1": "9",
                "method": "a",
                "after its visit": "7.5 [7.0, 8.0]",
                "at the end": "7.5 [7.0, 8.0]",
            }
        ]
    ]


def test_band_over_seeds_of_different_lengths() -> None:
    long = (np.array([0.0, 100.0, 200.0]), np.array([0.0, 4.0, 9.0]))
    short = (np.array([50.0, 100.0]), np.array([4.0, 8.0]))
    line = band([long, short])
    assert line.frames.tolist() == [0, 50, 100, 200]
    assert line.mean.tolist() == [0, 3, 6, 9]
    assert line.low.tolist() == [0, 2, 4, 9]
    assert line.high.tolist() == [0, 4, 8, 9]
    gap = band([(np.array([0.0, 1.0]), np.array([NAN, 2.0]))])
    assert np.isnan([gap.mean[0], gap.low[0], gap.high[0]]).all()
    assert gap.mean[1] == 2


def points(data: Any) -> list[float]:
    values: list[float] = np.asarray(data).tolist()
    return values


def test_curves_show_seeds_switches_training_and_the_reference() -> None:
    frames = np.array([0.0, 100.0, 200.0, 300.0, 400.0])
    seeds = [(frames, np.array([[i, 10 * i] for i in range(5)]) + shift) for shift in (0.0, 2.0)]
    alone = [[(np.array([0.0, 500.0]), np.array([[0.0], [7.0]]))], []]
    figure = draw_curves({"a": seeds, "b": seeds[:1]}, alone, ["x", "y"], [0, 100, 200, 300, 400])
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["x", "y"]
    lines = {line.get_label(): line for line in first.get_lines()}
    assert points(lines["a"].get_ydata()) == [1, 2, 3, 4, 5]
    assert points(lines["b"].get_ydata()) == [0, 1, 2, 3, 4]
    assert points(lines["learned alone"].get_xdata()) == [0, 500]
    assert {line.get_label() for line in second.get_lines()} >= {"a", "b"}
    assert "learned alone" not in {line.get_label() for line in second.get_lines()}
    assert points(second.get_lines()[-2].get_ydata()) == [1, 11, 21, 31, 41]
    for axes, visits in ((first, (0, 2)), (second, (1, 3))):
        patches: Any = axes.patches
        shaded = [patch.get_x() for patch in patches if patch.get_facecolor() == to_rgba("0.9")]
        assert shaded == [100 * visit for visit in visits]
        switches = [points(line.get_xdata())[0] for line in axes.get_lines() if line.get_linestyle() == ":"]
        assert switches == [100, 200, 300]
    low, high = first.collections[0].get_datalim(first.transData).intervaly
    assert (low, high) == (0, 6)
    assert first.get_xlim() == (-4, 404)  # not up to the 500 frames of the reference
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "learned alone"]
    shifted = draw_curves({"a": seeds}, [[], alone[0]], ["x", "y"], [0, 100, 200, 300, 400]).axes[1].get_lines()[-1]
    assert points(shifted.get_xdata()) == [100, 600]


def test_matrices_write_their_numbers() -> None:
    scores = np.array([[0.0, -0.5], [0.9, 0.1], [0.25, NAN]])
    figure = draw_matrices({"a": scores, "b": scores * 2, "c": scores}, ["x", "y"])
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    for axes, factor in zip(panels, (1, 2, 1), strict=True):
        written = {text.get_position(): text.get_text() for text in axes.texts}
        expected = {(v, t): f"{factor * scores[v, t]:.2f}" for v in range(3) for t in range(2)}
        assert written == {**expected, (2, 1): "-"}
        assert axes.images[0].get_clim() == (-1, 1.8)
        image: Any = axes.images[0].get_array()
        np.testing.assert_array_equal(image.filled(NAN), factor * scores.T)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["x", "y"]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["start", "1", "2"]
        frames: Any = axes.patches
        assert [frame.get_xy() for frame in frames] == [(0.5, -0.5), (1.5, 0.5)]
    assert [text.get_color() for text in panels[1].texts] == ["white", "white", "black", "white", "white", "black"]


def test_validations_of_all_seeds_a_few_frames_apart_are_one_point() -> None:
    """Else the last one, where only one seed is known, would be a spike of its own."""
    scores = [np.array([0.0, 4.0, 8.0]), np.array([2.0, 6.0, 2.0])]
    near = band([(np.array([0.0, 100.0, 200.0]), scores[0]), (np.array([0.0, 102.0, 206.0]), scores[1])])
    assert near.frames.tolist() == [0, 101, 203]
    assert [near.mean.tolist(), near.low.tolist(), near.high.tolist()] == [[1, 5, 5], [0, 4, 2], [2, 6, 8]]
    far = band([(np.array([0.0, 100.0, 200.0]), scores[0]), (np.array([0.0, 150.0, 200.0]), scores[1])])
    assert far.frames.tolist() == [0, 100, 150, 200]
