"""Whole games, their metrics and videos."""

from bayes_rl.evaluation.game_metrics import LABELS, SCORES, Evidence, GameMetrics
from bayes_rl.evaluation.games import Game, GameLoader, Games
from bayes_rl.evaluation.novel_states import NovelStates
from bayes_rl.evaluation.rendering import render_game, screen_image
from bayes_rl.evaluation.screen_record import ScreenRecord
from bayes_rl.evaluation.settings import GameSettings
from bayes_rl.evaluation.state_sample import StateSample
from bayes_rl.evaluation.video import Panel, frames_with_panel, play_in_window, write_video

__all__ = [
    "LABELS",
    "SCORES",
    "Evidence",
    "Game",
    "GameLoader",
    "GameMetrics",
    "GameSettings",
    "Games",
    "NovelStates",
    "Panel",
    "ScreenRecord",
    "StateSample",
    "frames_with_panel",
    "play_in_window",
    "render_game",
    "screen_image",
    "write_video",
]
