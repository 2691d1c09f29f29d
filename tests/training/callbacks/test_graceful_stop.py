"""Runs that end in the middle of a validation go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.evaluation.games import Games
from bayes_rl.training.callbacks import graceful_stop
from bayes_rl.utils.stop_signals import STOP, Stopped
from benchmarks.reliability.crash import compare
from tests.helpers.command_line import TINY, TWO_TASKS, run, saved
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

LAST = Path("runs/cartpole/version_0/checkpoints/last.ckpt")
SMALL = [*TINY, "--data.frames_per_epoch=400", "--data.evaluation.games=2"]
HALVES = [*SMALL, "--trainer.val_check_interval=0.5"]
CASES = {
    "first validation": (SMALL, 0, 100),
    "last validation": (SMALL, 1, 200),
    "within an epoch": (HALVES, 0, 50),
    "at the end of an epoch with two validations": (HALVES, 1, 100),
    # Sets of games: one for each task before training, and with every validation.
    "second game at the end of a task": ([*TWO_TASKS, "--name=cartpole"], 5, 200),
}
"""Options, number of the set of games that is stopped, and updates by then."""


@contextlib.contextmanager
def stopped_in_game(number: int) -> Any:
    """Raise `Stopped` in the middle of a set of games, the `number`th that is played, from 0."""
    play, sets = Games.play, iter(range(100))

    def interrupted(games: Games, *arguments: Any) -> Any:
        played = play(games, *arguments)  # estimates of values have changed the metrics
        if next(sets) == number:
            raise Stopped(143)
        return played

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Games, "play", interrupted)
        yield


def stop(monkeypatch: pytest.MonkeyPatch, number: int, *words: str) -> None:
    with stopped_in_game(number), pytest.raises(Stopped):
        run(monkeypatch, *words)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function from options to the folder of their run without a stop, which is made once."""

    @functools.cache
    def folder_of(*options: str) -> Path:
        folder = tmp_path_factory.mktemp("straight")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run(patch, "fit", *options)
        return folder

    return folder_of


@pytest.mark.parametrize("case", slow_but(CASES))
def test_a_run_stopped_in_a_validation_ends_like_a_run_without_a_stop(
    case: str,
    straight: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, number, updates = CASES[case]
    stop(monkeypatch, number, "fit", *options)
    assert "go on with --ckpt_path last" in capsys.readouterr().out
    assert saved(LAST)["global_step"] == updates
    stop(monkeypatch, 0, "fit", "--ckpt_path=last")  # in the validation that the resumed run begins with
    assert saved(LAST)["global_step"] == updates
    run(monkeypatch, "fit", "--ckpt_path=last")
    without_stop = straight(*options)
    assert compare(tmp_path, without_stop) == []
    tables = [np.load(folder / "runs/cartpole/version_0/metrics.npy") for folder in (tmp_path, without_stop)]
    assert tables[0].tobytes() == tables[1].tobytes()  # a number may be none


def test_a_stop_at_a_point_of_a_curve_keeps_the_point(
    straight: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning logs the values of an update after the hook that saves and leaves."""

    def signalled(module: VariationalActorCritic, *_: Any) -> None:
        if module.global_step == 19:  # within update 20, a multiple of `log_every_n_steps`
            STOP.received = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(VariationalActorCritic, "on_before_zero_grad", signalled)
        patch.setattr(STOP, "received", None)  # restored afterwards
        with pytest.raises(Stopped) as stopped:
            run(monkeypatch, "fit", *SMALL)
    assert stopped.value.code == 143
    assert saved(LAST)["global_step"] == 20
    run(monkeypatch, "fit", "--ckpt_path=last")
    assert compare(tmp_path, straight(*SMALL)) == []


def test_ranks_with_long_updates_exchange_their_signals_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of 0.01 s, then of 0.9 s on another rank, then of 5 s, then short ones again."""
    now = 0.0
    slower = 1.0
    monkeypatch.setattr(graceful_stop, "num_ranks", lambda: 2)
    monkeypatch.setattr(graceful_stop.time, "monotonic", lambda: now)
    monkeypatch.setattr(graceful_stop, "max_over_ranks", lambda signal, passed: (signal, round(slower * passed)))
    agreement = graceful_stop.Agreement()
    agreement.begin(0)
    due = []
    for update in range(1, 40):
        now += 5.0 if 20 < update <= 24 else 0.01
        slower = 90.0 if 8 < update <= 20 else 1.0
        if agreement.is_due(update):
            due.append(update)
            agreement.exchange_signals(update)
    assert due == [8, 16, 18, 20, 22, 23, 24, 25, 33]
