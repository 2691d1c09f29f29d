"""A file system of 64 MiB that fills up in every phase of a run: nothing that was saved is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import main
from bayes_rl.data.replay_files import ReplayFiles
from bayes_rl.training import preflight
from bayes_rl.training.checkpoint_io import load_verified
from tests.helpers.command_line import TINY, run

LAST = Path("runs/cartpole/version_0/checkpoints/last.ckpt")
FILLER = Path("filler")


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Mount a file system of 64 MiB and work in it."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("this process may not mount a file system")
    monkeypatch.chdir(folder)
    yield folder
    os.chdir(tmp_path)
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(leave: int = 0) -> None:
    """Fill the file system of the current folder but for `leave` bytes."""
    with open(FILLER, "ab", buffering=0) as file:
        free = shutil.disk_usage(".").free - leave
        try:
            while free > 0:
                free -= file.write(bytes(min(free, 1 << 20)))
        except OSError:
            pass


@pytest.mark.usefixtures("small_disk")
def test_a_replay_that_finds_no_room_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up between the check before the run and the first step."""
    monkeypatch.setattr(preflight, "check_disk", lambda *_: fill(1 << 20))
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *TINY, "--data.replay.capacity=1_000_000"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "--data.replay.capacity: 1000000 finds no room" in line


@pytest.mark.usefixtures("small_disk")
def test_a_replay_is_written_on_a_full_disk_without_sigbus() -> None:
    """In a process of its own, which a write to a hole would kill."""
    files = ReplayFiles(Path("replay"), 2, 500_000, (8,), np.dtype(np.uint8))
    files.begin_history()
    fill()
    child = os.fork()
    if not child:
        for array in (files.screens, files.rewards, files.actions):
            array[:] = 7
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fill_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = VariationalActorCritic.on_train_epoch_start

    def filling(agent: VariationalActorCritic) -> None:
        begin(agent)
        if agent.current_epoch == 1:
            fill()

    monkeypatch.setattr(VariationalActorCritic, "on_train_epoch_start", filling)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_stops_the_run_and_keeps_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_in_the_second_epoch(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *TINY])
    with pytest.raises(SystemExit) as stop:
        main()
    assert "no room to save" in str(stop.value.code)  # a text: printed by Python, with exit code 1
    assert "the previous one is intact" in str(stop.value.code)
    assert load_verified(LAST)[0]["epoch"] == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("small_disk")
def test_a_run_that_shall_go_on_does_so_without_curves_checkpoints_and_video(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fill_in_the_second_epoch(patch)
        run(patch, "fit", *TINY, "--on_full_disk=continue", "--trainer.log_every_n_steps=1")
    printed = capfd.readouterr()
    assert "median" in printed.out
    assert "no video: " in printed.out
    assert "no room to save" in printed.err
    assert "writing the learning curve failed" in printed.err
    assert printed.err.count("no room on the disk for TensorBoard's curves") == 1
    assert "Traceback" not in printed.err
    before = load_verified(LAST)[0]["global_step"]
    FILLER.unlink()
    run(monkeypatch, "fit", "--ckpt_path=last")
    assert load_verified(LAST)[0]["global_step"] == 2 * before
