"""Callback that writes predicted games as videos."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.errors import ConfigError, RunError
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.evaluation.video import play_in_window, write_video
from bayes_rl.training.run_directory import run_directory
from bayes_rl.utils.failures import describe_error, warn_of_failure


class VideoWriter(Callback):
    """Writer of predicted games as GIFs (mp4 with the `video` extra).

    `--data.evaluation.render human` shows them too.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise `ConfigError` before the first game if a window is asked for and there is no display."""
        import matplotlib

        windowless = matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps")
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.evaluation.render == "human" and windowless:
            raise ConfigError(
                "data.evaluation.render", "human", "needs a display; leave it out and open the video instead"
            )

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Write the games of a batch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ReplayDataModule)
        directory = run_directory(trainer) / "videos"
        for game in outputs:
            video = try_video(batch, game, directory, data.evaluation.fps)
            print(f"seed {game.seed}: score {game.score:g} in {game.frames:,} frames, {video}", flush=True)
            if data.evaluation.render == "human":
                with warn_of_failure("showing the game in a window"):
                    play_in_window(batch.settings, game, data.evaluation.fps)


def try_video(games: Games, game: Game, directory: Path, fps: int) -> str:
    """Write the video of a game, and return its path, or the reason why there is none.

    Args:
        games: the set that the game belongs to.
        game: to draw.
        directory: of the video.
        fps: images per second.
    """
    try:
        return str(write_video(games.settings, game, directory, fps))
    except ConfigError as error:  # games of this kind cannot be drawn here
        return f"no video: {error}"
    except Exception as error:  # an environment, an encoder and a disk may raise anything
        return f"no video: {describe_error(error)}"


def record_game(data: ReplayDataModule, agent: VariationalActorCritic, task: int, run: Path) -> str:
    """Play one game of a task, and return the path of its video, or the reason why there is none."""
    games = data.games("predict", 1, task)
    try:
        game = games.play(partial(agent.act, task=task), partial(agent.estimate_values, task=task))[0]
    except RunError as error:  # the environment failed in a game that no score depends on
        return f"no video: {error}"
    return try_video(games, game, run / "videos", data.evaluation.fps)
