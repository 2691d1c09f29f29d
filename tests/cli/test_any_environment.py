"""Environments of every family: each trains, validates, resumes and reports."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT, TINY, run, saved
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

QUICK = [
    *TINY[:4],
    *("--trainer.log_every_n_steps=10", "--trainer.max_epochs=1", "--data.frames_per_epoch=160", "--data.num_envs=2"),
    *("--data.replay.min_size=60", "--data.replay.capacity=1000", "--data.evaluation.games=1"),
    *("--model.network.hidden_dim=8", "--data.rules.max_episode_frames=60"),
]
IMAGES = ["--config", str(ROOT / "configs/breakout.yaml"), *QUICK[2:], "--data.updates_per_step=0.25"]
PLANES = ["--model.network.encoder=minatar"]
GAMES = {
    "Acrobot-v1": "a vector of 6 numbers",
    "MountainCar-v0": "a vector of 2 numbers",
    "FrozenLake-v1": "a number that names one of 16 states",
    "FrozenLake8x8-v1": "a number that names one of 64 states",
    "Taxi-v4": "a number that names one of 500 states",
    "CliffWalking-v1": "a number that names one of 48 states",
    "Blackjack-v1": "a vector of 45 numbers",
    "MinAtar/Seaquest-v1": "10 planes of 10 x 10, channels last, values 0 to 1",
    "MinAtar/Freeway-v1": "7 planes of 10 x 10, channels last, values 0 to 1",
    "MiniGrid-DoorKey-5x5-v0": "20 planes of 7 x 7, channels last, values 0 to 1",
    "BabyAI-GoToRedBall-v0": "20 planes of 7 x 7, channels last, values 0 to 1",
    "BreakoutNoFrameskip-v4": "an image of the screen of 210 x 160, made grey, resized to 84 x 84",
}


QUICK_GAMES = ("MiniGrid-DoorKey-5x5-v0",)


@pytest.mark.parametrize("env", slow_but(GAMES, *QUICK_GAMES))
def test_it_trains_resumes_validates_and_reports(
    env: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planes, image = env.startswith(("MinAtar", "MiniGrid", "BabyAI")), "Breakout" in env
    for package, prefix in (("minatar", "MinAtar"), ("minigrid", "MiniGrid"), ("minigrid", "BabyAI")):
        if env.startswith(prefix) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    words = [*IMAGES, "--data.rules.frame_skip=2"] if image else [*QUICK, *(PLANES if planes else [])]
    if env.startswith(("MiniGrid", "BabyAI")):
        words.append("--data.frame_stack=4")
    run(monkeypatch, "fit", *words, f"--data.env={env}", "--name=any")
    printed = capsys.readouterr().out
    assert f"reads  {GAMES[env]}\n" in printed
    assert "raw scores of whole greedy games" in printed
    assert "warning" not in printed
    if image:
        assert f"rules  {env} is breakout with frame_skip 2, sticky_actions 0\n" in printed
    last = Path("runs/any/version_0/checkpoints/last.ckpt")
    steps = saved(last)["global_step"]
    assert steps > 0
    run(monkeypatch, "fit", "--ckpt_path=last", "--name=any", "--trainer.max_epochs=2")
    assert saved(last)["global_step"] == 2 * steps
    assert "raw scores of whole greedy games" in capsys.readouterr().out
    run(monkeypatch, "validate", "--ckpt_path=last", "--name=any")
    assert "raw scores of whole greedy games" in capsys.readouterr().out
    assert Path("runs/any/version_0/learning_curve.png").is_file()


def test_the_bundled_configuration_of_minigrid_stacks_two_views(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minigrid", exc_type=ImportError)
    cli = run(monkeypatch, "fit", "--config=minigrid", "--trainer.fast_dev_run=true", *QUICK[2:4])
    assert cli.datamodule.observation_shape == (40, 7, 7)
