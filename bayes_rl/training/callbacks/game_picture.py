"""Callback that draws a game of each validation."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.evaluation.games import Game, Games
from bayes_rl.training.run_directory import data_of
from bayes_rl.training.tensorboard_log import add_picture, as_png, picture_loggers
from bayes_rl.utils.failures import warn_of_failure

DOTS_PER_INCH = 80
"""Of the picture."""


class GamePicture(Callback):
    """Picture of the first game of each validation of a fit, for TensorBoard: screens, and the uncertainty of Q.

    The tag is `val/game`, or `val/TASK/game` of several tasks. The game has the same seed in every validation. The
    screens are those that the agent saw while the game was played, so no game is played again, and an environment that
    cannot be drawn has a picture all the same.
    """

    def __init__(self) -> None:
        self._played: dict[int, tuple[Games, Game]] = {}  # by task

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the games of a validation that was cut short."""
        self._played.clear()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the game that has a record of its screens."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            played = outputs.get("games", ()) if isinstance(outputs, dict) else ()  # a user's own step may return none
            kept = [game for game in played if game.record is not None]
            self._played |= {batch.task: (batch, kept[0])} if kept else {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the kept game of each task."""
        played, self._played = self._played, {}
        if not (loggers := picture_loggers(trainer)):
            return
        data = data_of(trainer)
        for task, (games, game) in played.items():
            with warn_of_failure("drawing a game of the validation"):
                from bayes_rl.reporting.game_figure import draw_game  # drawing takes long to import

                name = data.curriculum.names[task] if data.num_tasks > 1 else data.game
                tag = f"val/{name}/game" if data.num_tasks > 1 else "val/game"
                title = f"{name}: a validation game after {data.stream.frames:,} frames, score {game.score:g}"
                figure = draw_game(game, games.estimate_every, games.settings.frame_skip, title)
                content = as_png(figure, DOTS_PER_INCH)
                for logger in loggers:
                    add_picture(logger, tag, content, data.stream.frames)
