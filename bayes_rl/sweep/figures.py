"""Pictures of a sweep: learning curves, parallel coordinates and importances of options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.metrics.intervals import FEWEST_RUNS, jackknife_interval, leave_one_out
from bayes_rl.metrics.returns import interquartile_mean
from bayes_rl.sweep.progress import options_line
from bayes_rl.sweep.settings import GAMES, Sweep
from bayes_rl.sweep.space import Values
from bayes_rl.sweep.trial import Trial

MOST_CURVES = 5
"""Curves in one panel."""


def draw_curves(sweep: Sweep, trials: Sequence[Trial]) -> Figure:
    """Draw learning curves: interquartile mean over seeds, with its interval.

    Args:
        sweep: the sweep.
        trials: finished ones, the best first. Each choice of games has a panel with its first trials.
    """
    panels: dict[str, list[Trial]] = {}
    for trial in trials:
        panels.setdefault(_game(trial), []).append(trial)
    figure = Figure(figsize=(8, 1.2 + 3.2 * len(panels)), layout="constrained")
    axes_of = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for (game, shown), axes in zip(panels.items(), axes_of, strict=True):
        for trial in shown[:MOST_CURVES]:
            frames, scores = _curves(trial)
            middle, low, high = zip(*(interval(column) for column in scores.T), strict=True)
            label = options_line({name: value for name, value in trial.options.items() if name not in GAMES})
            (line,) = axes.plot(frames, middle, marker=".", label=label or None)
            axes.fill_between(frames, low, high, alpha=0.2, linewidth=0, color=line.get_color())
        axes.set(title=game, ylabel="validation score", xlabel="environment frames")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small")
    interval_name = "95 % interval" if len(sweep.seeds) >= FEWEST_RUNS else "lowest to highest seed"
    figure.suptitle(f"interquartile mean over {len(sweep.seeds)} seeds, {interval_name}", fontsize="medium")
    return figure


def _game(trial: Trial) -> str:
    """Return the games of a trial if they are options of the space, else an empty text."""
    return ", ".join(str(trial.options[name]) for name in GAMES if name in trial.options)


def _curves(trial: Trial) -> tuple[NDArray[np.float64], Tensor]:
    """Return the frames of the validations that all seeds have, `[P]`, and the scores, `[S, P]`."""
    frames, scores = [fit.frames() for fit in trial.fits], [fit.scores() for fit in trial.fits]
    length = min(map(len, scores))
    shown = torch.tensor([curve[:length] for curve in scores], dtype=torch.float64)
    return np.mean([times[:length] for times in frames], axis=0), shown


def interval(scores: Tensor) -> tuple[float, float, float]:
    """Return the interquartile mean of the scores of all seeds `[S]`, and its interval.

    Below `FEWEST_RUNS` seeds the interval goes from the lowest to the highest score.
    """
    middle = interquartile_mean(scores).item()
    if len(scores) < FEWEST_RUNS:
        return middle, scores.min().item(), scores.max().item()
    averaged = len(scores) - 2 * (len(scores) // 4)
    return middle, *jackknife_interval(middle, [leave_one_out(scores[:, None], interquartile_mean)], averaged)


def draw_parallel_coordinates(sweep: Sweep, trials: Sequence[Trial]) -> Figure:
    """Draw one line for each finished trial through its options; dark lines have high scores."""
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    axes = plot_parallel_coordinate(_study(sweep, trials), target_name="validation score")
    colours = ListedColormap(colormaps["Blues"](np.linspace(0.3, 1, 256)))  # without white, on which it is drawn
    for lines in axes.collections:
        lines.set_cmap(colours)
    return _figure(axes, "finished trials", (3 + 1.5 * len(sweep.space.options), 4.5))


def draw_importance(sweep: Sweep, trials: Sequence[Trial]) -> Figure:
    """Draw the importance of each option, by PED-ANOVA of the finished trials (Watanabe et al., arXiv:2304.10255)."""
    from optuna.visualization.matplotlib import plot_param_importances

    axes = plot_param_importances(_study(sweep, trials))
    axes.get_legend().remove()
    axes.set(xlabel="share of the differences in validation score", ylabel="")
    return _figure(axes, "importance of options (PED-ANOVA)", (7, 1.5 + 0.5 * len(sweep.space.options)))


def _figure(axes: Any, title: str, size: tuple[float, float]) -> Figure:
    """Return the figure of Optuna's axes with another title and size in inches, taken out of the open figures."""
    from matplotlib import pyplot

    axes.set_title("", loc="left")  # Optuna's title
    axes.set_title(title, fontsize="medium")
    figure: Figure = axes.get_figure()
    pyplot.close(figure)
    figure.set_size_inches(*size)
    figure.set_layout_engine("tight")
    return figure


def _study(sweep: Sweep, trials: Sequence[Trial]) -> Any:
    """Return finished trials as a study of Optuna."""
    import optuna

    study = optuna.create_study(direction="maximize")
    distributions = {_label(sweep, name): _distribution(values) for name, values in sweep.space.options.items()}
    for trial in trials:
        params = {_label(sweep, name): _plain(sweep.space.options[name], v) for name, v in trial.options.items()}
        score = trial.score(sweep.validations)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    return study


def _label(sweep: Sweep, name: str) -> str:
    """Return the last part of an option's name, or the whole name if two options end alike."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in sweep.space.options) == 1 else name


def _distribution(values: Values) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if values.kind in ("choice", "grid"):
        return CategoricalDistribution([_plain(values, value) for value in values.values])
    kind = IntDistribution if values.whole else FloatDistribution
    return kind(*values.values, log=values.kind == "log_uniform")


def _plain(values: Values, value: Any) -> Any:
    """Return a value as Optuna takes it: texts for the values of a list."""
    if values.kind not in ("choice", "grid"):
        return value
    return value if isinstance(value, str) else json.dumps(value)
