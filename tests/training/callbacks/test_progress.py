"""Progress bar in environment frames, and lines of the validations."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bayes_rl.training.callbacks import progress, score_lines
from bayes_rl.training.callbacks.progress import FrameProgress, fitting
from bayes_rl.training.callbacks.score_lines import ScoreLines
from bayes_rl.training.run_callbacks import make_callbacks


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


DATA = SimpleNamespace(
    game="pong",
    num_tasks=1,
    frames_per_epoch=1000,
    curriculum=SimpleNamespace(visit=lambda epoch: 0, names=["pong", "tennis"]),
    replay_settings=SimpleNamespace(min_size=0),
    settings=SimpleNamespace(frame_skip=4),
    stream=SimpleNamespace(frames=400, epsilon=0.5, recent_returns=[1.0, 2.0]),
)
SCORES = {"return_mean": 3.0, "games": 2.0, "return_median": 3.0, "return_iqm": 3.0}
LINE = "       400 frames: score 3.0 over 2 games (median 3.0, IQM 3.0)\n"


def fitting_trainer(scores: dict[str, float] = SCORES, **state: Any) -> Any:
    metrics = {f"val/{name}": value for name, value in scores.items()}
    values = {"state": SimpleNamespace(fn="fit"), "sanity_checking": False, **state}
    return SimpleNamespace(max_epochs=2, callback_metrics=metrics, **values)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_file_gets_the_scores_and_no_bar(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, agent = fitting_trainer(), SimpleNamespace()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "data_of", lambda _: DATA)
    monkeypatch.setattr(score_lines, "data_of", lambda _: DATA)
    output = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    bar = FrameProgress(refresh_seconds=0)
    bar.on_train_start(trainer, agent)  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, agent)  # type: ignore[arg-type]
    ScoreLines().on_validation_end(trainer, agent)  # type: ignore[arg-type]
    bar.on_train_end(trainer, agent)  # type: ignore[arg-type]
    printed = output.getvalue()
    assert LINE in printed
    assert ("epsilon=0.50" in printed) == terminal
    assert terminal or printed == LINE


def test_a_fit_without_a_bar_prints_its_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [c for c in make_callbacks(Path("run"), None, progress_bar=False) if isinstance(c, ScoreLines)]
    monkeypatch.setattr(score_lines, "data_of", lambda _: DATA)
    agent: Any = SimpleNamespace()
    for trainer in (fitting_trainer(), fitting_trainer(sanity_checking=True)):
        lines[0].on_validation_end(trainer, agent)
    lines[0].on_validation_end(fitting_trainer(state=SimpleNamespace(fn="validate")), agent)  # it prints a table
    assert capsys.readouterr().out == LINE


def test_a_line_has_the_scores_of_the_games_that_were_played(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_lines, "data_of", lambda _: SimpleNamespace(**{**vars(DATA), "num_tasks": 2}))
    agent: Any = SimpleNamespace()
    ScoreLines().on_validation_end(fitting_trainer({"pong/return_mean": -3.25}), agent)
    assert capsys.readouterr().out == "       400 frames: pong -3.2\n"


def test_a_narrow_terminal_shows_whole_numbers_alone() -> None:
    status = {"return": "35.8", "score": "217.6", "epsilon": "0.57"}
    # Beside the 54 characters of the bar, ", return=35.8" and ", score=217.6" have 13 each, ", epsilon=0.57" has 14.
    for columns, shown in ((98, 3), (97, 2), (84, 2), (83, 1), (71, 1), (70, 0), (20, 0)):
        assert list(fitting(status, "pong", columns)) == list(status)[:shown]
