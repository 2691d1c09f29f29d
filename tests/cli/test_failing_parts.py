"""Parts that draw, encode or clean up: a failure costs one line, never the result."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.gymnasium_envs import GymnasiumEnvs
from bayes_rl.evaluation import video
from bayes_rl.evaluation.games import Games
from bayes_rl.reporting import report as reporting
from bayes_rl.training.callbacks import learning_curve, video_writer
from bayes_rl.training.callbacks.video_writer import record_game
from tests.helpers.command_line import TINY, run
from tests.helpers.run_directories import sequence

pytestmark = pytest.mark.usefixtures("shared_parser")

SHORT = [*TINY, "--trainer.max_epochs=1", "--data.frames_per_epoch=200"]


class Undrawable(CartPoleEnv):
    """CartPole that draws what `drawing` says, and cannot be closed."""

    drawing: Any = None

    def render(self) -> Any:
        if self.drawing is None:
            raise NotImplementedError
        return None if self.drawing == "nothing" else self.drawing

    def close(self) -> None:
        raise RuntimeError("the window is stuck")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Register the environment for one test."""
    gym.register("Undrawable-v0", Undrawable)
    yield
    del gym.registry["Undrawable-v0"]


def failing(error: Exception) -> Any:
    def raises(*_: Any, **__: Any) -> None:
        raise error

    return raises


def test_a_run_whose_every_ornament_fails_ends_with_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawing the environment and the learning curve, and closing the environments."""
    monkeypatch.setattr(learning_curve, "write_curve", failing(ValueError("no font")))
    monkeypatch.setattr(GymnasiumEnvs, "close", failing(RuntimeError("stuck")))
    run(monkeypatch, "fit", *SHORT, "--data.env=Undrawable-v0", "--name=undrawable")
    printed = capsys.readouterr()
    assert "median" in printed.out
    assert "video" in printed.out
    assert "no video: " in printed.out
    assert "NotImplementedError" in printed.out
    assert "bayes-rl: warning: writing the learning curve failed: ValueError: no font\n" in printed.err
    assert "closing the environments of Undrawable-v0 failed: RuntimeError: stuck\n" in printed.err
    assert "Traceback" not in printed.err
    assert Path("runs/undrawable/version_0/checkpoints/best.ckpt").is_file()
    run(monkeypatch, "predict", "--ckpt_path=best", "--name=undrawable")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seed ")]
    assert len(lines) == 3
    assert all("score" in line and "no video: " in line for line in lines)


@pytest.fixture
def trained() -> tuple[ReplayDataModule, VariationalActorCritic]:
    """Return data and an agent of the environment that cannot be drawn."""
    data = ReplayDataModule(env="Undrawable-v0", frame_stack=1, rules={"frame_skip": 1, "sticky_actions": 0.0})  # type: ignore[arg-type]
    agent = VariationalActorCritic(**data.agent_arguments(), network={"encoder": "mlp", "hidden_dim": 8})  # type: ignore[arg-type]
    return data, agent


@pytest.mark.parametrize("drawing", [None, "nothing", [1, 2], "text"], ids=str)
def test_no_picture_costs_only_the_video(drawing: Any, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Undrawable, "drawing", drawing)
    assert record_game(*trained, 0, Path("run")).startswith("no video: ")
    assert not list(Path().rglob("*.gif*"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "protected"), ValueError("codec"), MemoryError()]
)
def test_a_failing_encoder_costs_only_the_video(
    error: Exception, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_writer, "write_video", failing(error))
    printed = record_game(*trained, 0, Path("run"))
    assert printed.startswith(f"no video: {type(error).__name__}")
    assert len(printed.splitlines()) == 1


def test_an_encoder_that_fails_half_way_leaves_no_file(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    half = partial(failing, OSError(errno.ENOSPC, "full"))
    monkeypatch.setattr(video, "frames_with_panel", lambda *_: iter([video.np.zeros((8, 8, 3), video.np.uint8)] * 2))
    monkeypatch.setattr(video.Image.Image, "save", half())
    assert record_game(*trained, 0, Path("run")).startswith("no video: ")
    assert not [path for path in Path("run").rglob("*") if path.is_file()]


def test_an_environment_that_fails_in_the_game_of_the_video_costs_only_the_video(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Undrawable, "step", failing(ZeroDivisionError("tower")))
    assert "ZeroDivisionError: tower" in record_game(*trained, 0, Path("run"))


def test_environments_that_cannot_be_closed_cost_one_line(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, agent = trained
    capsys.readouterr()
    monkeypatch.setattr(GymnasiumEnvs, "close", failing(RuntimeError("stuck")))
    (game,) = data.games("validate", 1).play(partial(agent.act, task=0))
    assert game.score > 0
    assert "closing the environments of Undrawable-v0 failed: RuntimeError: stuck" in capsys.readouterr().err


def test_a_training_environment_that_fails_in_its_unused_last_step_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = Games.play

    def without_teardown(games: Games, *arguments: Any) -> Any:
        monkeypatch.setattr("bayes_rl.data.stream.ReplayStream.finish_step", failing(RuntimeError("late")))
        return play(games, *arguments)

    monkeypatch.setattr(Games, "play", without_teardown)  # from the validation on
    run(monkeypatch, "fit", *SHORT)
    printed = capsys.readouterr()
    assert "the last step of the training environments failed: RuntimeError: late" in printed.err
    assert "median" in printed.out


def test_a_report_whose_figure_fails_has_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sequence(tmp_path / "run")
    monkeypatch.setattr(reporting, "draw_curves", failing(RuntimeError("no font")))
    written = reporting.write_report([path], tmp_path / "report")
    assert [file.name for file in written.files] == ["report.md", "matrix.png"]
    assert all(file.is_file() for file in written.files)
    assert "curves.png failed: RuntimeError: no font" in capsys.readouterr().err
