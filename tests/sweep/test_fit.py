"""Fits of a sweep: a killed fit goes on from its last checkpoint and ends like an undisturbed one, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bayes_rl.cli.sweep import run_verb
from bayes_rl.errors import RunError
from bayes_rl.sweep.fit import Fit
from tests.helpers.command_line import weights
from tests.helpers.sweeps import TINY_FIT, write_finished, write_scores

OPTIONS = {**TINY_FIT, "seed_everything": 3, "data.rules.max_episode_frames": 50}


class Recorded:
    """The verb `fit` or `test`, with the words of every call."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []

    def __call__(self, words: list[str]) -> dict[str, float]:
        """Run the words."""
        self.words.append(words)
        return run_verb(words)


def made(directory: Path) -> Fit:
    fit = Fit(directory / "seed_3")
    fit.write_config(OPTIONS)
    return fit


def kill_when(fit: Fit, path: Path) -> None:
    """Run a fit in a process of its own, and kill the process once a file exists.

    The process is not forked, because a fork of a process with threads can hang or crash.
    """
    process = multiprocessing.get_context("spawn").Process(target=fit.complete, args=(run_verb,))
    process.start()
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not fit.finished


def assert_equal(fit: Fit, other: Fit) -> None:
    """Assert that two fits have the same scores, weights and test games, bit for bit."""
    assert fit.finished
    rows, expected = (np.load(f.run / "metrics.npy", allow_pickle=False) for f in (fit, other))
    assert len(rows) == 3
    assert rows.tobytes() == expected.tobytes()
    last, calm = (weights(f.run / "checkpoints/last.ckpt") for f in (fit, other))
    assert all(torch.equal(last[name], calm[name]) for name in {*last, *calm})
    assert fit.test_scores() == pytest.approx(other.test_scores(), rel=0, abs=0, nan_ok=True)
    assert fit.test_scores()["test/return_counted"] > 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """A fit that nothing disturbed."""
    fit = made(tmp_path_factory.mktemp("calm"))
    fit.complete(run_verb)
    return fit


@pytest.mark.slow
def test_a_killed_fit_goes_on_from_its_last_checkpoint(tmp_path: Path, calm: Fit) -> None:
    fit, command = made(tmp_path), Recorded()
    last = fit.run / "checkpoints/last.ckpt"
    kill_when(fit, last)
    fit.complete(command)
    assert command.words == [["fit", f"--ckpt_path={last}"]]
    assert_equal(fit, calm)


@pytest.mark.slow
def test_a_fit_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, calm: Fit) -> None:
    fit = made(tmp_path)
    kill_when(fit, fit.run / "replay")
    assert not (fit.run / "checkpoints/last.ckpt").exists()
    fit.complete(run_verb)
    assert [path.name for path in fit.directory.glob("version_*")] == ["version_0"]
    assert_equal(fit, calm)


@pytest.mark.slow
def test_a_fit_that_was_killed_in_its_test_games_plays_them_again(tmp_path: Path, calm: Fit) -> None:
    fit, command = made(tmp_path), Recorded()
    fit.complete(run_verb)
    (fit.directory / "finished.json").unlink()
    fit.complete(command)
    assert [words[0] for words in command.words] == ["fit", "test"]
    assert_equal(fit, calm)


def test_a_fit_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    fit, command = made(tmp_path), Recorded()
    write_finished(fit, 1.0)
    fit.complete(command)
    assert not command.words


def test_a_failing_fit_has_not_ended(tmp_path: Path) -> None:
    fit = made(tmp_path)
    fit.write_config({**OPTIONS, "data.env": "CartPol-v1"})
    with pytest.raises(RunError, match="CartPole"):
        fit.complete(run_verb)
    assert not fit.finished


def test_a_fit_without_scores_of_test_games_has_not_ended(tmp_path: Path) -> None:
    def ends_early(words: Sequence[str]) -> dict[str, float]:
        raise SystemExit(0)

    fit = made(tmp_path)
    with pytest.raises(RunError, match="no scores"):
        fit.complete(ends_early)
    assert not fit.finished


def test_the_configuration_of_a_fit_is_in_sections(tmp_path: Path) -> None:
    fit = made(tmp_path)
    options = yaml.safe_load((fit.directory / "fit.yaml").read_text())
    assert options["data"]["replay"] == {"min_size": 40, "capacity": 2000, "batch_size": 4}


def test_scores_are_means_over_tasks_without_the_validation_before_training(tmp_path: Path) -> None:
    fit = Fit(tmp_path / "seed_1")
    assert fit.scores() == fit.frames() == []
    names = ["frames", "a/return_counted", "b/return_counted", "b/return_mean"]
    rows = np.array([(0, 9, 9, 9), (50, 1, 3, 9), (100, 2, 6, 9)], [(name, "f8") for name in names])
    fit.run.mkdir(parents=True)
    np.save(fit.run / "metrics.npy", rows)
    assert fit.scores() == [2, 4]
    assert fit.frames() == [50, 100]
    write_scores(fit, [5.0])
    assert fit.scores() == [5]
