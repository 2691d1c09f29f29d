"""Pages of TensorBoard that a fit writes: layout, options, configuration and pictures."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from bayes_rl.training.tensorboard_layout import CHARTS
from tests.helpers.command_line import SHORTEST, TINY, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

TASKS = [
    "--data.tasks=[MinAtar/Breakout-v1, MinAtar/Freeway-v1]",
    *("--data.num_envs=2", "--data.frame_stack=1", "--data.rules.frame_skip=1", "--data.frames_per_epoch=80"),
    *("--data.curriculum.frames_per_task=80", "--data.replay.min_size=40", "--data.replay.capacity=500"),
    *("--data.evaluation.games=1", "--data.rules.max_episode_frames=20", "--data.replay.batch_size=4"),
    *("--model.network.encoder=minatar", "--model.network.hidden_dim=8", "--trainer.enable_model_summary=false"),
    *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=5", "--name=game"),
]
PLAIN = ["--model.network.bayesian=none", "--model.exploration=epsilon", "--trainer.log_every_n_steps=5"]
FITS = {"bayesian": [*SHORTEST, "--trainer.log_every_n_steps=5"], "plain": [*SHORTEST, *PLAIN], "tasks": TASKS}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def events(directory: str) -> EventAccumulator:
    """Return everything that a run has written for TensorBoard."""
    return EventAccumulator(directory, size_guidance={"tensors": 0, "images": 0}).Reload()


def text_of(found: EventAccumulator, tag: str) -> list[str]:
    """Return the texts under a tag, in their order."""
    return [event.tensor_proto.string_val[0].decode() for event in found.Tensors(tag)]


def layout_of(found: EventAccumulator) -> Layout:
    """Return the layout that TensorBoard reads."""
    layout = Layout()
    layout.ParseFromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return layout


def options_of(found: EventAccumulator) -> Any:
    """Return the columns and the row of the page HParams."""
    contents = {tag: found.SummaryMetadata(tag).plugin_data.content for tag in found.Tags()["tensors"]}
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    return experiment, metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])


@pytest.mark.parametrize("case", slow_but(FITS, "bayesian", "tasks"))
def test_every_curve_of_the_layout_is_logged(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "fit", *FITS[case])
    found = events("runs/game/version_0")
    tags = found.Tags()["scalars"]
    layout = layout_of(found)
    assert [chart.title for chart in layout.category[0].chart] == list(CHARTS["Overview"])
    shown = set()
    for chart in [chart for category in layout.category for chart in category.chart]:
        for pattern in chart.multiline.tag:
            matched = {tag for tag in tags if re.match(pattern, tag)}
            assert matched, f"{chart.title}: {pattern}"
            shown |= matched
        for series in chart.margin.series:
            ends = {series.value, series.lower, series.upper}
            assert ends <= {*tags}, chart.title
            shown |= ends
    left_out = {tag for tag in tags if not tag.startswith("test/")} - shown
    details = r"val/(.+/)?(return_(median|iqm|correlation)|games|q_gap|log_score|fitted_.+|epistemic_std|predictive_.+)"
    details += r"|train/temperature|posterior/log_var_m(in|ax)|epoch"
    assert not [tag for tag in left_out if not re.fullmatch(details, tag)]


def test_options_configuration_and_pictures_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["--seed_everything=7", "--model.optimizer.critic_lr=0.002", "--data.updates_per_step=0.25"]
    few_updates = ["--data.frames_per_epoch=160", "--data.evaluation.games=1"]
    run(monkeypatch, "fit", *TINY, *few_updates, *typed)
    found = events("runs/cartpole/version_0")
    experiment, session = options_of(found)
    assert session.hparams["seed_everything"].number_value == 7
    assert session.hparams["model.optimizer.critic_lr"].number_value == 0.002
    assert session.hparams["model.optimizer.actor_lr"].number_value == 0.0003  # of the configuration
    assert session.hparams["data.updates_per_step"].number_value == 0.25  # the default, typed
    assert not {"data.num_envs", "trainer.max_steps", "data.rules.auto_fire"} & {*session.hparams}  # defaults
    assert session.hparams["config"].string_value == "cartpole"
    first = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"seed_everything", "model.optimizer.critic_lr"} <= first
    assert "model.optimizer.actor_lr" not in first
    assert {info.name for info in experiment.hparam_infos} == {*session.hparams}
    assert not [name for name in session.hparams if name.startswith(("trainer.enable", "trainer.log", "name"))]
    assert [info.name.tag for info in experiment.metric_infos] == ["val/return_mean"]
    assert "val/return_mean" in found.Tags()["scalars"]
    (text,) = text_of(found, "configuration/text_summary")
    lines = [line[4:] for line in text.splitlines()]
    assert lines == Path("runs/cartpole/version_0/config.yaml").read_text().splitlines()
    assert "  max_epochs: 2" in lines
    pictures = found.Images("val/learning_curve")
    assert [picture.step for picture in pictures] == [step.step for step in found.Scalars("val/return_mean")]
    last = pictures[-1]
    assert last.encoded_image_string == Path("runs/cartpole/version_0/learning_curve.png").read_bytes()
    assert Image.open(io.BytesIO(last.encoded_image_string)).size == (last.width, last.height)
    assert {*found.Tags()["images"]} == {"val/learning_curve", "val/game", "val/uncertainty", "test/uncertainty"}


def test_a_fit_of_a_sweep_leaves_the_columns_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path("sweeps/lr/trials/0/seed_100")
    place.mkdir(parents=True)
    for name in ("sweep.json", "events.out.tfevents.0"):
        Path("sweeps/lr", name).touch()
    Path("fit.yaml").write_text("model: {optimizer: {actor_lr: 0.00025}}")  # the default, a value of the space
    words = ["--config=fit.yaml", *SHORTEST, f"--trainer.default_root_dir={place.parent}", f"--name={place.name}"]
    run(monkeypatch, "fit", *words)
    found = events(f"{place}/version_0")
    assert metadata.EXPERIMENT_TAG not in found.Tags()["tensors"]
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    session = metadata.parse_session_start_info_plugin_data(content)
    assert session.hparams["model.optimizer.actor_lr"].number_value == 0.00025


def test_a_resumed_run_has_one_layout_and_one_row_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "fit", *SHORTEST, "--trainer.log_every_n_steps=5", "--trainer.max_epochs=1")
    before = options_of(events("runs/game/version_0"))
    run(monkeypatch, "fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    found = events("runs/game/version_0")
    assert len(found.Tensors("custom_scalars__config__")) == 1
    assert options_of(found) == before
    assert len(found.Tensors(metadata.SESSION_START_INFO_TAG)) == 1
    texts = text_of(found, "configuration/text_summary")
    assert ["max_epochs: 1" in texts[0], "max_epochs: 2" in texts[1]] == [True, True]


def test_a_layout_waits_for_the_first_logged_update(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "fit", *SHORTEST, "--trainer.log_every_n_steps=25")  # in the second of two epochs
    found = events("runs/game/version_0")
    assert len(found.Tensors("custom_scalars__config__")) == 1
    assert [chart.title for chart in layout_of(found).category[0].chart] == list(CHARTS["Overview"])


def test_a_fit_with_another_logger_writes_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "fit", *SHORTEST, "--trainer.logger=false")
    assert not [*Path("runs").rglob("events.out.tfevents.*")]
