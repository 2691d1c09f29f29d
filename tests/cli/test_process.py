"""Settings of the process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

from bayes_rl.cli.process import command_of, quiet_loading, share_cores, shortest, silence_warnings
from bayes_rl.utils.side_thread import SIDE_THREAD


class _Record(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def record() -> Iterator[_Record]:
    """Record of what Lightning says of checkpoints."""
    handler, log = _Record(), logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.WARNING)  # other tests silence all of Lightning
    yield handler
    log.setLevel(level)
    log.removeHandler(handler)


def test_a_save_says_nothing_about_loading(record: _Record) -> None:
    """Lightning 2.6.6 writes the first line at each save."""
    silence_warnings()
    log = logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    log.warning("`weights_only` was not set, defaulting to `False`.")
    log.warning("Restored all states")
    assert record.lines == ["Restored all states"]


def test_lines_on_loading_are_hidden_in_the_block_alone() -> None:
    handler, log = _Record(), logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    silence_warnings()
    try:
        log.info("`Trainer.fit` stopped: `max_epochs=3` reached.")
        with quiet_loading():
            log.info("Restoring states from the checkpoint path at x.ckpt")
            log.info("Loaded model weights from the checkpoint at x.ckpt")
            log.info("something else")
        log.info("Restoring states from the checkpoint path at y.ckpt")
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
    assert handler.lines == ["something else", "Restoring states from the checkpoint path at y.ckpt"]


def test_a_path_is_written_in_the_shorter_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert shortest(folder / "runs/x") == "runs/x"
    assert shortest("runs/x") == "runs/x"
    assert shortest("/x") == "/x"  # not ../../../../x


def test_a_program_of_an_active_environment_has_its_name_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    assert command_of("board", "board.main") == "venv/bin/python -m board.main"
    (programs / "board").touch(mode=0o755)
    assert command_of("board", "board.main") == "venv/bin/board"
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.defpath}")
    assert command_of("board", "board.main") == "board"
    other = tmp_path / "bin"
    other.mkdir()
    (other / "board").touch(mode=0o755)  # of another environment
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}{programs}")
    assert command_of("board", "board.main") == "venv/bin/board"


@pytest.mark.parametrize(("ranks", "threads", "has_second"), [(1, 4, True), (4, 1, True), (16, 1, False)])
def test_ranks_share_the_cores_of_their_machine(
    ranks: int, threads: int, has_second: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that the value of now comes back
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(16)}, raising=False)
    monkeypatch.setattr(SIDE_THREAD, "_cores", 16)
    before = torch.get_num_threads()
    try:
        share_cores(ranks)
        if ranks > 1:
            _set_num_threads_if_needed(ranks)  # by Lightning's launcher of several processes
        assert (torch.get_num_threads(), SIDE_THREAD.has_core()) == (threads, has_second)
    finally:
        torch.set_num_threads(before)
