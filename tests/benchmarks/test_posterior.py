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
        options = type("Options", (), {"epochs": 2, "games_at_last": 3})
        rows.append(posterior.measure({"game": "cartpole", "arm": arm, "seed": 101}, options))  # type: ignore[arg-type]
    for row in rows:
        assert [point["frames"] for point in row["curve"]] == sorted({point["frames"] for point in row["curve"]})
        assert row["curve"][1]["minutes"] >= row["curve"][0]["minutes"] > 0
        assert math.isfinite(row["test"]["return_mean"])
        assert row["test"]["games"] == row["games"] == 3
    assert rows[0]["curve"][-1]["novelty_auroc_noise"] != rows[1]["curve"][-1]["novelty_auroc_noise"]
    lines = posterior.table(rows).splitlines()
    assert len(lines) == 4
