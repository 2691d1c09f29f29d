"""SIGKILL to the process of either rank at seeded moments: nothing is lost, and no process stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayes_rl.training.checkpoint_io import load_verified, read_manifest, read_rank_file
from tests.helpers.command_line import ROOT
from tests.helpers.equal_runs import checkpoint, differences, of_ranks
from tests.helpers.rank_fits import SHORT, TWO

MOMENTS, LIMIT = 30, 60.0
PATIENCE = 400.0  # seconds that a run may take on a loaded machine
WORDS = [*SHORT, "--trainer.max_epochs=4", "--data.frames_per_epoch=400"]
RUN = Path("runs/game/version_0")


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start `bayes-rl WORDS`, whose process becomes rank 0 and starts rank 1."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(folder / "output", "ab") as output:
        command = [sys.executable, str(ROOT / "cli.py"), *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(folder: Path, pattern: str, number: int = 1) -> float:
    """Wait until `number` different files of the pattern have appeared, and return the moment."""
    seen: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < number:
        assert time.monotonic() < deadline, (folder / "output").read_text()
        seen |= {path.name for path in folder.glob(pattern)}
        time.sleep(0.0005)
    return time.monotonic()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run without a kill, and the seconds of its training."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(folder, WORDS)
    began = wait_for(folder, "runs/game/version_0/replay/rank1/replay.json")
    wait_for(folder, "runs/game/version_0/uncertainty_test.png")
    seconds = time.monotonic() - began
    assert process.wait(PATIENCE) == 0, (folder / "output").read_text()
    return folder / RUN, seconds


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_killed_rank_loses_nothing_and_leaves_no_process(
    moment: int, straight: tuple[Path, float], tmp_path: Path
) -> None:
    """A third of the kills comes when a rank has written its state, and the manifest does not seal it yet."""
    whole, seconds = straight
    rng, folder = random.Random(moment), tmp_path / "killed"
    process = start(folder, WORDS)
    if moment % 3:
        wait_for(folder, "runs/game/version_0/replay/rank1/replay.json")
        time.sleep(rng.uniform(0, seconds))
    else:
        wait_for(folder, "runs/game/version_0/checkpoints/last.rank?.*.state", rng.randrange(1, 9))
    group = [process.pid, *children(process.pid)] if process.poll() is None else []
    if len(group) == 2:
        os.kill(rng.choice(group), signal.SIGKILL)
        deadline = time.monotonic() + LIMIT
        while any(map(is_alive, group)):
            process.poll()
            assert time.monotonic() < deadline, "a process is left behind"
            time.sleep(0.05)
    process.wait(LIMIT)

    last = folder / RUN / "checkpoints/last.ckpt"
    if last.is_file():
        held = load_verified(last)[0]["global_step"]
        assert held % 20 == 0
        assert len(read_manifest(last)[0]["ranks"]) == 2
        assert {read_rank_file(last, rank)["data"]["stream"]["updates"] for rank in range(2)} == {held}
    # Without a checkpoint, the run begins again elsewhere.
    again = folder if last.is_file() else tmp_path / "again"
    resumed = ["fit", "--ckpt_path=last", *TWO] if last.is_file() else WORDS
    process = start(again, resumed)
    assert process.wait(PATIENCE) == 0, (again / "output").read_text()
    assert differences(checkpoint(whole), checkpoint(again / RUN)) == []
    assert differences(of_ranks(whole), of_ranks(again / RUN)) == []
