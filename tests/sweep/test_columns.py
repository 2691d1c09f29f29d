"""Columns of a sweep on TensorBoard's page HParams."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from bayes_rl.sweep.columns import write_columns
from bayes_rl.sweep.space import Space, Values
from tests.helpers.sweeps import RATE, STEPS, make_sweep


def test_the_page_shows_the_options_of_the_space_once(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for _ in range(2):  # an interrupted sweep continues
        write_columns(sweep)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    found = EventAccumulator(str(file)).Reload()
    about = found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    content = metadata.parse_experiment_plugin_data(about)
    assert {info.name: info.differs for info in content.hparam_infos} == {
        RATE: True,
        STEPS: True,
        "seed_everything": False,
    }
    assert [info.name.tag for info in content.metric_infos] == ["val/return_counted", "val/return_mean"]


@pytest.mark.parametrize("place", ["options", "space"])
def test_a_sweep_over_several_tasks_leaves_the_columns_to_its_fits(place: str, tmp_path: Path) -> None:
    tasks = Space({"data.tasks": Values("grid", (["a", "b"],))})
    fixed = make_sweep(tmp_path, options={"data.tasks": ["a", "b"]})
    write_columns(make_sweep(tmp_path, tasks) if place == "space" else fixed)
    assert not [*tmp_path.iterdir()]
