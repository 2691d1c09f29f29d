"""Human-normalised scores."""

from __future__ import annotations

import math

import pytest

from bayes_rl.metrics.atari_scores import (
    NEGATIVE_REWARDS,
    RANDOM_AND_HUMAN,
    human_normalised_score,
    most_if_stopped,
)


@pytest.mark.parametrize(
    ("game", "score", "expected"),
    [
        ("breakout", 1.7, 0.0),
        ("breakout", 30.5, 1.0),
        ("breakout", 16.1, 0.5),  # half way between 1.7 and 30.5
        ("breakout", 59.3, 2.0),
        ("space_invaders", 148.0, 0.0),
        ("space_invaders", 1668.7, 1.0),
        ("space_invaders", 908.35, 0.5),
        ("tennis", -8.3, 1.0),
    ],
)
def test_human_normalised_score_is_zero_at_random_and_one_at_human(game: str, score: float, expected: float) -> None:
    assert human_normalised_score(game, score) == pytest.approx(expected, abs=1e-9)


def test_a_worse_than_random_player_scores_below_zero() -> None:
    assert human_normalised_score("breakout", 0.0) == pytest.approx(-1.7 / 28.8)


@pytest.mark.parametrize("game", ["", "catch", "Breakout"])
def test_a_game_without_a_human_score_gives_none(game: str) -> None:
    assert human_normalised_score(game, 10.0) is None


def test_a_stopped_game_counts_at_most_as_random_play_where_points_can_be_lost() -> None:
    assert most_if_stopped("tennis") == -23.8
    assert most_if_stopped("breakout") == most_if_stopped("CartPole-v1") == math.inf
    lose_at_random = {game for game, (random, _) in RANDOM_AND_HUMAN.items() if random < 0}
    assert lose_at_random <= NEGATIVE_REWARDS <= set(RANDOM_AND_HUMAN)
