"""Metrics of whole games, and the list of those that people read."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.game_metrics import LABELS, SCORES, GameMetrics
from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.settings import GameSettings
from bayes_rl.metrics.atari_scores import most_if_stopped
from bayes_rl.metrics.calibration import fit_returns
from bayes_rl.types import ValueEstimate


def make_game(seed: int, steps: int = 6, every: int = 2) -> Game:
    """A game of random rewards, with estimates of every second state."""
    torch.manual_seed(seed)
    estimates = [
        ValueEstimate(torch.randn(3), torch.rand(3), torch.rand(3), torch.zeros(())) for _ in range(0, steps, every)
    ]
    rewards = torch.randn(steps).tolist()
    discounts = [1.0] * (steps - 1) + [0.0]
    actions = torch.randint(3, (steps,)).tolist()
    return Game(seed, sum(rewards), 4 * steps, actions, seed % 2 == 0, rewards, discounts, estimates)


def add(metrics: GameMetrics, games: list[Game]) -> None:
    metrics.update(games, range(len(games)), 2, 0.9)
    metrics.uncertainty.update(torch.randn(4, 2, 3))


def fitted(games: list[Game], gamma: float) -> list[float]:
    """The fit of the games, step by step from the definition."""
    rows = []
    for number, game in enumerate(games):
        for state, estimate in enumerate(game.estimates):
            t = 2 * state
            realised = sum(gamma ** (k - t) * game.rewards[k] for k in range(t, len(game.rewards)))
            action = game.actions[t]
            rows.append((float(estimate.q_mean[action]), float(estimate.q_std[action]), realised, number))
    return list(fit_returns(*(torch.tensor(column) for column in zip(*rows, strict=True))))


def test_scores_are_of_the_games_since_the_last_call_and_the_fit_stays() -> None:
    metrics, games = GameMetrics(), [make_game(seed) for seed in range(1, 6)]
    add(metrics, games)
    scores = metrics.finish("breakout", fit=True)
    assert scores["games"] == 5
    assert scores["games_cut"] == 2
    assert float(scores["return_mean"]) == pytest.approx(sum(g.score for g in games) / 5, abs=1e-5)
    assert float(scores["human_normalised"]) == pytest.approx((float(scores["return_mean"]) - 1.7) / 28.8)
    assert metrics.return_fit.tolist() == pytest.approx(fitted(games, 0.9), rel=1e-4)
    before = metrics.return_fit.clone()
    add(metrics, games[:2])
    again = metrics.finish("CartPole-v1", fit=False)
    assert again["games"] == 2
    assert "human_normalised" not in again
    assert torch.equal(metrics.return_fit, before)
    assert [float(again[f"fitted_{key}"]) for key in ("bias", "noise_std", "scale")] == before.tolist()
    add(metrics, games[1:])
    metrics.finish("CartPole-v1", fit=True)
    assert metrics.return_fit.tolist() == pytest.approx(fitted(games[1:], 0.9), rel=1e-4)
    assert metrics.return_fit.tolist() != pytest.approx(before.tolist(), rel=1e-3)


def test_intervals_of_later_games_use_the_fit() -> None:
    """Bias and scale of the first games; noise of the fit in place of the likelihood's."""
    first, second = GameMetrics(), GameMetrics()
    add(first, [make_game(seed) for seed in range(9)])
    first.finish("x", fit=True)
    second.load_state_dict({"return_fit": first.return_fit}, strict=False)
    widths = []
    for metrics in (GameMetrics(), second):
        add(metrics, [make_game(20)])
        widths.append(float(metrics.finish("x", fit=False)["interval_width_90"]))
    game = make_game(20)
    _, noise, scale = first.return_fit.tolist()
    stds = [float(e.q_std[game.actions[2 * i]]) for i, e in enumerate(game.estimates)]
    wanted = 2 * 1.6448536 * sum(scale * math.hypot(std, noise) for std in stds) / len(stds)
    assert widths[1] == pytest.approx(wanted, rel=1e-4)
    assert widths[0] != pytest.approx(wanted, rel=1e-2)


def test_the_likelihood_s_own_noise_is_tested_after_every_validation() -> None:
    """Raw coverage and scores are those of the first validation, whatever noise was fitted meanwhile."""
    games, metrics = [make_game(seed) for seed in range(12)], GameMetrics()
    keys = ("raw_coverage_50", "raw_coverage_90", "crps", "log_score")
    rows = []
    for _ in range(2):
        add(metrics, games)
        rows.append(metrics.finish("x", fit=True))
    assert [float(rows[1][key]) for key in keys] == [float(rows[0][key]) for key in keys]
    assert float(rows[0]["raw_coverage_90"]) == float(rows[0]["coverage_90"])
    assert float(rows[1]["raw_coverage_90"]) != float(rows[1]["coverage_90"])  # the fitted intervals are wider
    scores = []
    for game in games:
        for state, estimate in enumerate(game.estimates):
            action, t = game.actions[2 * state], 2 * state
            realised = sum(0.9 ** (k - t) * game.rewards[k] for k in range(t, len(game.rewards)))
            std = math.hypot(float(estimate.q_std[action]), float(estimate.noise_std[action]))
            scores.append(norm.logpdf(realised, float(estimate.q_mean[action]), std))
    assert float(rows[1]["log_score"]) == pytest.approx(np.mean(scores), rel=1e-4)


@pytest.mark.parametrize(("game", "normalised"), [("tennis", 0.0), ("breakout", -1.7 / 28.8)])
@pytest.mark.parametrize("stop", ["cut", "truncated"])
def test_a_stopped_game_counts_at_most_as_random_play(game: str, normalised: float, stop: str) -> None:
    """Standing still scores 0, above a human's -8.3 in Tennis; the raw scores stay as they are."""
    metrics, most = GameMetrics(), most_if_stopped(game)
    add(metrics, [replace(make_game(1), score=0.0, cut=stop == "cut", truncated=stop != "cut", most_if_stopped=most)])
    scores = metrics.finish(game, fit=False)
    assert float(scores["human_normalised"]) == pytest.approx(normalised, abs=1e-6)
    assert float(scores["return_mean"]) == float(scores["return_max"]) == 0.0
    assert float(scores[f"games_{stop}"]) == 1.0
    worse = Game(1, score=-24.0, most_if_stopped=-23.8, cut=True)  # stalling must not help who is behind either
    ended = Game(1, score=20.0, most_if_stopped=-23.8)
    assert (worse.counted, ended.counted) == (-24.0, 20.0)


def test_every_row_of_the_table_is_a_metric_of_games_or_of_the_draws() -> None:
    metrics = GameMetrics()
    add(metrics, [make_game(1)])
    scores = metrics.finish("tennis", fit=False)  # a game that has all of them
    assert set(LABELS) <= set(scores)
    add(metrics, [make_game(1)])
    assert set(scores) - set(metrics.finish("breakout", fit=False)) == {"points_won", "points_lost"}
    assert len(LABELS) == len(SCORES) == len({label for _, label in SCORES})


@pytest.mark.parametrize(
    ("key", "value"),
    [("games", 0), ("idle_frames", -1), ("render", "robot"), ("fps", 0)],
)
def test_settings_that_cannot_work_are_named(key: str, value: object) -> None:
    GameSettings(games=1, idle_frames=0, render="human", fps=1)
    with pytest.raises(ConfigError) as error:
        GameSettings(**{key: value})  # type: ignore[arg-type]
    assert error.value.key == f"data.evaluation.{key}"
