"""Metrics of whole games, and the list of those that people read."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm, spearmanr

from bayes_rl.envs.base import EnvSettings
from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.game_metrics import LABELS, NOVEL_STATES, SCORES, GameMetrics, score_names
from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.novel_states import KINDS, NovelStates
from bayes_rl.evaluation.settings import GameSettings
from bayes_rl.evaluation.state_sample import StateSample
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
    assert math.isnan(scores["error_correlation"])  # no states of the game were kept
    assert set(LABELS) <= {*scores, *(f"novelty_auroc_{kind}" for kind in KINDS)}
    assert set(score_names("tennis", KINDS)) == {*scores, *(f"novelty_auroc_{kind}" for kind in KINDS)}
    add(metrics, [make_game(1)])
    assert set(scores) - set(metrics.finish("breakout", fit=False)) == {"points_won", "points_lost"}
    assert len(LABELS) == len(SCORES) == len({label for _, label in SCORES})


# ------------------------------------------------------------------------------------------- tests of uncertainty
def make_sampled_game(seed: int, states: int, size: int) -> Game:
    """A game of planes of zeros and ones `[4, 10, 10]`, with a sample of its states."""
    game = make_game(seed, steps=2 * states)
    game.sample = StateSample(size, seed)
    for _ in range(states):
        game.sample.add((torch.rand(4, 10, 10) < 0.2).byte())
    return game


class Doubt:
    """Estimator whose doubt about the best action, 1, is the number of occupied cells of the first plane.

    The doubt about the other action is greater. The estimator notes the states that it has seen.
    """

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, observations: torch.Tensor) -> ValueEstimate:
        self.seen.append(observations)
        cells = observations[:, 0].flatten(1).sum(1).float()
        q_mean = torch.tensor([0.0, 1.0]).expand(len(cells), 2)
        return ValueEstimate(q_mean, torch.stack([1000 + cells, cells], 1), q_mean, q_mean.amax(1))


PLANES = NovelStates(EnvSettings("MinAtar/Breakout-v1", frame_skip=1), (4, 10, 10), 1, 0, ["MinAtar/Breakout-v1"])


def test_errors_are_ranked_in_the_sampled_states_by_the_action_that_was_played() -> None:
    games, metrics = [make_sampled_game(seed, 9, 4) for seed in range(5)], GameMetrics()
    add(metrics, games)
    scores = metrics.finish("x", fit=False)
    std, error, both = [], [], []
    for game in games:
        assert game.sample is not None
        assert len(game.sample.observations) == 4
        for state in sorted(game.sample.observations):
            action, t = game.actions[2 * state], 2 * state
            realised = sum(0.9 ** (k - t) * game.rewards[k] for k in range(t, len(game.rewards)))
            std.append(float(game.estimates[state].q_std[action]))
            both.append(math.hypot(std[-1], float(game.estimates[state].noise_std[action])))
            error.append(abs(float(game.estimates[state].q_mean[action]) - realised))
    assert float(scores["error_correlation"]) == pytest.approx(spearmanr(std, error).statistic, abs=1e-5)
    assert float(scores["predictive_error_correlation"]) == pytest.approx(spearmanr(both, error).statistic, abs=1e-5)
    assert metrics.evidence is not None
    assert metrics.evidence.std.tolist() == pytest.approx(std)
    assert metrics.evidence.error.tolist() == pytest.approx(error, abs=1e-5)


def test_novelty_compares_the_doubt_about_the_greedy_action_in_known_and_novel_states() -> None:
    games, metrics, doubt = [make_sampled_game(seed, 9, 4) for seed in range(5)], GameMetrics(), Doubt()
    add(metrics, games)
    metrics.test_novelty(PLANES, games, doubt)
    scores = metrics.finish("x", fit=False)
    known = [
        float(e.q_std[e.q_mean.argmax()])
        for game in games
        for e in (game.estimates[i] for i in sorted(game.sample.observations))  # type: ignore[union-attr]
    ]
    assert metrics.evidence is not None
    deviations = metrics.evidence.deviations
    assert deviations["known"].tolist() == pytest.approx(known)
    assert set(deviations) == {"known", *PLANES.kinds}
    cells = torch.cat([states[:, 0].flatten(1).sum(1).float() for states in doubt.seen])
    assert torch.equal(cells, torch.cat([deviations[kind] for kind in PLANES.kinds]))
    for kind in PLANES.kinds:
        pairs = [(n > k) + (n == k) / 2 for k in deviations["known"].tolist() for n in deviations[kind].tolist()]
        assert float(scores[f"novelty_auroc_{kind}"]) == pytest.approx(np.mean(pairs), abs=1e-6)
    # The next set of games begins anew.
    add(metrics, games)
    assert "novelty_auroc_noise" not in metrics.finish("x", fit=False)


def test_novel_states_are_those_of_the_games_and_limited_in_number() -> None:
    metrics, doubts = GameMetrics(), (Doubt(), Doubt(), Doubt())
    games = [make_sampled_game(seed, 90, 90) for seed in range(4)]
    others = [replace(game, seed=game.seed + 100) for game in games]  # the draws depend on the seeds
    for played, doubt in zip((games, games, others), doubts, strict=True):
        metrics.test_novelty(PLANES, played, doubt)
    first, again, other = (torch.cat(doubt.seen) for doubt in doubts)
    assert len(first) == 2 * NOVEL_STATES + 128  # as many as were recorded of the third kind
    assert max(len(states) for states in doubts[0].seen) <= 64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    metrics.test_novelty(PLANES, [make_game(1)], doubts[0])  # no states were kept
    assert len(torch.cat(doubts[0].seen)) == len(first)


def test_no_state_is_unvisited_once_the_score_is_that_of_the_recording() -> None:
    for score, missing in ((15.9, False), (16.0, True)):
        games, metrics = [replace(make_sampled_game(1, 9, 9), score=score)], GameMetrics()
        add(metrics, games)
        metrics.test_novelty(PLANES, games, Doubt())
        scores = metrics.finish("x", fit=False)
        assert math.isnan(scores["novelty_auroc_unvisited"]) == missing
        assert not math.isnan(scores["novelty_auroc_noise"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("games", 0), ("idle_frames", -1), ("render", "robot"), ("fps", 0)],
)
def test_settings_that_cannot_work_are_named(key: str, value: object) -> None:
    GameSettings(games=1, idle_frames=0, render="human", fps=1)
    with pytest.raises(ConfigError) as error:
        GameSettings(**{key: value})  # type: ignore[arg-type]
    assert error.value.key == f"data.evaluation.{key}"
