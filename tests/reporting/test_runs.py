"""Reading of run directories."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bayes_rl.reporting.runs import read_run
from tests.helpers.run_directories import (
    EPOCH,
    HALF,
    ROWS,
    Rows,
    edit,
    sequence,
    single,
)


def test_a_list_of_one_task_is_a_single_task_run(tmp_path: Path) -> None:
    path = single(tmp_path / "a", "breakout", (1, 2))
    edit(path, "data.tasks", ["pong"])
    run = read_run(path)
    assert (run.tasks, run.cycles, run.scores[:, 0].tolist()) == (["pong"], 0, [1, 2])


def test_reading_leaves_a_run_as_it_is(tmp_path: Path) -> None:
    path = sequence(tmp_path / "a")
    before = (path / "metrics.npy").read_bytes()
    (path / "metrics.npy").chmod(0o444)
    run = read_run(path)
    run.scores[:] = -1
    assert (path / "metrics.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "finished"),
    [(ROWS, 2), (HALF, 1), ({-1: [(0, 0)], 0: ROWS[0]}, 1), ({-1: [(0, 0)], 0: ROWS[0][:1]}, 0), ({-1: [(0, 0)]}, 0)],
)
def test_a_visit_is_finished_when_it_has_its_frames(tmp_path: Path, rows: Rows, finished: int) -> None:
    run = read_run(sequence(tmp_path / "a", rows))
    matrix = run.matrix()
    assert matrix.isnan().any(1).tolist() == [False, *(visit >= finished for visit in range(2))]
    assert run.switches() == [0, 100, 200]  # as it was, or is planned


def test_frames_before_a_visit_do_not_finish_it(tmp_path: Path) -> None:
    path = sequence(tmp_path / "a", HALF)
    validations = np.load(path / "metrics.npy")
    validations["frames"][1:] += 40  # random play that fills the replay first
    np.save(path / "metrics.npy", validations)
    assert read_run(path).matrix().isnan().any(1).tolist() == [False, False, True]


def test_one_validation_within_the_only_epoch_of_a_visit_does_not_finish_the_visit(tmp_path: Path) -> None:
    path = sequence(tmp_path / "a", {-1: [(0, 0)], 0: [(5, 2)]}, frames_per_task=EPOCH)
    validations = np.load(path / "metrics.npy")
    validations["frames"] /= 4
    np.save(path / "metrics.npy", validations)
    assert read_run(path).ends()[1] is None


@pytest.mark.parametrize("count", range(1, 9))
def test_validations_within_an_epoch_do_not_finish_a_visit_early(tmp_path: Path, count: int) -> None:
    """A validation after each quarter of an epoch: eight in the two epochs of a visit."""
    path = sequence(tmp_path / "a", {-1: [(0, 0)], 0: [(5, 2)] * count})
    validations = np.load(path / "metrics.npy")
    validations["frames"] /= 4
    np.save(path / "metrics.npy", validations)
    assert (read_run(path).ends()[1] is not None) == (count == 8)


def test_sparse_validations_finish_a_visit(tmp_path: Path) -> None:
    path = sequence(tmp_path / "a", {-1: [(0, 0)], 0: [(8, 1)], 1: [(2, 6)]}, frames_per_task=EPOCH * 2)
    validations = np.load(path / "metrics.npy")
    validations["frames"] *= 2
    np.save(path / "metrics.npy", validations)
    config = (path / "config.yaml").read_text()
    assert read_run(path).matrix()[2].isnan().all()
    (path / "config.yaml").write_text(config.replace("check_val_every_n_epoch: 1", "check_val_every_n_epoch: 2"))
    assert read_run(path).matrix().tolist() == [[0, 0], [8, 1], [2, 6]]
