"""Sweeps on Ray: searches, interruptions of the command, of a fit, and of a machine."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_rl.cli.sweep import run_verb
from bayes_rl.sweep.fit import Fit
from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import Space, Values
from bayes_rl.sweep.trial import FAILED, FINISHED, PRUNED
from tests.helpers.command_line import ROOT, weights
from tests.helpers.sweeps import GRID, RATE, TINY_FIT, make_sweep, score_of

pytest.importorskip("ray")
pytest.importorskip("optuna")
pytestmark = pytest.mark.slow

PATIENCE = 1200.0
"""Seconds until a sweep must have ended, on a busy machine."""

FIT = {**TINY_FIT, "data.frames_per_epoch": 2000, "data.replay.capacity": 8000}
"""Options of a fit that is long enough to be killed in its middle."""


@pytest.fixture(autouse=True)
def _helpers_are_found_by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # of the machines of a simulated cluster, on a busy machine


def start(sweep: Sweep, command: str, address: str = "") -> subprocess.Popen[bytes]:
    """Start the command of a sweep in a process of its own."""
    path = sweep.folder / "sweep.pickle"
    path.write_bytes(pickle.dumps(sweep))
    words = [str(path), command, *([address] if address else [])]
    return subprocess.Popen([sys.executable, "-m", "tests.helpers.sweep_process", *words], cwd=sweep.folder)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a command, which must be a success."""
    assert process.wait(PATIENCE) == 0


def pretend(sweep: Sweep) -> None:
    """Run a sweep of fits that are not trained."""
    finish(start(sweep, "tests.helpers.sweeps:pretended_fit"))


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until a condition holds, while the command runs."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def calls(sweep: Sweep) -> dict[str, int]:
    """Return how often each fit was begun."""
    files = sweep.directory.glob("trials/*/*/calls")
    return {f"{file.parent.parent.name}/{file.parent.name}": len(file.read_text().split()) for file in files}


def states(sweep: Sweep) -> list[str]:
    return [trial.state for trial in sweep.known_trials()]


def test_a_search_ends_reports_and_runs_nothing_again(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    pretend(sweep)
    assert states(sweep) == [FINISHED] * 4
    assert {*calls(sweep).values()} == {1}
    assert len(calls(sweep)) == 8
    best = max(sweep.known_trials(), key=lambda trial: trial.score(2) or 0)
    rate = best.options[RATE]
    assert best.score(2) == pytest.approx(
        0.5 + score_of({"model": {"optimizer": {"critic_lr": rate}}, "seed_everything": 0})
    )
    report = (sweep.directory / "report.md").read_text()
    assert report.index(best.directory.name) == min(report.index(t.directory.name) for t in sweep.known_trials())
    assert not (sweep.directory / "ray").exists()
    began = calls(sweep)
    pretend(sweep)
    assert calls(sweep) == began
    pretend(dataclasses.replace(sweep, draws=5))
    assert len(states(sweep)) == 5
    assert {name: count for name, count in calls(sweep).items() if name in began} == began


def test_a_killed_command_is_continued_and_runs_no_finished_fit_again(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", GRID)
    process = start(sweep, "tests.helpers.sweeps:pretended_fit")
    wait_for(lambda: [*sweep.directory.glob("trials/*/*/finished.json")], process)
    process.kill()
    process.wait()
    ended = [path.parent for path in sweep.directory.glob("trials/*/*/finished.json")]
    assert 0 < len(ended) < 6
    pretend(sweep)
    assert states(sweep) == [FINISHED] * 3
    again = calls(sweep)
    assert [again[f"{fit.parent.name}/{fit.name}"] for fit in ended] == [1] * len(ended)


def test_pruning_stops_trials_with_low_scores_and_keeps_the_best(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", draws=12, pruning=True)
    pretend(sweep)
    assert {*states(sweep)} == {FINISHED, PRUNED}
    pruned = [trial for trial in sweep.known_trials() if trial.state == PRUNED]
    assert not any(all(fit.finished for fit in trial.fits) for trial in pruned)
    distance = {trial.directory: abs(np.log10(trial.options[RATE]) + 3) for trial in sweep.known_trials()}
    best = min(sweep.known_trials(), key=lambda trial: distance[trial.directory])
    assert best.state == FINISHED


def test_a_failing_fit_ends_its_trial_and_is_tried_again(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep", GRID)
    finish(start(sweep, "tests.helpers.sweeps:failing_fit"))
    assert [(trial.state, trial.problem) for trial in sweep.known_trials()] == [(FAILED, "the loss is not finite")] * 3
    pretend(sweep)
    assert states(sweep) == [FINISHED] * 3


def real_sweep(directory: Path, rates: tuple[float, ...] = (1e-3, 3e-3), seeds: tuple[int, ...] = (3,)) -> Sweep:
    """Return a grid of short fits."""
    space = Space({RATE: Values("grid", rates)})
    return make_sweep(directory, space, seeds=seeds, options=FIT, validations=3)


def saves(fit: Fit) -> bool:
    """Return whether a fit has saved a checkpoint and has not ended."""
    return (fit.run / "checkpoints/last.ckpt").is_file() and not fit.finished


def fits(sweep: Sweep) -> list[Fit]:
    return [fit for trial in sweep.known_trials() for fit in trial.fits]


def processes(fit: Fit) -> list[int]:
    """Return the processes that worked on a fit, in their order."""
    return [int(number) for number in re.findall(r"^process (\d+) on ", (fit.directory / "fit.log").read_text(), re.M)]


def assert_undisturbed(sweep: Sweep, place: Path, disturbed: list[Fit]) -> None:
    """Assert that all fits of a sweep have ended, the disturbed ones with the bits of plain fits."""
    assert {*states(sweep)} == {FINISHED}
    assert all(fit.finished for fit in fits(sweep))
    options = {fit.directory: {**FIT, **t.options} for t in sweep.known_trials() for fit in t.fits}
    for fit in disturbed:
        calm = Fit(place / fit.directory.parent.name / fit.directory.name)
        calm.write_config({**options[fit.directory], "seed_everything": int(fit.directory.name.removeprefix("seed_"))})
        calm.complete(run_verb)
        rows, expected = (np.load(f.run / "metrics.npy", allow_pickle=False) for f in (fit, calm))
        assert len(rows) == 3
        assert rows.tobytes() == expected.tobytes()
        last, other = (weights(f.run / "checkpoints/last.ckpt") for f in (fit, calm))
        assert all(torch.equal(last[name], other[name]) for name in {*last, *other})
        assert fit.test_scores() == pytest.approx(calm.test_scores(), rel=0, abs=0, nan_ok=True)


def test_a_fit_whose_process_is_killed_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    sweep = real_sweep(tmp_path / "sweep")
    process = start(sweep, "bayes_rl.cli.sweep:run_verb")
    wait_for(lambda: [fit for fit in fits(sweep) if (fit.run / "checkpoints/last.ckpt").is_file()], process)
    killed = next(fit for fit in fits(sweep) if (fit.run / "checkpoints/last.ckpt").is_file())
    os.kill(processes(killed)[-1], signal.SIGKILL)
    assert not killed.finished
    finish(process)
    assert len(processes(killed)) == 2
    assert_undisturbed(sweep, tmp_path / "calm", fits(sweep))


def test_twelve_fits_survive_the_loss_of_a_machine_and_of_the_command(tmp_path: Path) -> None:
    """A grid on three machines: one of them is lost while it trains, then the command is killed and typed again."""
    from ray.cluster_utils import Cluster

    sweep = real_sweep(tmp_path / "sweep", rates=(1e-3, 2e-3, 3e-3, 4e-3), seeds=(3, 4, 5))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(3)]
        process = start(sweep, "bayes_rl.cli.sweep:run_verb", cluster.address)
        wait_for(lambda: sum(saves(fit) for fit in fits(sweep)) >= 3, process)
        cluster.remove_node(machines[0], allow_graceful=False)
        wait_for(lambda: sum(fit.finished for fit in fits(sweep)) >= 6, process)
        process.kill()
        process.wait()
        ended = {fit.directory: len(processes(fit)) for fit in fits(sweep) if fit.finished}
        assert 6 <= len(ended) < 12
        finish(start(sweep, "bayes_rl.cli.sweep:run_verb", cluster.address))
    finally:
        cluster.shutdown()
    assert {fit.directory: len(processes(fit)) for fit in fits(sweep) if fit.directory in ended} == ended
    moved = [fit for fit in fits(sweep) if len(processes(fit)) > 1]
    assert moved
    assert_undisturbed(sweep, tmp_path / "calm", moved)
