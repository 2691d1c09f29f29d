"""Progress bar in environment frames."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bayes_rl.training.callbacks import progress
from bayes_rl.training.callbacks.progress import FrameProgress, fitting


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_file_gets_the_scores_and_no_bar(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SimpleNamespace(
        game="pong",
        num_tasks=1,
        frames_per_epoch=1000,
        curriculum=SimpleNamespace(visit=lambda epoch: 0),
        replay_settings=SimpleNamespace(min_size=0),
        settings=SimpleNamespace(frame_skip=4),
        stream=SimpleNamespace(frames=400, epsilon=0.5, recent_returns=[1.0, 2.0]),
    )
    scores = {"return_mean": 3.0, "games": 2.0, "return_median": 3.0, "return_iqm": 3.0}
    metrics = {f"val/{name}": value for name, value in scores.items()}
    trainer: Any = SimpleNamespace(max_epochs=2, callback_metrics=metrics, state=SimpleNamespace(fn="fit"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "data_of", lambda _: data)
    output = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    bar, agent = FrameProgress(refresh_seconds=0), SimpleNamespace()
    bar.on_train_start(trainer, agent)  # type: ignore[arg-type]
    bar.on_train_batch_end(trainer, agent)  # type: ignore[arg-type]
    bar.on_validation_end(trainer, agent)  # type: ignore[arg-type]
    bar.on_train_end(trainer, agent)  # type: ignore[arg-type]
    printed = output.getvalue()
    line = "       400 frames: score 3.0 over 2 games (median 3.0, IQM 3.0)\n"
    assert line in printed
    assert ("epsilon=0.50" in printed) == terminal
    assert terminal or printed == line


def test_a_narrow_terminal_shows_whole_numbers_alone() -> None:
    status = {"return": "35.8", "score": "217.6", "epsilon": "0.57"}
    # Beside the 54 characters of the bar, ", return=35.8" and ", score=217.6" have 13 each, ", epsilon=0.57" has 14.
    for columns, shown in ((98, 3), (97, 2), (84, 2), (83, 1), (71, 1), (70, 0), (20, 0)):
        assert list(fitting(status, "pong", columns)) == list(status)[:shown]
