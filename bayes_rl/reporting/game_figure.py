"""Picture of one game: a few screens, and the uncertainty of Q over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.rendering import screen_image
from bayes_rl.evaluation.screen_record import ScreenRecord

SHOWN = 8
"""Most screens in a picture."""

WIDTH, LEFT, SPAN = 9.0, 0.075, 0.845
"""Width of a picture in inches; left end and width of its panels, relative to it."""

CURVES, GAP, EDGE = 1.5, 0.12, 0.45
"""Heights in inches of the panel with curves, between the panels, and above and below both."""

LINES = 8
"""Most components of a vector that are drawn as lines; more are drawn as an image."""

STD_COLOUR, Q_COLOUR = "#c25e00", "#6e7781"


def draw_game(game: Game, estimate_every: int, frame_skip: int, title: str) -> Figure:
    """Draw screens of a game in a row, and below them the standard deviation of Q and Q of the played actions.

    All share the horizontal axis, so a screen stands above its time. A vector is drawn as curves over time. Short
    marks at the bottom are rewards. Positions are fixed, because a layout that is computed takes three times as long.

    Args:
        game: with a record of its screens, and estimates.
        estimate_every: agent steps between two estimates.
        frame_skip: environment frames per agent step.
        title: of the picture.

    Raises:
        ValueError: if the game has no recorded screen, or no estimate.
    """
    if game.record is None or not game.record.screens or not game.estimates:
        raise ValueError(f"the game of seed {game.seed} has no recorded screen or no estimate")
    steps, chosen = len(game.actions), _chosen(game.record, len(game.actions))
    images = [screen_image(game.record.screens[step]) for step in chosen]
    drawn = [image for image in images if image is not None]
    high = WIDTH * SPAN / len(drawn) * min(2.0, drawn[0].shape[0] / drawn[0].shape[1]) if drawn else CURVES
    total = high + CURVES + GAP + 2 * EDGE
    figure = Figure(figsize=(WIDTH, total))
    figure.text(LEFT, 1 - 0.28 / total, title, fontsize=10)
    above = figure.add_axes((LEFT, (EDGE + CURVES + GAP) / total, SPAN, high / total))
    below = figure.add_axes((LEFT, EDGE / total, SPAN, CURVES / total))
    if drawn:
        above.imshow(_row(drawn), extent=(0, steps * frame_skip, 0, 1), aspect="auto", interpolation="nearest")
        above.set_axis_off()
        for step in chosen:
            below.axvline(step * frame_skip, color=Q_COLOUR, linewidth=0.5, linestyle=":")
    else:
        _draw_vectors(above, game.record, frame_skip)
    above.set_xlim(0, steps * frame_skip)
    _draw_uncertainty(below, game, estimate_every, frame_skip)
    return figure


def _chosen(record: ScreenRecord, steps: int) -> list[int]:
    """Return the kept steps that are nearest to the middles of equal parts of a game of `steps` steps."""
    kept = np.array([*record.screens])
    count = min(SHOWN, len(kept))
    middles = (np.arange(count) + 0.5) * steps / count
    return [int(kept[np.abs(kept - middle).argmin()]) for middle in middles]


def _row(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return images of one size side by side, with white lines between them."""
    factor = max(1, -(-80 // images[0].shape[0]))  # a line of a small image would be as wide as a cell
    large = [image.repeat(factor, 0).repeat(factor, 1) for image in images]
    for image in large:
        image[:, :1] = image[:, -1:] = 255
    return np.concatenate(large, 1)


def _draw_vectors(axes: Any, record: ScreenRecord, frame_skip: int) -> None:
    """Draw the components of vectors over time."""
    frames = np.array([*record.screens]) * frame_skip
    values = np.stack([screen.ravel() for screen in record.screens.values()])
    axes.set_ylabel("observation")
    axes.tick_params(labelbottom=False)
    if values.shape[1] <= LINES:
        axes.plot(frames, values, linewidth=1)
        return
    extent = (0, float(frames[-1] + record.every * frame_skip), 0, values.shape[1])
    axes.imshow(values.T, extent=extent, aspect="auto", interpolation="nearest")


def _draw_uncertainty(axes: Any, game: Game, estimate_every: int, frame_skip: int) -> None:
    """Draw the standard deviation of Q and Q of the played actions, and marks of rewards."""
    actions = torch.tensor(game.actions[::estimate_every])[:, None]
    q_mean, q_std = (
        torch.stack([getattr(estimate, name) for estimate in game.estimates]).gather(1, actions)[:, 0].float().numpy()
        for name in ("q_mean", "q_std")
    )
    end = len(game.actions) * frame_skip
    frames = np.arange(len(q_std)) * estimate_every * frame_skip
    values = axes.twinx()
    values.plot(frames, q_mean, color=Q_COLOUR, linewidth=0.9)
    values.set_ylabel("Q", color=Q_COLOUR)
    axes.plot(frames, q_std, color=STD_COLOUR, linewidth=1.4)
    axes.set_ylabel("std of Q", color=STD_COLOUR)
    rewarded = np.flatnonzero(game.rewards) * frame_skip
    marks = {"marker": "|", "markersize": 9, "linestyle": "", "color": "black"}
    axes.plot(rewarded, np.full(len(rewarded), 0.06), transform=axes.get_xaxis_transform(), **marks)
    axes.set_xlim(0, end)
    axes.set_ylim(0, None)
    axes.set_xlabel("environment frames of the game; marks at the bottom: rewards", labelpad=1)
