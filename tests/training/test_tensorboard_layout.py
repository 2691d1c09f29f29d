"""Layout of TensorBoard's page Custom Scalars."""

from __future__ import annotations

import re

from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from bayes_rl.training.tensorboard_layout import CHARTS, RANGES, make_layout

TAGS = {"val/return_mean", "val/return_min", "val/return_max", "train/elbo_loss", "time/fps", "train/epsilon"}


def titles(layout: Layout) -> dict[str, list[str]]:
    """Return the titles of the charts of each category."""
    return {category.title: [chart.title for chart in category.chart] for category in layout.category}


def test_the_page_opens_on_the_five_curves_and_the_rest_is_closed() -> None:
    assert list(CHARTS["Overview"]) == ["Return", "Objective", "Uncertainty", "Speed", "Exploration"]
    layout = make_layout({re.sub(r"\(.*?\)\??|\.\+", "", p) for c in CHARTS.values() for ps in c.values() for p in ps})
    assert list(titles(layout)) == list(CHARTS)
    assert [category.closed for category in layout.category] == [False] + [True] * (len(CHARTS) - 1)


def test_a_chart_without_a_curve_and_a_category_without_a_chart_are_left_out() -> None:
    assert titles(make_layout(TAGS)) == {
        "Overview": ["Return", "Objective", "Speed", "Exploration"],
        "Scores of whole games": ["Mean, least and greatest score"],
    }
    assert titles(make_layout(())) == {}


def test_a_chart_has_no_curve_whose_name_only_begins_alike() -> None:
    """TensorBoard matches patterns at the beginning of a tag."""
    (chart,) = make_layout({"train/q"}).category[0].chart
    patterns = list(chart.multiline.tag)
    assert [bool(re.match(pattern, tag)) for pattern in patterns for tag in ("train/q", "train/q_max")].count(True) == 2
    assert not re.match(patterns[0], "train/q_max")


def test_each_task_has_a_curve_and_a_range() -> None:
    tags = {f"val/{task}/return_{end}" for task in ("pong", "a/b") for end in ("mean", "min", "max")}
    overview, scores = make_layout(tags).category
    (pattern,) = overview.chart[0].multiline.tag
    assert all(re.match(pattern, f"val/{task}/return_mean") for task in ("pong", "a/b"))
    assert [one.lower for one in scores.chart[0].margin.series] == ["val/a/b/return_min", "val/pong/return_min"]


def test_ranges_stand_in_categories() -> None:
    assert {*RANGES} <= {*CHARTS}
