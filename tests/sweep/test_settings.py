"""Settings of a sweep: the number of its trials, and what makes two sweeps the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.sweep.space import Space, Values
from bayes_rl.sweep.trial import FAILED, FINISHED, PRUNED, RUNNING
from tests.helpers.sweeps import GRID, RATE, STEPS, make_sweep, write_trial


def test_a_search_has_its_trials_and_a_grid_its_combinations(tmp_path: Path) -> None:
    mixed = Space({**GRID.options, STEPS: Values("choice", (1, 3))})
    assert make_sweep(tmp_path, draws=7).num_trials == 7
    assert make_sweep(tmp_path, GRID, draws=7).num_trials == 3
    assert make_sweep(tmp_path, mixed, draws=7).num_trials == 21


def test_games_cannot_be_compared(tmp_path: Path) -> None:
    assert make_sweep(tmp_path).comparable
    assert not make_sweep(tmp_path, Space({"data.env": Values("grid", ("a", "b"))})).comparable


def test_a_directory_takes_the_same_sweep_again_also_with_more_trials(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    sweep.check()
    sweep.write()
    sweep.check()
    dataclasses.replace(sweep, draws=9).check()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seeds": (1, 2)}, "--seeds: [1, 2] differs from [100, 101]"),
        ({"options": {"data.env": "Pong-v0", "trainer.max_epochs": 2}}, "--data.env: 'Pong-v0' differs from 'CartPole"),
        ({"options": {"data.env": "CartPole-v1"}}, "--trainer.max_epochs: None differs from 2"),
        ({"space": GRID}, f"--{RATE}: {{'grid': [0.0001, 0.001, 0.01]}} differs from"),
        ({"pruning": True}, "--pruning: True differs from False"),
        ({"threads": 2}, "--threads: 2 differs from 1"),
    ],
)
def test_a_directory_refuses_another_sweep(change: dict[str, object], expected: str, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    sweep.write()
    with pytest.raises(ConfigError) as refused:
        dataclasses.replace(sweep, **change).check()  # type: ignore[arg-type]
    assert expected in str(refused.value)
    assert "another --output" in str(refused.value)


def test_a_file_of_settings_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="that cannot be read"):
        make_sweep(tmp_path).check()


@pytest.mark.parametrize(("state", "complete"), [(FINISHED, True), (PRUNED, True), (RUNNING, False), (FAILED, False)])
def test_a_sweep_is_complete_once_no_trial_is_left(state: str, complete: bool, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", draws=1)
    write_trial(sweep, {RATE: 1e-3, STEPS: 1}, [[1.0, 2.0]] * 2, state)
    assert not sweep.complete, "nothing says that the search has ended"
    sweep.write_complete()
    assert sweep.complete == complete
    assert not dataclasses.replace(sweep, draws=2).complete
