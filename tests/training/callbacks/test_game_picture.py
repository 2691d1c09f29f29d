"""Pictures of the validation games of a fit in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.command_line import SHORTEST, run, weights
from tests.helpers.pictures import save_one_pixel

pytestmark = [pytest.mark.pictures, pytest.mark.usefixtures("shared_parser")]

TASKS = ["MinAtar/Breakout-v1", "MinAtar/Freeway-v1"]
TWO_TASKS = [
    *(f"--data.tasks=[{', '.join(TASKS)}]", "--data.frames_per_epoch=40", "--data.curriculum.frames_per_task=40"),
    *("--data.num_envs=2", "--data.frame_stack=1", "--data.rules.frame_skip=1", "--data.replay.min_size=40"),
    *("--data.replay.capacity=500", "--data.evaluation.games=2", "--data.rules.max_episode_frames=20"),
    *("--data.replay.batch_size=4", "--model.network.encoder=minatar", "--model.network.hidden_dim=8", "--name=game"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def images() -> dict[str, list[Any]]:
    """Return the pictures of the run by tag."""
    found = EventAccumulator("runs/game/version_0", size_guidance={"images": 0, "scalars": 0}).Reload()
    return {tag: found.Images(tag) for tag in found.Tags()["images"]}


def test_each_task_has_a_picture_of_a_game_and_of_its_uncertainty_at_every_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(monkeypatch, "fit", *TWO_TASKS)
    found = images()
    names = [task.replace("/", "-") for task in TASKS]
    wanted = {f"val/{task}/{name}" for task in names for name in ("game", "uncertainty")}
    assert {*found} == {*wanted, "val/learning_curve", "test/uncertainty"}
    for tag in wanted:
        assert [picture.step for picture in found[tag]] == [picture.step for picture in found["val/learning_curve"]]
        last = found[tag][-1]
        with Image.open(io.BytesIO(last.encoded_image_string)) as image:
            assert image.format == "PNG"
            assert image.size == (last.width, last.height)
    one, two = (found[f"val/{task}/game"][-1].encoded_image_string for task in names)
    assert one != two


@pytest.mark.slow
def test_a_picture_that_fails_costs_a_line_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "fit", *SHORTEST)
    before, pictures = weights(Path("runs/game/version_0/checkpoints/last.ckpt")), images()
    capfd.readouterr()

    def fails(*_: Any) -> Any:
        raise RuntimeError("no font")

    monkeypatch.setattr("bayes_rl.reporting.game_figure.draw_game", fails)
    Path("runs").rename("earlier")
    run(monkeypatch, "fit", *SHORTEST)
    lines = [line for line in capfd.readouterr().err.splitlines() if "no font" in line]
    assert lines == ["bayes-rl: warning: drawing a game of the validation failed: RuntimeError: no font"] * 2
    assert {*images()} == {*pictures} - {"val/game"}
    after = weights(Path("runs/game/version_0/checkpoints/last.ckpt"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_validate_draws_no_game(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)
    run(monkeypatch, "fit", *SHORTEST, "--trainer.max_epochs=1")
    drawn: list[Any] = []
    monkeypatch.setattr("bayes_rl.reporting.game_figure.draw_game", lambda *a: drawn.append(a))
    run(monkeypatch, "validate", "--ckpt_path=runs/game/version_0/checkpoints/last.ckpt")
    assert not drawn
