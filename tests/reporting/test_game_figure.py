"""Picture of a game: every screen above its time, and the curves by their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.screen_record import ScreenRecord
from bayes_rl.reporting.game_figure import SHOWN, draw_game
from bayes_rl.types import ValueEstimate

EVERY, SKIP = 4, 3  # agent steps between estimates, and frames per agent step


def game_of(steps: int, screen_shape: tuple[int, ...] = (1, 40, 40)) -> Game:
    """Return a game whose screen of step i has the value i; Q of action a is 10 i + a, its deviation i + a / 10."""
    game = Game(3, actions=[step % 2 for step in range(steps)], rewards=[float(step == 5) for step in range(steps)])
    game.record = ScreenRecord(64)
    kind = np.uint8 if len(screen_shape) == 3 else np.float32
    for step in range(steps):
        game.record.add(step, np.full(screen_shape, step, kind))
    action = torch.arange(2.0)
    for step in range(0, steps, EVERY):
        mean, std = 10 * step + action, step + action / 10
        game.estimates.append(ValueEstimate(mean, std, std, mean.amax()))
    return game


def test_curves_are_those_of_the_played_action() -> None:
    game = game_of(24)
    game.actions[4] = 1
    below, values = draw_game(game, EVERY, SKIP, "title").axes[1:]
    *lines, std, rewards = below.lines
    assert len(lines) == SHOWN
    assert std.get_xdata().tolist() == [0, 12, 24, 36, 48, 60]
    assert std.get_ydata() == pytest.approx([0, 4.1, 8, 12, 16, 20])
    assert values.lines[0].get_ydata() == pytest.approx([0, 41, 80, 120, 160, 200])
    assert list(rewards.get_xdata()) == [5 * SKIP]
    assert below.get_xlim() == (0, 24 * SKIP)


@pytest.mark.parametrize("steps", [1, 5, 24, 200])
def test_a_screen_stands_above_its_time(steps: int) -> None:
    """The grey value of a screen is its step; a screen is at most half a cell and a distance of the record away."""
    game = game_of(steps)
    above, below = draw_game(game, EVERY, SKIP, "title").axes[:2]
    row = above.images[0].get_array()
    count = min(SHOWN, steps)
    assert above.images[0].get_extent() == [0, steps * SKIP, 0, 1]
    cell = row.shape[1] // count
    for number in range(count):
        step = int(row[20, number * cell + cell // 2, 0])
        middle = (number + 0.5) * steps / count
        assert game.record is not None
        assert abs(step - middle) <= game.record.every
        assert below.lines[number].get_xdata()[0] == step * SKIP


def test_a_vector_is_drawn_as_curves_and_a_long_vector_as_an_image() -> None:
    above = draw_game(game_of(24, (4,)), EVERY, SKIP, "title").axes[0]
    assert len(above.lines) == 4
    assert above.lines[0].get_ydata().tolist() == [*range(24)]
    assert above.lines[0].get_xdata().tolist() == [*range(0, 24 * SKIP, SKIP)]
    above = draw_game(game_of(24, (30,)), EVERY, SKIP, "title").axes[0]
    assert above.images[0].get_array().shape == (30, 24)


def test_a_game_without_screens_or_estimates_is_refused() -> None:
    game = game_of(8)
    game.estimates.clear()
    with pytest.raises(ValueError, match="the game of seed 3 has no recorded screen or no estimate"):
        draw_game(game, EVERY, SKIP, "title")
    with pytest.raises(ValueError, match="no recorded screen"):
        draw_game(Game(3, estimates=game_of(4).estimates), EVERY, SKIP, "title")
