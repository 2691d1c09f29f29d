"""Videos of whole games, with the estimated value of each action beside the game."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import action_names
from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.rendering import render_game
from bayes_rl.types import ValueEstimate
from bayes_rl.utils.files import TEMPORARY, write_atomic

PANEL_WIDTH, HEAD = 200, 30  # pixels, and rows above the first action

GREY, WHITE, CHOSEN, SPREAD = (110, 110, 110), (230, 230, 230), (80, 160, 255), (255, 200, 60)


class Panel:
    """Drawing of Q(s, .) of one state.

    A bar reaches to the mean of each action, a line spans one standard deviation over posterior draws to either side,
    and the chosen action has a colour. All states of a game have one scale. A gauge under the head line shows the
    standard deviation of the chosen action on a scale of its own, full at the greatest one of the game: the spread is
    often too small beside Q to be seen there.

    Args:
        names: of the actions.
        estimates: of all states of the game; they set the scale.
        height: of the panel, in pixels.
    """

    def __init__(self, names: list[str], estimates: list[ValueEstimate], height: int) -> None:
        self.names, self.height = names, height
        lows = torch.stack([e.q_mean - e.q_std for e in estimates]).min()
        highs = torch.stack([e.q_mean + e.q_std for e in estimates]).max()
        self.low, self.high = min(0.0, float(lows)), max(0.0, float(highs)) or 1e-6
        self.greatest_std = float(torch.stack([e.q_std for e in estimates]).max()) or 1e-6
        self.label = 8 + 6 * max(len(name) for name in names)

    def _x(self, value: float) -> float:
        span = PANEL_WIDTH - self.label - 8
        return self.label + span * (value - self.low) / (self.high - self.low)

    def draw(self, estimate: ValueEstimate, action: int) -> NDArray[np.uint8]:
        """Return the panel `[height, PANEL_WIDTH, 3]` uint8 of one state and its chosen action."""
        image = Image.new("RGB", (PANEL_WIDTH, self.height))
        pen = ImageDraw.Draw(image)
        value, spread = float(estimate.q_mean[action]), float(estimate.q_std[action])
        pen.text((4, 2), f"Q {value:.2f} +- {spread:.2f}", fill=WHITE)
        pen.rectangle((4, HEAD - 11, PANEL_WIDTH - 8, HEAD - 5), outline=GREY)
        full = PANEL_WIDTH - 14  # inside the outline
        if filled := round(full * spread / self.greatest_std):
            pen.rectangle((5, HEAD - 10, 4 + filled, HEAD - 6), fill=SPREAD)
        row = (self.height - HEAD) / len(self.names)
        for index, name in enumerate(self.names):
            middle = HEAD + row * (index + 0.5)
            mean, std = float(estimate.q_mean[index]), float(estimate.q_std[index])
            colour = CHOSEN if index == action else GREY
            if row >= 10:
                pen.text((4, middle - 6), name, fill=WHITE if index == action else GREY)
            thick = min(5.0, 0.35 * row)
            left, right = sorted((self._x(0), self._x(mean)))
            pen.rectangle((left, middle - thick, right, middle + thick), fill=colour)
            pen.line((self._x(mean - std), middle, self._x(mean + std), middle), fill=SPREAD, width=2)
        return np.asarray(image)


def frames_with_panel(settings: EnvSettings, game: Game) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a game `[H, W, 3]` uint8, beside each its panel if every state has an estimate."""
    if len(game.estimates) != len(game.actions):
        yield from render_game(settings, game)
        return
    names = action_names(settings, len(game.estimates[0].q_mean))
    panel: Panel | None = None
    for step, image in enumerate(render_game(settings, game)):
        panel = panel or Panel(names, game.estimates, len(image))
        step = min(step, len(game.actions) - 1)  # no action follows the last image
        yield np.concatenate([image, panel.draw(game.estimates[step], game.actions[step])], 1)


def write_video(settings: EnvSettings, game: Game, directory: Path, fps: int) -> Path:
    """Write a video of a whole game: mp4 if moviepy is installed, else GIF.

    Args:
        settings: with which the game was played.
        game: to play again.
        directory: is created if it does not exist.
        fps: images per second, one per agent step.

    Returns:
        The path of the video.

    Raises:
        ConfigError: if games of this kind cannot be drawn here.
    """
    stem = f"seed{game.seed}_score{game.score:g}"
    try:
        from moviepy import ImageSequenceClip
    except ImportError:
        frames = [
            Image.fromarray(frame).quantize(32, dither=Image.Dither.NONE) for frame in frames_with_panel(settings, game)
        ]
        path = directory / f"{stem}.gif"
        shown = {"duration": 10 * max(2, round(100 / fps)), "loop": 0}
        write_atomic(
            path, lambda file: frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], **shown)
        )
        return path
    clip = ImageSequenceClip(list(frames_with_panel(settings, game)), fps=fps)
    path = directory / f"{stem}.mp4"
    half_written = directory / f"{stem}{TEMPORARY}.mp4"  # the encoder knows the format by the ending
    directory.mkdir(parents=True, exist_ok=True)
    try:
        clip.write_videofile(str(half_written), logger=None, audio=False)
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)
    return path


def play_in_window(settings: EnvSettings, game: Game, fps: int) -> None:
    """Show a game in a window at `fps` images per second; needs a display."""
    import matplotlib.pyplot as plt

    axes_image = None
    for image in frames_with_panel(settings, game):
        axes_image = axes_image or plt.imshow(image)
        axes_image.set_data(image)
        plt.axis("off")
        plt.pause(1 / fps)
    plt.close()
