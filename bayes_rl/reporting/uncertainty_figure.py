"""Picture of the tests of uncertainty of one set of games."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bayes_rl.evaluation.game_metrics import Evidence
from bayes_rl.metrics.calibration import LEVELS
from bayes_rl.metrics.error_ranking import relative_risk_area, risk_coverage
from bayes_rl.metrics.novelty import novelty_auroc

NAMES = {"known": "played", "other_game": "another game"}
"""Words for kinds of states whose names are no words."""


def draw_uncertainty(evidence: Mapping[str, Evidence], title: str) -> Figure:
    """Draw a row of three panels for each task: uncertainty by kind of state, risk-coverage curve, and raw calibration.

    Args:
        evidence: by the name of the task.
        title: of the whole picture.
    """
    high = 0.5 + 3.6 * len(evidence)
    figure = Figure(figsize=(13, high))
    figure.text(0.5, 1 - 0.3 / high, title, ha="center", fontsize=12)
    # Fixed positions: a layout that is computed doubles the time, and a fit draws this at every validation.
    places = {"left": 0.05, "right": 0.99, "bottom": 0.55 / high, "top": 1 - 0.8 / high, "wspace": 0.2, "hspace": 0.38}
    rows = figure.subplots(len(evidence), 3, squeeze=False, gridspec_kw=places)
    for (name, found), (spread, risk, calibration) in zip(evidence.items(), rows, strict=True):
        _draw_spread(spread, found)
        _draw_risk(risk, found)
        _draw_calibration(calibration, found)
        if len(evidence) > 1:
            spread.set_title(f"{name}: {spread.get_title()}")
    return figure


def _draw_spread(axes: Any, evidence: Evidence) -> None:
    """Draw a histogram of the standard deviation of Q for each kind of state."""
    axes.set(title="uncertainty by kind of state", xlabel="standard deviation of Q of the greedy action")
    known = evidence.deviations["known"]
    kinds = {kind: std for kind, std in evidence.deviations.items() if len(std) and std.isfinite().all()}
    if not kinds:
        return
    greatest = max(std.max().item() for std in kinds.values())
    edges = np.linspace(0, greatest or 1, 41)
    for number, (kind, std) in enumerate(kinds.items()):
        words = NAMES.get(kind, kind)
        label = words if kind == "known" else f"{words}, AUROC {novelty_auroc(known, std):.2f}"
        shares = np.full(len(std), 1 / len(std))
        style = {"histtype": "stepfilled", "alpha": 0.35} if kind == "known" else {"histtype": "step", "linewidth": 1.6}
        axes.hist(std.cpu().numpy(), edges, weights=shares, color=f"C{number}", label=label, **style)
    axes.set(ylabel="share of states")
    axes.legend(fontsize="small")


def _draw_risk(axes: Any, evidence: Evidence) -> None:
    """Draw the risk-coverage curve between that of the errors' own order and that of chance."""
    axes.set(title="error of the most certain states", xlabel="share of states kept", ylabel="mean |Q - return|")
    std, error = evidence.std, evidence.error
    if not len(std) or not (std.isfinite() & error.isfinite()).all():
        return
    shares = np.arange(1, len(std) + 1) / len(std)
    axes.axhline(error.mean().item(), color="0.5", linestyle=":", label="by chance")
    axes.plot(shares, risk_coverage(std, error), label=f"by uncertainty, area {relative_risk_area(std, error):.2f}")
    axes.plot(shares, risk_coverage(error, error), color="0.5", linestyle="--", label="by the errors")
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.legend(fontsize="small")


def _draw_calibration(axes: Any, evidence: Evidence) -> None:
    """Draw the share of returns inside the raw central intervals against the mass of the intervals."""
    axes.set(title="raw intervals", xlabel="mass of the central interval", ylabel="share of returns inside")
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="calibrated")
    if evidence.coverage.isfinite().all():
        axes.plot(LEVELS, evidence.coverage, marker=".", label="N(Q, spread of Q and noise)")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small")
