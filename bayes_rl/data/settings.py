"""Checks of the data module's settings that concern no group of settings, or several."""

from __future__ import annotations

from typing import Any

from bayes_rl.errors import check
from bayes_rl.evaluation.settings import GameSettings


def check_data(hparams: Any) -> None:
    """Raise `ConfigError` unless the flat arguments of `ReplayDataModule` can work together.

    Each group of settings has its checks in its own class; settings of environments are checked where these are made.
    """
    check(hparams.updates_per_step > 0, "data.updates_per_step", hparams.updates_per_step, "must be positive")
    GameSettings(hparams.eval_games, hparams.eval_idle_frames, hparams.render, hparams.fps)  # checks them
    if hparams.tasks is None:
        problem = "is for several tasks: --data.tasks '[GAME, ...]'"
        for key, usual in (("task_conditioning", "none"), ("keep_replays", False), ("cycles", 1)):
            check(hparams[key] == usual, f"data.{key}", hparams[key], problem)
