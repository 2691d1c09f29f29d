"""The benchmark of posteriors: scores at equal minutes by hand, and a short run of both arms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bayes_rl.evaluation.games import Game
from bayes_rl.types import ValueEstimate
from benchmarks.learning import posterior


def test_scores_at_a_time_are_interpolated_between_validations() -> None:
    curve = [{"minutes": 2.0, "return_mean": 4.0}, {"minutes": 4.0, "return_mean": 10.0}]
    found = [posterior.score_at(curve, minutes) for minutes in (1.0, 2.0, 3.0, 4.0, 9.0)]
    assert found == [2.0, 4.0, 7.0, 10.0, 10.0]


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_conformal_intervals_hold_nine_tenths_of_returns_whatever_their_scale(scale: float) -> None:
    """The raw noise is 1; returns are normal with the given standard deviation about a biased mean."""
    returns = scale * torch.randn(1000) + 2
    one = torch.ones(1)
    estimate = ValueEstimate(0 * one, 0.1 * one, one, 0 * one)
    games = [Game(0, actions=[0], rewards=[x], discounts=[0.0], estimates=[estimate]) for x in returns.tolist()]
    assert posterior.conformal_coverage(games, every=1, gamma=0.99) == pytest.approx(0.9, abs=0.02)


@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_both_arms_are_trained_and_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"frames_per_epoch": 200, "num_envs": 2, "updates_per_step": 0.05}
    tiny |= {"replay": {"min_size": 100, "capacity": 1000, "reward_clip": 1}, "evaluation": {"games": 2}}
    monkeypatch.setitem(posterior.GAMES, "cartpole", ("cartpole", tiny))
    rows = []
    for arm in posterior.ARMS:
        options = type("Options", (), {"epochs": 2, "test_games": 3})
        rows.append(posterior.measure({"game": "cartpole", "arm": arm, "seed": 101}, options))  # type: ignore[arg-type]
    for row in rows:
        assert [point["frames"] for point in row["curve"]] == sorted({point["frames"] for point in row["curve"]})
        assert row["curve"][1]["minutes"] >= row["curve"][0]["minutes"] > 0
        assert math.isfinite(row["test"]["return_mean"])
        assert row["test"]["games"] == row["test_games"] == 3
        assert 0 <= row["test"]["conformal_coverage_90"] <= 1
    assert rows[0]["curve"][-1]["novelty_auroc_noise"] != rows[1]["curve"][-1]["novelty_auroc_noise"]
    assert posterior.table(rows).count("\n| cartpole") == 4  # two games and two runs


def test_the_summary_is_mean_and_range_over_seeds_by_hand() -> None:
    def run(arm: str, seed: int, scores: tuple[float, float], minutes: tuple[float, float]) -> dict[str, object]:
        curve = [
            {"frames": 100 * (k + 1), "minutes": minute, "return_mean": score}
            for k, (score, minute) in enumerate(zip(scores, minutes, strict=True))
        ]
        test = {"raw_coverage_90": seed / 10, "novelty_auroc_noise": 0.75}
        return {"game": "g", "arm": arm, "seed": seed, "curve": curve, "test": test}

    runs = [run("default", 1, (2, 6), (2, 4)), run("default", 2, (4, 10), (2, 4)), run("plain", 1, (3, 8), (2, 3))]
    ours, plain = posterior.summary_of(posterior.runs_of(runs))
    assert ours["seeds"] == 2
    assert ours["validation"] == [6, 8, 10]
    assert ours["auroc_noise"] == [0.75, 0.75, 0.75]
    assert ours["raw_coverage_90"] == pytest.approx([0.1, 0.15, 0.2])
    assert ours["at_plain_minutes"] == [4, 4, 4]  # of seed 1 alone: the other one has no twin
    assert ours["auroc_unvisited"] is None
    assert plain["validation"] == [8, 8, 8]
