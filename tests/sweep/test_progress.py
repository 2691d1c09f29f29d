"""Table of the progress."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from bayes_rl.sweep import progress
from bayes_rl.sweep.progress import Progress, progress_table
from bayes_rl.sweep.trial import FINISHED, RUNNING
from tests.helpers.sweeps import RATE, STEPS, make_sweep, write_trial


def test_running_trials_come_first_then_the_best_others(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    for rate, height, state in ((1e-3, 10, FINISHED), (2e-3, 30, FINISHED), (3e-3, 5, RUNNING)):
        curves = [[1.0, height]] * 2 if state == FINISHED else [[height, height], [4.0]]
        write_trial(sweep, {RATE: rate, STEPS: 1}, curves, state)
    console = Console(file=io.StringIO(), width=100)
    console.print(progress_table(sweep, sweep.known_trials()))
    lines = [line for line in console.file.getvalue().splitlines() if "critic_lr" in line]  # type: ignore[attr-defined]
    assert [("0.003" in line, "0.002" in line, "0.001" in line) for line in lines] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert "1 of 2" in lines[0]
    assert "4.5" in lines[0], "the mean of both seeds at their first validation"
    assert "2 of 2" in lines[1]


def test_a_file_gets_a_line_for_each_trial_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
    sweep, file = make_sweep(tmp_path / "sweep"), io.StringIO()
    with Progress(sweep, Console(file=file)) as shown:
        shown.refresh()
        write_trial(sweep, {RATE: 1e-3, STEPS: 1}, [[1.0, 2.0]] * 2, FINISHED)
        shown.refresh()
        shown.refresh()
    assert file.getvalue() == "1 of 4 trials have ended\n"
