"""Checks of the data module's settings that concern no group of settings, or several."""

from __future__ import annotations

from typing import Any

from bayes_rl.errors import check


def check_data(hparams: Any) -> None:
    """Raise `ConfigError` unless the flat arguments of `ReplayDataModule` can work together.

    Each group of settings has its checks in its own class; settings of environments are checked where these are made.
    """
    check(hparams.updates_per_step > 0, "data.updates_per_step", hparams.updates_per_step, "must be positive")
    check(hparams.eval_games >= 1, "data.eval_games", hparams.eval_games, "must be at least 1 game")
    idle = hparams.eval_idle_frames
    check(idle >= 0, "data.eval_idle_frames", idle, "must be zero or more frames")
    check(hparams.render in (None, "human"), "data.render", hparams.render, "must be null or 'human'")
    check(hparams.fps >= 1, "data.fps", hparams.fps, "must be at least 1 picture per second")
    if hparams.tasks is None:
        problem = "is for several tasks: --data.tasks '[GAME, ...]'"
        for key, usual in (("task_conditioning", "none"), ("keep_replays", False), ("cycles", 1)):
            check(hparams[key] == usual, f"data.{key}", hparams[key], problem)
