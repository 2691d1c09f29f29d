"""Checks of the data module's settings."""

from __future__ import annotations

from typing import Any

from bayes_rl.errors import check, check_choice

DATA_CHOICES = {
    "task_conditioning": ("none", "gains", "heads"),
    "epsilon_at_switch": ("restart", "continue"),
    "replay_device": ("cpu", "cuda"),
}


def check_data(hparams: Any) -> None:
    """Raise `ConfigError` unless the arguments of `ReplayDataModule` can work together.

    What concerns environments, the replay, the schedule of epsilon or that of tasks is checked where that is built.
    """
    capacity, batch = hparams.replay_capacity, hparams.batch_size
    check(capacity >= 1, "data.replay_capacity", capacity, "must be a positive number of transitions")
    check(batch >= 1, "data.batch_size", batch, "must be a positive number of transitions")
    check(capacity >= batch, "data.batch_size", batch, f"exceeds the replay of {capacity} slots")
    limit = f"must lie between 1 and the replay's capacity, {capacity}"
    check(1 <= hparams.min_replay_size <= capacity, "data.min_replay_size", hparams.min_replay_size, limit)
    check(hparams.updates_per_step > 0, "data.updates_per_step", hparams.updates_per_step, "must be positive")
    check(hparams.eval_games >= 1, "data.eval_games", hparams.eval_games, "must be at least 1 game")
    idle = hparams.eval_idle_frames
    check(idle >= 0, "data.eval_idle_frames", idle, "must be zero or more frames")
    check(hparams.render in (None, "human"), "data.render", hparams.render, "must be null or 'human'")
    check(hparams.fps >= 1, "data.fps", hparams.fps, "must be at least 1 picture per second")
    for key, known in DATA_CHOICES.items():
        check_choice(f"data.{key}", hparams[key], known)
    one = hparams.tasks is None
    rule = "is for several tasks: --data.tasks '[GAME, ...]'"
    for key, none in (("task_conditioning", "none"), ("keep_replays", False), ("cycles", 1)):
        check(not one or hparams[key] == none, f"data.{key}", hparams[key], rule)
    frames = hparams.frames_per_task
    check(frames >= 1, "data.frames_per_task", frames, "must be a positive number of frames")
