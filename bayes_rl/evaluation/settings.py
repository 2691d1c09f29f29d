"""Settings of whole games for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_rl.errors import check


@dataclass(frozen=True)
class GameSettings:
    """Settings of evaluation: number of games, their limit and their display.

    Args:
        games: whole games per validation, test and predict.
        idle_frames: environment frames without a reward after which a game is cut; 0 cuts none.
        render: predict only: null writes videos, human opens a window as well.
        fps: images per second of videos and of the window.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    games: int = 20
    idle_frames: int = 10_000
    render: str | None = None
    fps: int = 15

    def __post_init__(self) -> None:
        check(self.games >= 1, "data.evaluation.games", self.games, "must be at least 1 game")
        idle = self.idle_frames
        check(idle >= 0, "data.evaluation.idle_frames", idle, "must be zero or more frames")
        check(self.render in (None, "human"), "data.evaluation.render", self.render, "must be null or 'human'")
        check(self.fps >= 1, "data.evaluation.fps", self.fps, "must be at least 1 picture per second")
