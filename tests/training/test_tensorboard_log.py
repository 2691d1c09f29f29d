"""TensorBoard's logger on a full disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from bayes_rl.training.tensorboard_log import TensorBoardLog
from benchmarks.reliability.crash import curves


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TensorBoardLog]:
    """Return a logger that has written one point."""
    logger = TensorBoardLog(str(tmp_path), name="", version="version_0")
    logger.log_metrics({"score": 1.0}, 1)
    logger.save()
    yield logger
    logger.finalize("failed")


def failing(number: int) -> Any:
    """Return a method that raises the error `number` of the operating system."""

    def raises(*_: Any) -> None:
        raise OSError(number, "nothing is written")

    return raises


def test_points_are_left_out_while_the_disk_is_full_and_written_again_afterwards(
    log: TensorBoardLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", failing(errno.ENOSPC))
        for step in range(2, 40):  # more than the writer's queue holds
            log.log_metrics({"score": float(step)}, step)
            log.save()
    for step in (40, 41):
        log.log_metrics({"score": float(step)}, step)
    log.save()
    assert {step: value for (_, step), value in curves(tmp_path / "version_0").items()} == {1: {1}, 40: {40}, 41: {41}}
    printed = capfd.readouterr().err
    assert printed.count("no room on the disk for TensorBoard's curves") == 1
    assert "Traceback" not in printed


def test_a_full_disk_at_the_last_flush_ends_no_run(
    log: TensorBoardLog, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "flush", failing(errno.EDQUOT))
        log.log_metrics({"score": 2.0}, 2)
        log.finalize("success")
    assert "no room" in capfd.readouterr().err


def test_another_error_is_raised(log: TensorBoardLog) -> None:
    with pytest.raises(OSError, match="broken"), log._while_there_is_room():
        raise OSError(errno.EIO, "broken")
