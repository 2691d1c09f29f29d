"""Settings of whole games for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_rl.errors import check


@dataclass(frozen=True)
class GameSettings:
    """How many games are played for evaluation, and how they are shown.

    Args:
        eval_games: whole games per validation, test and predict.
        eval_idle_frames: environment frames without a reward after which a game is cut; 0 cuts none.
        render: predict only: null writes videos, human opens a window as well.
        fps: images per second of videos and of the window.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    eval_games: int = 20
    eval_idle_frames: int = 10_000
    render: str | None = None
    fps: int = 15

    def __post_init__(self) -> None:
        check(self.eval_games >= 1, "data.eval_games", self.eval_games, "must be at least 1 game")
        idle = self.eval_idle_frames
        check(idle >= 0, "data.eval_idle_frames", idle, "must be zero or more frames")
        check(self.render in (None, "human"), "data.render", self.render, "must be null or 'human'")
        check(self.fps >= 1, "data.fps", self.fps, "must be at least 1 picture per second")
