"""Animation of a game beside its uncertainty, small enough for the README.

    python -m benchmarks.learning.game_gif runs/quickstart/version_0/checkpoints/best.ckpt docs/static/breakout.gif

The agent, a checkpoint or an export, plays five games greedily. The part of the best game in which the standard
deviation of Q changes most is drawn, an image for each agent step: the game, Q of each action with one standard
deviation to either side, and the standard deviation of Q of the played action over time. The animation has a dark
ground and a frame of its own, so that it is readable on light and on dark pages. Fewer colours, and then fewer seconds,
keep the file below its limit.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import action_names
from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.rendering import render_game
from bayes_rl.evaluation.video import GREY, PANEL_WIDTH, SPREAD, WHITE, Panel
from bayes_rl.training.export import export_agent, is_export, load_agent, read_export
from bayes_rl.utils.files import write_atomic

COLOURS = (64, 32, 16)
"""Numbers of colours to try, in order."""

HIGHEST, LEAST_SECONDS = 320, 2.0
"""Greatest height of a game's image in pixels, and shortest animation."""

DIM = tuple(value // 3 for value in SPREAD)
"""Colour of the curve behind the present step."""

Image3 = NDArray[np.uint8]


def play(agent: Path, games: int, task: int) -> tuple[EnvSettings, Game]:
    """Return the best of the games that an agent plays, with a value estimate of every state.

    Args:
        agent: checkpoint or export.
        games: number of games.
        task: number of the task, 0 unless the agent has several.

    Raises:
        ExportError: if the file holds no agent.
    """
    with tempfile.TemporaryDirectory() as folder:
        export = agent
        if not is_export(agent):
            export = Path(folder) / "agent.safetensors"
            export_agent(agent, export)
        player = load_agent(export)
        data = ReplayDataModule(**read_export(export)["datamodule_hyper_parameters"])
    chosen = data.games("predict", games, task)
    played = chosen.play(partial(player.act, task=task), partial(player.estimate_values, task=task))
    return chosen.settings, max(played, key=lambda game: game.score)


def spread_of(game: Game) -> NDArray[np.float32]:
    """Return the standard deviation of Q of the played action in each step, `[T]`."""
    stds = torch.stack([estimate.q_std for estimate in game.estimates])
    return stds.gather(1, torch.tensor(game.actions)[:, None])[:, 0].float().numpy()


def widest_window(spread: NDArray[np.float32], length: int) -> int:
    """Return the first step of the part of `length` steps in which the spread has the widest range."""
    windows = np.lib.stride_tricks.sliding_window_view(spread, min(length, len(spread)))
    return int((windows.max(1) - windows.min(1)).argmax())


def draw(settings: EnvSettings, game: Game, start: int, length: int) -> list[Image3]:
    """Return the images `[H, W, 3]` of a part of a game, one per agent step.

    Args:
        settings: with which the game was played.
        game: with an estimate of every state.
        start: first step.
        length: number of steps.

    Raises:
        ConfigError: if games of this kind cannot be drawn here.
    """
    names = action_names(settings, len(game.estimates[0].q_mean))
    end = min(start + length, len(game.actions))
    spread = spread_of(game)[start:end]
    images: list[Image3] = []
    for step, image in enumerate(islice(render_game(settings, game), start, end), start):
        screen = _resized(image)
        upper = len(screen) * 3 // 5
        panel = Panel(names, game.estimates, upper).draw(game.estimates[step], game.actions[step])
        curve = _curve(spread, step - start, len(screen) - upper)
        images.append(_framed(np.concatenate([screen, np.concatenate([panel, curve])], 1)))
    return images


def _resized(image: Image3) -> Image3:
    """Return an image of at most `HIGHEST` rows, reduced by a whole factor."""
    factor = -(-len(image) // HIGHEST)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _curve(spread: NDArray[np.float32], now: int, height: int) -> Image3:
    """Return the curve of the spread `[height, PANEL_WIDTH, 3]`, bright up to the present step."""
    image = Image.new("RGB", (PANEL_WIDTH, height))
    pen = ImageDraw.Draw(image)
    pen.text((4, 2), "std of Q over time", fill=WHITE)
    top, bottom = 18, height - 8
    pen.line((4, bottom, PANEL_WIDTH - 8, bottom), fill=GREY)
    across = np.linspace(4, PANEL_WIDTH - 8, max(2, len(spread)))
    heights = bottom - (bottom - top) * spread / (float(spread.max()) or 1e-6)
    points = [(float(x), float(y)) for x, y in zip(across, heights, strict=False)]
    if len(points) > 1:
        pen.line(points, fill=DIM)
        pen.line(points[: now + 1], fill=SPREAD, width=2)
    x, y = points[now]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=SPREAD)
    return np.asarray(image)


def _framed(image: Image3) -> Image3:
    """Return an image with a grey line around it."""
    framed = np.empty((image.shape[0] + 2, image.shape[1] + 2, 3), np.uint8)
    framed[:] = GREY
    framed[1:-1, 1:-1] = image
    return framed


def encode(images: Sequence[Image3], colours: int, fps: int) -> bytes:
    """Return a GIF that is repeated for ever, in one palette, so that unchanged pixels take no room.

    Args:
        images: `[H, W, 3]`.
        colours: size of the palette.
        fps: images per second, rounded to hundredths of a second per image.
    """
    some = np.concatenate(list(images[:: max(1, len(images) // 8)]))
    palette = Image.fromarray(some).quantize(colours, dither=Image.Dither.NONE)
    first, *others = (Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    file = io.BytesIO()
    shown = {"duration": 10 * max(2, round(100 / fps)), "loop": 0}
    first.save(file, format="GIF", save_all=True, append_images=others, optimize=True, **shown)
    return file.getvalue()


def animate(settings: EnvSettings, game: Game, seconds: float, fps: int, most: int) -> bytes:
    """Return the animation of the most changeful part of a game.

    Args:
        settings: with which the game was played.
        game: with an estimate of every state.
        seconds: length; shorter if the file would be too large.
        fps: agent steps per second.
        most: greatest size in bytes.

    Raises:
        ConfigError: if games of this kind cannot be drawn here, or `LEAST_SECONDS` are larger than `most`.
    """
    content = b""
    while seconds >= LEAST_SECONDS:
        length = round(seconds * fps)
        images = draw(settings, game, widest_window(spread_of(game), length), length)
        for colours in COLOURS:
            content = encode(images, colours, fps)
            if len(content) <= most:
                return content
        seconds *= 0.75
    problem = f"is too small for {LEAST_SECONDS:g} seconds, which take {len(content) // 1000} kB"
    raise ConfigError("kilobytes", most // 1000, problem)


def main(words: Sequence[str]) -> None:
    """Write the animation that the command line asks for."""
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.game_gif",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("agent", type=Path, help="checkpoint, or export (*.safetensors)")
    parser.add_argument("output", type=Path, help="GIF file")
    parser.add_argument("--games", type=int, default=5, help="games, the best of which is drawn (default: 5)")
    parser.add_argument("--task", type=int, default=0, help="number of the task of an agent of several (default: 0)")
    parser.add_argument("--seconds", type=float, default=12.0, help="length, at least 2 (default: 12)")
    parser.add_argument("--fps", type=int, default=15, help="agent steps per second (default: 15)")
    parser.add_argument("--kilobytes", type=int, default=600, help="greatest size (default: 600)")
    options = parser.parse_args(words)
    if options.seconds < LEAST_SECONDS:
        parser.error(f"--seconds {options.seconds:g} is less than {LEAST_SECONDS:g}")
    try:
        settings, game = play(options.agent, options.games, options.task)
        content = animate(settings, game, options.seconds, options.fps, 1000 * options.kilobytes)
    except ConfigError as error:
        parser.error(str(error))
    write_atomic(options.output, lambda file: file.write(content))
    print(f"{options.output}: {len(content) // 1000} kB, game of seed {game.seed}, score {game.score:g}")


if __name__ == "__main__":
    main(sys.argv[1:])
