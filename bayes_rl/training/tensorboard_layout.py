"""Layout of TensorBoard's page Custom Scalars: the five curves that matter first, and the others in groups."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata

GAMES = "val/(.+/)?"
"""Pattern of the beginning of a tag of the validation games; with several tasks, their names follow."""

CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Overview": {
        "Return": (f"{GAMES}return_mean",),
        "Objective": ("train/elbo_loss",),
        "Uncertainty": (f"{GAMES}epistemic_std_mean",),
        "Speed": ("time/fps",),
        "Exploration": ("train/epsilon", "train/draw_share", f"{GAMES}greedy_disagreement"),
    },
    "Scores of whole games": {
        "Human-normalised": (f"{GAMES}human_normalised",),
        "Score that counts": (f"{GAMES}return_counted",),
        "Length": (f"{GAMES}length_mean",),
        "Games that were stopped": (f"{GAMES}games_cut", f"{GAMES}games_truncated"),
    },
    "Objective": {
        "Likelihood": ("train/nll",),
        "KL divergence": ("train/kl",),
        "KL divergence by layer": ("kl/.+",),
        "Terms relative to the likelihood": ("train/kl_to_nll", "train/ewc_to_nll"),
        "Loss of the actors": ("train/actor_loss",),
        "Penalty": ("train/ewc_penalty",),
        "Frozen weights": ("train/frozen_share",),
        "Spread of weights": ("posterior/std_mean",),
        "Step sizes": ("train/(actor|critic)_lr",),
        "Skipped updates": ("train/skipped_updates",),
    },
    "Values and policy": {
        "Q": ("train/q", "train/q_max"),
        "Errors of values": ("train/td_error", "train/twin_gap"),
        "Noise of returns": ("train/noise_std",),
        "Actor and critic agree": ("train/actor_agrees",),
        "Entropy of the policy": ("train/policy_entropy",),
        "Clamped targets": ("train/clamped_targets",),
        "Dormant units": (f"{GAMES}dormant_share",),
        "Rank of the features": (f"{GAMES}effective_rank",),
    },
    "Calibration": {
        "Error and uncertainty of values": (f"{GAMES}return_rmse", f"{GAMES}epistemic_std_mean"),
        "Fitted intervals": (f"{GAMES}coverage_50", f"{GAMES}coverage_90"),
        "Raw intervals": (f"{GAMES}raw_coverage_50", f"{GAMES}raw_coverage_90"),
        "Calibration error": (f"{GAMES}calibration_error",),
        "CRPS": (f"{GAMES}crps",),
        "Width of intervals": (f"{GAMES}interval_width_90",),
        "Bias of values": (f"{GAMES}return_bias",),
    },
    "Tests of uncertainty": {
        "Novel states (AUROC)": (f"{GAMES}novelty_auroc_.+",),
        "Uncertainty and error": (f"{GAMES}(predictive_)?error_correlation",),
        "Risk-coverage": (f"{GAMES}(predictive_)?risk_coverage_area",),
    },
    "Experience": {
        "Return of training episodes": ("train/return_mean",),
        "Transitions": ("train/num_data",),
        "Episodes": ("train/episodes",),
        "Updates and steps": ("train/updates", "train/agent_steps"),
    },
}
"""Category to chart to patterns of tags. A chart has the curves whose whole tag matches a pattern."""


class Range(NamedTuple):
    """Curve between two others, as a chart with a band.

    Attributes:
        value: last part of the tag of the curve.
        lower: last part of the tag of the lower end.
        upper: last part of the tag of the upper end.
    """

    value: str
    lower: str
    upper: str


RANGES: dict[str, dict[str, Range]] = {
    "Scores of whole games": {"Mean, least and greatest score": Range("return_mean", "return_min", "return_max")},
    "Tests of uncertainty": {
        "Uncertainty and error, with its interval": Range(
            "error_correlation", "error_correlation_low", "error_correlation_high"
        )
    },
}
"""Category to chart to its range of each task."""


def make_layout(tags: Collection[str]) -> Layout:
    """Return the layout of a run.

    Args:
        tags: tags that the run has logged. A chart without a curve is left out.
    """
    categories = []
    for number, (title, charts) in enumerate(CHARTS.items()):
        shown = [
            *_ranges(RANGES.get(title, {}), tags),
            *(
                Chart(title=name, multiline=MultilineChartContent(tag=[f"^{pattern}$" for pattern in patterns]))
                for name, patterns in charts.items()
                if any(re.fullmatch(pattern, tag) for pattern in patterns for tag in tags)
            ),
        ]
        if shown:
            categories.append(Category(title=title, chart=shown, closed=number > 0))
    return Layout(category=categories)


def _ranges(ranges: dict[str, Range], tags: Collection[str]) -> list[Chart]:
    """Return the charts with a band, each with a band for every task."""
    charts = []
    for title, names in ranges.items():
        before = sorted(tag.removesuffix(names.value) for tag in tags if re.fullmatch(f"{GAMES}{names.value}", tag))
        series = [
            MarginChartContent.Series(value=start + names.value, lower=start + names.lower, upper=start + names.upper)
            for start in before
        ]
        if series:
            charts.append(Chart(title=title, margin=MarginChartContent(series=series)))
    return charts


def as_summary(layout: Layout) -> Summary:
    """Return a layout as a summary; TensorBoard's own function for this needs TensorFlow."""
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto())
    value = Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=create_summary_metadata())
    return Summary(value=[value])
