"""The list of kinds, and the worked example of a kind from outside the package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bayes_rl.cli import app as cli
from bayes_rl.envs import kinds
from bayes_rl.envs.atari import AtariEnvs
from bayes_rl.envs.base import EnvKind, EnvSettings, EpisodeRules
from bayes_rl.envs.gymnasium_envs import GymnasiumEnvs
from bayes_rl.envs.kinds import check_env, find_kind, game_name, make_envs, register_kind
from bayes_rl.errors import ConfigError
from tests.envs.kind_case import KindCase

ROOT = Path(cli.__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/my_environment.py"
CATCH = [
    *("--config", str(ROOT / "tests/configs/cartpole.yaml"), "--data.env=catch", "--data.num_envs=3", "--name=catch"),
    *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--data.frames_per_epoch=240", "--data.replay.min_size=100", "--data.replay.capacity=2000"),
    *("--data.evaluation.games=2", "--model.network.hidden_dim=16"),
]  # an epoch of 60 updates


@pytest.fixture
def example() -> Iterator[ModuleType]:
    """The module of the worked example; its kind is known during the test."""
    before = list(kinds.KINDS)
    spec = importlib.util.spec_from_file_location("my_environment", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    kinds.KINDS[:] = before


@pytest.mark.usefixtures("example")
class TestExample(KindCase):
    """Catch, of docs/examples."""

    settings = EnvSettings("catch", frame_skip=1, sticky_actions=0.0)
    refused = (
        ({"frame_skip": 4}, "data.rules.frame_skip"),
        ({"sticky_actions": 0.25}, "data.rules.sticky_actions"),
        ({"crop": (0, 84, 0, 84)}, "data.rules.crop"),
    )

    @pytest.fixture(autouse=True)
    def _kind(self, example: ModuleType) -> None:
        type(self).kind = example.CatchKind

    def test_the_ball_is_caught_by_a_paddle_under_it(self) -> None:
        envs = make_envs(self.settings, 8)
        screens, _ = envs.reset(np.arange(8), np.ones(8, bool))
        columns = screens[:, 0, 0].argmax(1)
        assert len(set(columns)) > 2
        paddle = np.full(8, 2)
        for row in range(9):
            step = envs.step(1 + np.sign(columns - paddle) * np.array([1] * 4 + [-1] * 4))
            assert step.terminated.all() == (row == 8)
            if row < 8:
                paddle = step.screens[:, 0, -1].argmax(1)
        caught = step.screens[:, 0, -1].sum(1) == 1  # ball and paddle in one cell
        assert step.rewards.tolist() == np.where(caught, 1, -1).tolist()
        assert caught[:4].all()


@pytest.mark.slow
@pytest.mark.usefixtures("example")
def test_the_example_trains_resumes_validates_and_is_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> cli.BayesCLI:
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        return cli.run()

    run("fit", *CATCH, "--trainer.max_epochs=2")
    run("fit", *CATCH, "--trainer.max_epochs=1")
    first = "runs/catch/version_1/checkpoints/last.ckpt"
    run("fit", "--ckpt_path", first, "--trainer.max_epochs=2", *CATCH[5:])
    whole, resumed = (torch.load(f"runs/catch/version_{v}/checkpoints/last.ckpt", weights_only=True) for v in (0, 1))
    assert whole["global_step"] == resumed["global_step"] == 120
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
    capsys.readouterr()
    run("validate", *CATCH, "--ckpt_path", first)
    assert "catch: raw scores of whole greedy games" in capsys.readouterr().out
    run("predict", *CATCH, "--ckpt_path", first)
    assert len(list(Path("runs/catch/version_1/videos").iterdir())) == 2


# ------------------------------------------------------------------ the list
class First(EnvKind):
    """Takes any id that begins with `first`, and cannot be made."""

    def knows(self, env: str) -> bool:
        return env.startswith("first") or env == "CartPole-v1"

    def ids(self) -> list[str]:
        return ["first-game"]

    def make(self, settings: EnvSettings, num_envs: int) -> None:  # type: ignore[override]
        raise NotImplementedError

    render = make  # type: ignore[assignment]


def test_a_kind_from_outside_is_asked_before_the_others_and_proposed() -> None:
    before = list(kinds.KINDS)
    try:
        kind = register_kind(First())
        assert find_kind("CartPole-v1") is kind
        assert game_name("first-x") == "first-x"
        with pytest.raises(ConfigError, match="nearest: 'first-game'"):
            find_kind("frist-game")
        again = register_kind(First())  # a module that is imported twice
        assert [again, *before] == kinds.KINDS
    finally:
        kinds.KINDS[:] = before
    assert find_kind("CartPole-v1") in before


# ------------------------------------------------------------------ ids and settings
@pytest.mark.parametrize("name", ["breakout", "ALE/Breakout-v5"])
def test_short_names_and_ids_are_the_same_game(name: str) -> None:
    assert game_name(name) == "breakout"
    envs = make_envs(EnvSettings(name), 1)
    assert isinstance(envs, AtariEnvs)
    assert (envs.num_actions, envs.screen_shape, envs.screen_dtype) == (4, (1, 84, 84), np.uint8)
    envs.close()


def test_other_ids_keep_their_names() -> None:
    assert game_name("CartPole-v1") == "CartPole-v1"
    envs = make_envs(EnvSettings("CartPole-v1"), 1)
    assert isinstance(envs, GymnasiumEnvs)
    envs.close()


@pytest.mark.parametrize(
    ("env", "nearest"),
    [
        ("breakot", "breakout"),
        ("Breakout", "breakout"),
        ("space_invader", "space_invaders"),
        ("CartPole-v9", "CartPole-v"),
        ("MinAtar/Brekout-v1", "MinAtar/Breakout-v"),
    ],
)
def test_an_unknown_id_names_the_nearest(env: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_envs(EnvSettings(env), 1)
    text = str(error.value)
    assert text.startswith(f"--data.env: {env!r}")
    assert f"nearest: '{nearest}" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"frame_skip": 0}, "frame_skip"),
        ({"sticky_actions": 1.0}, "sticky_actions"),
        ({"sticky_actions": -0.1}, "sticky_actions"),
        ({"max_episode_frames": 0}, "max_episode_frames"),
        ({"crop": (13, 13, 0, 160)}, "crop"),
        ({"crop": (0, 211, 0, 160)}, "crop"),
        ({"crop": (0, 210, 20, 10)}, "crop"),
        ({"env": "CartPole-v1", "crop": (0, 84, 0, 84)}, "crop"),
        ({"env_kwargs": {"mode": 3}}, "env_kwargs"),
        ({"env": "ALE/Breakout-v5", "env_kwargs": {"difficulty": 1}}, "env_kwargs"),
    ],
)
def test_an_impossible_setting_is_named(change: dict[str, Any], key: str) -> None:
    arguments: dict[str, Any] = {"env": "breakout"} | change
    name = f"rules.{key}" if key in EpisodeRules.__dataclass_fields__ else key
    with pytest.raises(ConfigError, match=f"--data.{name}: "):
        check_env(EnvSettings(**arguments))


def test_settings_with_keywords_are_equal_and_hashable_by_value() -> None:
    a, b, c = (EnvSettings("FrozenLake-v1", env_kwargs={"is_slippery": x}) for x in (True, True, False))
    assert a == b != c
    assert len({a, b, c}) == 2


def test_no_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data.num_envs: 0"):
        make_envs(EnvSettings("breakout"), 0)
