"""Trials: their scores at equal frames, the means that pruning compares, and their state on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import trim_mean

from bayes_rl.sweep.trial import FINISHED, RUNNING, Trial, running_means
from tests.helpers.sweeps import RATE, STEPS, make_sweep, write_finished, write_scores, write_trial

CURVES = [[10.0, 20.0, 30.0], [14.0, 22.0, 90.0]]


def test_running_means_are_those_of_the_first_seeds_at_equal_frames() -> None:
    assert running_means(CURVES, 3) == [10, 20, 30, 12, 21, 60]


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ([[], []], []),
        ([[10.0], []], [10]),
        ([[10.0], [14.0, 22.0, 90.0]], [10]),  # the second seed is ahead: its scores wait for the first one
        ([[10.0, 20.0, 30.0], []], [10, 20, 30]),
        ([[10.0, 20.0, 30.0], [14.0]], [10, 20, 30, 12]),
    ],
)
def test_running_means_do_not_depend_on_the_order_of_the_fits(curves: list[list[float]], expected: list[float]) -> None:
    assert running_means(curves, 3) == expected == running_means(CURVES, 3)[: len(expected)]


def test_the_score_is_the_interquartile_mean_over_seeds_at_the_last_validation(tmp_path: Path) -> None:
    trial = Trial(tmp_path, {STEPS: 3}, range(5))
    last = [3.0, 100.0, 5.0, 7.0, -50.0]
    for fit, score in zip(trial.fits, last, strict=True):
        write_scores(fit, [1000.0, score])
        assert trial.score(2) is None
        write_finished(fit, score)
    assert trial.score(2) == pytest.approx(trim_mean(last, 0.25)) == pytest.approx(5)


def test_the_last_score_counts_once_the_fit_has_ended(tmp_path: Path) -> None:
    trial = Trial(tmp_path, {STEPS: 3}, [1])
    write_scores(trial.fits[0], [1.0, 2.0])
    assert trial.curves(2) == [[1.0]]
    write_finished(trial.fits[0], 2.0)
    assert trial.curves(2) == [[1.0, 2.0]]


def test_fits_of_equal_minutes_have_the_score_of_their_last_validation(tmp_path: Path) -> None:
    trial = Trial(tmp_path, {STEPS: 3}, [1, 2])
    for fit, scores in zip(trial.fits, [[1.0, 2.0], [4.0, 5.0, 6.0, 8.0]], strict=True):
        write_scores(fit, scores)
        assert trial.score(None) is None
        write_finished(fit, 0.0)
    assert trial.curves(None) == [[2.0], [8.0]]
    assert trial.score(None) == 5


def test_trials_are_read_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    rates = [3e-3, 1e-4, 2.123456789012345e-3, 1e-2]
    for rate in rates:
        write_trial(sweep, {RATE: rate, STEPS: 1}, [[1.0, 2.0]] * 2, FINISHED)
    sweep.trial({RATE: rates[0], STEPS: 1}).write(FINISHED)  # a trial keeps its place
    assert [trial.options[RATE] for trial in sweep.known_trials()] == rates
    assert {trial.state for trial in sweep.known_trials()} == {FINISHED}


def test_the_directory_of_a_trial_depends_on_its_options_alone(tmp_path: Path) -> None:
    first = Trial(tmp_path, {RATE: 1e-3, STEPS: 1}, [1])
    assert first.directory == Trial(tmp_path, {STEPS: 1, RATE: 1e-3}, [1, 2]).directory
    assert first.directory != Trial(tmp_path, {STEPS: 2, RATE: 1e-3}, [1]).directory
    assert first.state == RUNNING
