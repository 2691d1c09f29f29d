"""Tests of uncertainty in whole runs: which are logged where, that they are in the closing table, and their picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.command_line import ROOT, SHORTEST, TINY, curves, run

QUICK = ["--trainer.max_epochs=1", "--data.evaluation.games=3"]
MINATAR = [
    *("--config", str(ROOT / "configs/minatar.yaml"), *SHORTEST[4:], *QUICK),
    *("--data.num_envs=2", "--model.network.encoder=minatar"),
]
DEEP_SEA = [
    *(*SHORTEST, *QUICK, "--data.env=bayes_rl/DeepSea-v0", "--data.env_kwargs={size: 4, one_hot: false}"),
    "--data.rules.sticky_actions=0",
]
pytestmark = [pytest.mark.pictures, pytest.mark.usefixtures("shared_parser")]
RANKING = {"error_correlation", "error_correlation_low", "error_correlation_high", "risk_coverage_area"}
RUNS = {
    "cartpole": ([*TINY, *QUICK], {"noise", "shuffled"}),
    "minatar": (MINATAR, {"noise", "shuffled", "unvisited"}),
    "deep_sea": (DEEP_SEA, set()),
}


@pytest.mark.parametrize("game", RUNS)
def test_a_fit_logs_and_prints_what_its_observations_allow(
    game: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, kinds = RUNS[game]
    run(monkeypatch, "fit", *options, "--name=game")
    found = curves(Path("runs/game/version_0"))
    for stage in ("val", "test"):
        tags = {tag.removeprefix(f"{stage}/"): points for tag, points in found.items() if tag.startswith(f"{stage}/")}
        areas = {tag for tag in tags if tag.startswith("novelty_auroc_")}
        assert areas == {f"novelty_auroc_{kind}" for kind in kinds}
        assert all(0 <= value <= 1 for tag in areas for _, value in tags[tag])
        assert set(tags) >= RANKING
        low, middle, high = (tags[f"error_correlation{end}"][-1][1] for end in ("_low", "", "_high"))
        assert -1 <= low <= high <= 1
        assert -1 <= middle <= 1
        area = tags["risk_coverage_area"][-1][1]
        assert area <= 1 or math.isnan(area)
    table = capsys.readouterr().out
    for kind in ("noise", "shuffled", "other game", "unvisited"):
        assert (f"  AUROC {kind} " in table) == (kind in kinds)
    assert "  std-error rank r" in table


def test_test_games_and_validate_draw_a_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/game/version_0")
    run(monkeypatch, "fit", *SHORTEST, *QUICK)
    assert str(folder / "uncertainty_test.png") in capsys.readouterr().out
    images = EventAccumulator(str(folder)).Reload().Tags()["images"]
    assert {*images} == {"val/learning_curve", "val/game", "val/uncertainty", "test/uncertainty"}
    assert [path.name for path in folder.glob("uncertainty*")] == ["uncertainty_test.png"]
    run(monkeypatch, "validate", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--data.evaluation.games=2")
    assert str(folder / "uncertainty_validate.png") in capsys.readouterr().out
    for verb in ("test", "validate"):
        with Image.open(folder / f"uncertainty_{verb}.png") as picture:
            assert picture.size[0] > 1000
