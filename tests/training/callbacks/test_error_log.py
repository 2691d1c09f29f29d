"""The error log: the line of a run whose environment fails, the stack trace, and the checkpoint to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bayes_rl.evaluation.games import Games
from tests.helpers.command_line import SHORT, failure_of, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")


class Fragile(gym.Env[Any, Any]):
    """Counts its steps; what happens at which is the class's."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    made: list[Fragile] = []  # noqa: RUF012
    happens: Callable[[Fragile], tuple[Any, float]] | None = None
    resets: Callable[[Fragile], None] | None = None
    length = 10

    def __init__(self, render_mode: str | None = None) -> None:
        Fragile.made.append(self)
        self.render_mode = render_mode
        self.steps = self.episodes = 0
        self.seed: int | None = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.steps, self.episodes = seed, 0, self.episodes + 1
        if Fragile.resets is not None:
            Fragile.resets(self)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward = np.full(4, self.steps, np.float32), 1.0
        if Fragile.happens is not None:
            observation, reward = Fragile.happens(self)
        return observation, reward, self.steps >= self.length, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


gym.register("BayesRLTests/Fragile-v0", Fragile)


@pytest.fixture(autouse=True)
def _sound() -> Iterator[None]:
    yield
    Fragile.made, Fragile.happens, Fragile.resets = [], None, None


def at(episode: int, step: int, then: Callable[[], tuple[Any, float]]) -> Callable[[Fragile], tuple[Any, float]]:
    """In the sixth environment that is made (number 4 of those trained in, after two that are probes), at that step."""

    def happens(env: Fragile) -> tuple[Any, float]:
        due = env is Fragile.made[-4] and (env.episodes, env.steps) == (episode, step)
        return then() if due else (np.zeros(4, np.float32), 1.0)

    return happens


def crash() -> tuple[Any, float]:
    raise OverflowError("the tower\nfell over")


def error_log() -> str:
    return Path("runs/cartpole/version_0/error.log").read_text()


FRAGILE = ["--data.env=BayesRLTests/Fragile-v0", "--data.num_envs=8"]
CASES = {
    "raises": (crash, "raised OverflowError: the tower fell over", "in crash"),
    "reward": (lambda: (np.zeros(4, np.float32), float("-inf")), "returned the reward -inf", "recv"),
    "observation": (
        lambda: (np.array([0, np.nan, 0, 0], np.float32), 1.0),
        "returned an observation that is not finite",
        "recv",
    ),
}


@pytest.mark.parametrize("case", slow_but(CASES, "raises"))
def test_a_failing_environment_is_named_with_its_seed_and_its_actions(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    then, words, trace = CASES[case]
    monkeypatch.setattr(Fragile, "happens", staticmethod(at(3, 7, then)))
    line = failure_of(monkeypatch, capsys, *SHORT, *FRAGILE)
    broken = Fragile.made[-4]
    assert f"environment 4 of BayesRLTests/Fragile-v0 (seed {broken.seed}, 7 actions since) {words}" in line
    assert "error.log" in line
    saved = "runs/cartpole/version_0/checkpoints/error.ckpt"
    assert f"continue with new games by --ckpt_path {saved} --data.refill_replay true" in line
    assert "Traceback" in error_log()
    assert trace in error_log()
    state = torch.load(saved, weights_only=True)
    assert 0 < state["global_step"] < 60
    monkeypatch.setattr(Fragile, "happens", None)
    done = run(monkeypatch, *SHORT, *FRAGILE, f"--ckpt_path={saved}", "--data.refill_replay=true")
    assert done.trainer.global_step == 120
    stream = done.datamodule.stream
    assert stream.vector_steps - stream.steps_after_prefill >= 2 * 100 / 8  # a second prefill, and no update again


def test_a_failing_reset_is_named_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(env: Fragile) -> None:
        if env is Fragile.made[-4] and env.episodes == 4:
            raise ValueError("no board")

    monkeypatch.setattr(Fragile, "resets", staticmethod(breaks))
    line = failure_of(monkeypatch, capsys, *SHORT, *FRAGILE)
    assert f"(seed {Fragile.made[-4].seed}, 0 actions since) raised ValueError: no board" in line


def test_a_game_that_fails_in_a_validation_loses_no_update(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays: list[int] = []
    play = Games.play

    def counted(self: Games, *arguments: Any) -> Any:
        plays.append(len(self))
        return play(self, *arguments)

    def later(env: Fragile) -> tuple[Any, float]:
        if len(plays) == 2:
            raise ValueError("gone")
        return np.zeros(4, np.float32), 1.0

    monkeypatch.setattr(Games, "play", counted)
    monkeypatch.setattr(Fragile, "happens", staticmethod(later))
    line = failure_of(monkeypatch, capsys, *SHORT, *FRAGILE)
    assert "environment 0 of BayesRLTests/Fragile-v0" in line
    assert "1 actions since) raised ValueError: gone" in line
    saved = torch.load("runs/cartpole/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 120
    assert "last.ckpt holds every update, and begins with this validation" in line
    assert len(np.load("runs/cartpole/version_0/metrics.npy")) == 1
    monkeypatch.setattr(Fragile, "happens", staticmethod(lambda env: (np.zeros(4, np.float32), 1.0)))  # it is mended
    run(monkeypatch, "fit", "--ckpt_path=last")
    assert len(np.load("runs/cartpole/version_0/metrics.npy")) == 2
