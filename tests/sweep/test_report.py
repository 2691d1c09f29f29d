"""Report of a sweep, made from files alone."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import pytest
import yaml
from matplotlib.collections import LineCollection

from bayes_rl.sweep.figures import draw_parallel_coordinates
from bayes_rl.sweep.report import write_report
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import Space, Values
from bayes_rl.sweep.trial import FAILED, FINISHED, PRUNED
from tests.helpers.run_directories import tables
from tests.helpers.sweeps import RATE, STEPS, make_sweep, write_trial

SEEDS = range(100, 105)
BEST = {RATE: 1e-3, STEPS: 3}


@pytest.fixture
def searched(tmp_path: Path) -> Sweep:
    """A search with five finished trials, one pruned and one failed."""
    sweep = make_sweep(tmp_path / "lr", seeds=SEEDS, draws=7)
    for options, height in ((BEST, 90), *(({RATE: rate, STEPS: 1}, 50 - 1000 * rate) for rate in (1e-4, 2e-3, 5e-3))):
        write_trial(sweep, options, [[height / 2, height + seed] for seed in range(5)], FINISHED)
    write_trial(sweep, {RATE: 8e-3, STEPS: 5}, [[1.0, 2.0 + seed] for seed in range(5)], FINISHED)
    write_trial(sweep, {RATE: 9e-3, STEPS: 5}, [[7.0]], PRUNED)
    write_trial(sweep, {RATE: 1e-2, STEPS: 5}, [], FAILED)
    return sweep


def test_the_report_ranks_finished_trials_by_their_score(searched: Sweep) -> None:
    pytest.importorskip("optuna")
    written = write_report(searched)
    assert "7 trials: 5 finished, 1 pruned, 1 failed" in written.text
    results, pruned = tables(written.text)
    assert [row[RATE] for row in results] == ["0.001", "0.0001", "0.002", "0.005", "0.008"]
    assert results[0]["validation score"].startswith("92.00 [")
    assert results[0]["test score"].startswith("91.00 [")
    assert [row["mean score when stopped"] for row in pruned] == ["7"]
    assert "an error" in written.text
    assert (searched.directory / "report.md").read_text() == written.text


def test_a_trial_without_a_score_is_not_ranked(tmp_path: Path) -> None:
    """All scores are negative: a missing score that counted as 0 would be the best one."""
    sweep = make_sweep(tmp_path / "sweeps/lr")
    ends = {1e-4: [-10.0, -9.0], 2e-3: [-3.0], 5e-3: [-8.0, float("nan")], 8e-3: [-20.0, -30.0]}
    for rate, scores in ends.items():
        write_trial(sweep, {RATE: rate, STEPS: 1}, [scores] * len(sweep.seeds), FINISHED)
    text = write_report(sweep).text
    assert [row[RATE] for row in tables(text)[0]] == ["0.0001", "0.008"]
    assert "0.0001" in (sweep.directory / "best.yaml").read_text()
    assert "bayes-rl fit --config lr/best.yaml" in text


def test_the_pictures_of_the_report_exist(searched: Sweep) -> None:
    pytest.importorskip("optuna")
    pictures = re.findall(r"!\[.*\]\((.*)\)", write_report(searched).text)
    assert pictures == ["curves.png", "parallel_coordinates.png", "importance.png"]
    assert all((searched.directory / name).stat().st_size > 10_000 for name in pictures)


def test_the_lowest_trial_is_no_white_line_on_white(searched: Sweep) -> None:
    pytest.importorskip("optuna")
    finished = [trial for trial in searched.known_trials() if trial.state == FINISHED]
    with warnings.catch_warnings(action="ignore"):  # Optuna's drawing is experimental
        figure = draw_parallel_coordinates(searched, finished)
    lines = [part for axes in figure.axes for part in axes.collections if isinstance(part, LineCollection)]
    coloured = [part for part in lines if part.get_array() is not None]
    assert coloured
    assert all(max(part.get_cmap()(0.0)[:2]) < 0.85 for part in coloured)  # red and green


def test_the_best_configuration_has_all_options_and_no_seed(searched: Sweep) -> None:
    pytest.importorskip("optuna")
    write_report(searched)
    assert yaml.safe_load((searched.directory / "best.yaml").read_text()) == {
        "data": {"env": "CartPole-v1", "replay": {"n_step": 3}},
        "trainer": {"max_epochs": 2},
        "model": {"optimizer": {"critic_lr": 0.001}},
    }


def test_games_are_a_table_in_their_order_without_a_best_one(tmp_path: Path) -> None:
    space = Space({"data.env": Values("grid", ("Asterix-v1", "Breakout-v1"))})
    sweep = make_sweep(tmp_path / "games", space, seeds=(1, 2))
    write_trial(sweep, {"data.env": "Asterix-v1"}, [[1.0, 2.0], [3.0, 4.0]], FINISHED)
    write_trial(sweep, {"data.env": "Breakout-v1"}, [[10.0, 20.0], [30.0, 40.0]], FINISHED)
    written = write_report(sweep)
    (results,) = tables(written.text)
    assert [row["data.env"] for row in results] == ["Asterix-v1", "Breakout-v1"]
    assert [row["validation score"] for row in results] == ["3.00 (2.00 to 4.00)", "30.00 (20.00 to 40.00)"]
    assert not (sweep.directory / "best.yaml").exists()


def test_a_sweep_without_a_finished_trial_has_a_report(searched: Sweep, tmp_path: Path) -> None:
    empty = dataclasses.replace(searched, directory=tmp_path / "empty")
    write_trial(empty, {RATE: 1e-2, STEPS: 5}, [], FAILED)
    written = write_report(empty)
    assert "No trial has finished." in written.text
    assert [Path(file).name for file in written.files] == ["report.md"]
