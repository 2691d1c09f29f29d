"""The benchmark of posteriors: scores at equal minutes by hand, and a short run of both arms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.learning import posterior


def test_scores_at_a_time_are_interpolated_between_validations() -> None:
    curve = [{"minutes": 2.0, "return_mean": 4.0}, {"minutes": 4.0, "return_mean": 10.0}]
    found = [posterior.score_at(curve, minutes) for minutes in (1.0, 2.0, 3.0, 4.0, 9.0)]
    assert found == [2.0, 4.0, 7.0, 10.0, 10.0]


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
    assert rows[0]["curve"][-1]["novelty_auroc_noise"] != rows[1]["curve"][-1]["novelty_auroc_noise"]
    assert posterior.table(rows).count("\n| cartpole") == 4  # two games and two runs


def test_the_summary_is_mean_and_range_over_seeds_by_hand() -> None:
    def run(arm: str, seed: int, scores: tuple[float, float], minutes: tuple[float, float]) -> dict[str, object]:
        curve = [
            {"frames": 100 * (k + 1), "minutes": minute, "return_mean": score, "novelty_auroc_noise": 0.5 + k / 4}
            for k, (score, minute) in enumerate(zip(scores, minutes, strict=True))
        ]
        return {"game": "g", "arm": arm, "seed": seed, "curve": curve, "test": {"raw_coverage_90": seed / 10}}

    runs = [run("default", 1, (2, 6), (2, 4)), run("default", 2, (4, 10), (2, 4)), run("plain", 1, (3, 8), (2, 3))]
    ours, plain = posterior.summary_of(posterior.runs_of(runs))
    assert ours["seeds"] == 2
    assert ours["return_mean"] == [6, 8, 10]
    assert ours["auroc_noise"] == [0.75, 0.75, 0.75]
    assert ours["test_raw_coverage_90"] == pytest.approx([0.1, 0.15, 0.2])
    assert ours["at_plain_minutes"] == [4, 4, 4]  # of seed 1 alone: the other one has no twin
    assert ours["auroc_unvisited"] is None
    assert plain["return_mean"] == [8, 8, 8]
