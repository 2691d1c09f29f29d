"""A run that defends itself: what is not finite reaches nothing, and what fails says where and how to get there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.update_guard import SKIPS_IN_A_ROW, UpdateGuard
from bayes_rl.cli import app as cli
from bayes_rl.envs.base import UNSEEDED, ActionHistory, EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.errors import ConfigError, RunError
from bayes_rl.evaluation.games import Games

ROOT = Path(cli.__file__).parents[2]
TINY = [
    *("fit", "--config", str(ROOT / "configs/cartpole.yaml"), "--trainer.max_epochs=2"),
    *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--data.frames_per_epoch=240", "--data.replay.min_size=100", "--data.replay.capacity=2000"),
    *("--data.evaluation.games=1", "--model.network.hidden_dim=16"),
]  # two epochs of 60 updates


def fit(monkeypatch: pytest.MonkeyPatch, *more: str) -> cli.BayesCLI:
    monkeypatch.setattr(sys, "argv", ["cli.py", *TINY, *more])
    return cli.run()


def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The line that a run ends with; asserts exit code 1 and no stack trace on screen."""
    monkeypatch.setattr(sys, "argv", ["cli.py", *TINY, *more])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("bayes-rl: error: ")
    return line


def log() -> str:
    return Path("runs/cartpole/version_0/error.log").read_text()


Poison = Callable[[VariationalActorCritic], None]


def poison_batch(monkeypatch: pytest.MonkeyPatch, updates: set[int], value: float = float("nan")) -> None:
    """Make a reward of the minibatches of these updates (from 0) something else."""
    step = VariationalActorCritic.training_step
    count = iter(range(10**9))

    def poisoned(self: VariationalActorCritic, batch: Any, batch_idx: int) -> Any:
        if next(count) in updates:
            reward = batch.transition.reward.clone()
            reward[3] = value
            batch = batch._replace(transition=batch.transition._replace(reward=reward))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VariationalActorCritic, "training_step", poisoned)


def poison_gradient(monkeypatch: pytest.MonkeyPatch, name: str, updates: set[int]) -> None:
    """Make one number of a parameter's gradient infinite at these updates."""
    before = VariationalActorCritic.on_before_optimizer_step
    count = iter(range(10**9))

    def poisoned(self: VariationalActorCritic, optimizer: torch.optim.Optimizer) -> None:
        if next(count) in updates:
            self.twin.get_parameter(name).grad.view(-1)[-1] = float("-inf")  # type: ignore[union-attr]
        before(self, optimizer)

    monkeypatch.setattr(VariationalActorCritic, "on_before_optimizer_step", poisoned)


def leave_out(monkeypatch: pytest.MonkeyPatch, updates: set[int]) -> None:
    """What a skipped update should be: everything but the optimizer's step, by taking its gradients away."""
    before = VariationalActorCritic.on_before_optimizer_step
    count = iter(range(10**9))

    def absent(self: VariationalActorCritic, optimizer: torch.optim.Optimizer) -> None:
        before(self, optimizer)
        if next(count) in updates:
            optimizer.zero_grad()

    monkeypatch.setattr(VariationalActorCritic, "on_before_optimizer_step", absent)


def learned(name: str) -> dict[str, Any]:
    """All tensors that learning changes: weights, moving average, averages and step counters of Adam."""
    checkpoint = torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    moments = {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}
    return checkpoint["state_dict"] | moments


def skipped(name: str) -> int:
    return torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["skipped_updates"]


# ---------------------------------------------------------------------------------------------- skipped updates
@pytest.mark.parametrize(
    "precision", ["32-true", "bf16-mixed"]
)  # a fused optimizer, and (as gradients are clipped) none
def test_an_update_that_is_not_finite_is_left_out_and_nothing_else(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = {0, 7, 8, 100}
    option = f"--trainer.precision={precision}"
    with monkeypatch.context() as patch:
        poison_batch(patch, updates)
        agent = fit(patch, "--name=poisoned", option).model
        fused = agent.trainer.optimizers[0].defaults["fused"]
    with monkeypatch.context() as patch:
        leave_out(patch, updates)
        fit(patch, "--name=absent", option)
    assert fused == (precision == "32-true")
    assert skipped("poisoned") == 4
    a, b = learned("poisoned"), learned("absent")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(value.isfinite().all() for value in a.values())
    assert {float(value) for key, value in a.items() if key.endswith(".step")} == {116.0}


def test_a_gradient_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "critics.1.weight_log_var"
    with monkeypatch.context() as patch:
        poison_gradient(patch, name, {5})
        fit(patch, "--name=poisoned")
    with monkeypatch.context() as patch:
        leave_out(patch, {5})
        fit(patch, "--name=absent")
    assert skipped("poisoned") == 1
    a, b = learned("poisoned"), learned("absent")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_without_harm_is_as_if_nobody_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch, "--name=watched")
    monkeypatch.setattr(UpdateGuard, "check", lambda *_, **__: None)
    fit(monkeypatch, "--name=alone")
    a, b = learned("watched"), learned("alone")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_skipped_updates_are_logged_and_counted_across_a_resumption(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        poison_batch(patch, {2, 4})
        fit(patch)
    fit(monkeypatch, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert skipped("cartpole") == 2
    events = EventAccumulator("runs/cartpole/version_0", size_guidance={"scalars": 0}).Reload()
    values = [event.value for event in events.Scalars("train/skipped_updates")]
    assert values == [0, 0, 0, 1, 1, *[2] * 175]


@pytest.mark.parametrize("likelihood", ["gaussian", "learned_gaussian", "hl_gauss", "two_hot"])
def test_five_in_a_row_stop_the_run_by_name_and_leave_the_checkpoint(
    likelihood: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--model.likelihood.family={likelihood}"
    fit(monkeypatch, option, "--trainer.max_epochs=1")
    saved = Path("runs/cartpole/version_0/checkpoints/last.ckpt")
    content = saved.read_bytes()
    with monkeypatch.context() as patch:
        poison_batch(patch, {3, *range(10, 60)})
        line = failure(patch, capsys, option, "--ckpt_path=last")
    assert "5 updates in a row were left out: nll is nan" in line
    assert "kl" not in line.replace("cartpole", "")
    assert f"{saved} was saved before the error" in line
    assert saved.read_bytes() == content
    assert "RunError" in log()
    agent = VariationalActorCritic.load_from_checkpoint(saved, weights_only=True)
    assert all(p.isfinite().all() for p in agent.parameters())
    assert fit(monkeypatch, option, "--ckpt_path=last").trainer.global_step == 120  # it goes on from there


def test_four_in_a_row_are_not_five(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_batch(monkeypatch, {*range(10, 14), *range(15, 19)}, float("nan"))
    fit(monkeypatch)
    assert skipped("cartpole") == 8


def test_a_gradient_that_stops_the_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison_gradient(monkeypatch, "actors.1.weight_mu", set(range(20, 30)))
    line = failure(monkeypatch, capsys)
    assert "the gradient of actors.1.weight_mu is not finite, the loss is" in line
    assert "no checkpoint was saved yet" in line


def test_each_part_of_the_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for bad in (["nll"], ["kl"], ["ewc_penalty"], ["actor_loss"], ["nll", "actor_loss"]):
        guard = UpdateGuard()
        names = ("nll", "kl", "ewc_penalty", "actor_loss")
        parts = {name: torch.tensor(float("inf") if name in bad else 1.0) for name in names}
        penalty = {"ewc_penalty": parts.pop("ewc_penalty")}  # asked for only when it may be to blame
        for _ in range(SKIPS_IN_A_ROW):
            network(torch.ones(2)).sum().backward()
            guard.record_loss(torch.stack([*parts.values(), *penalty.values()]).sum(), parts)
            if guard.in_a_row < SKIPS_IN_A_ROW - 1:
                guard.check(optimizer, network)
                optimizer.step()
        with pytest.raises(RunError) as stop:
            guard.check(optimizer, network, more=lambda penalty=penalty: penalty)
        assert str(stop.value) == f"5 updates in a row were left out: {', '.join(f'{name} is inf' for name in bad)}"


@pytest.mark.parametrize("fused", [True, False])
def test_every_number_of_every_gradient_is_looked_at(fused: bool) -> None:
    """Contiguous or channels last, at the first and the last place."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 5, 5))
    optimizer = torch.optim.AdamW(network.parameters(), fused=fused)
    for i, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        for parameter in network.parameters():
            for place in (0, -1):
                guard = UpdateGuard()
                optimizer.zero_grad()
                network(torch.rand(2, 3, 5, 5)).sum().backward()
                before = [p.detach().clone() for p in network.parameters()]
                index = tuple((place,) * parameter.ndim)
                parameter.grad[index] = value  # type: ignore[index]
                guard.record_loss(torch.tensor(1.0), {})
                guard.check(optimizer, network)
                optimizer.step()
                assert guard.skipped == 1, (i, place)
                assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_a_scaler_finds_its_scale_undisturbed() -> None:
    """Gradients that overflow are its own matter; a loss that is not finite is counted all the same."""
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    guard = UpdateGuard()
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, float("nan")):
        network(torch.ones(2)).sum().backward()
        network.weight.grad[0, 0] = float("inf")  # type: ignore[index]
        guard.record_loss(torch.tensor(loss), {"nll": torch.tensor(loss)})
        guard.check(optimizer, network, scaled=True)
        assert not hasattr(optimizer, "found_inf")
        assert network.weight.grad is not None
    assert guard.skipped == 1


# -------------------------------------------------------------------------------------- environments that fail
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


@pytest.mark.parametrize("case", CASES)
def test_a_failing_environment_is_named_with_its_seed_and_its_actions(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    then, words, trace = CASES[case]
    monkeypatch.setattr(Fragile, "happens", staticmethod(at(3, 7, then)))
    line = failure(monkeypatch, capsys, *FRAGILE)
    broken = Fragile.made[-4]
    assert f"environment 4 of BayesRLTests/Fragile-v0 (seed {broken.seed}, 7 actions since) {words}" in line
    assert "error.log" in line
    saved = "runs/cartpole/version_0/checkpoints/error.ckpt"
    assert f"continue with new games by --ckpt_path {saved} --data.refill_replay true" in line
    assert "Traceback" in log()
    assert trace in log()
    state = torch.load(saved, weights_only=True)
    assert 0 < state["global_step"] < 60
    monkeypatch.setattr(Fragile, "happens", None)
    done = fit(monkeypatch, *FRAGILE, f"--ckpt_path={saved}", "--data.refill_replay=true")
    assert done.trainer.global_step == 120
    stream = done.datamodule.stream
    assert stream.vector_steps - stream.learning_steps >= 2 * 100 / 8  # a second prefill, and no update again


def test_a_failing_reset_is_named_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(env: Fragile) -> None:
        if env is Fragile.made[-4] and env.episodes == 4:
            raise ValueError("no board")

    monkeypatch.setattr(Fragile, "resets", staticmethod(breaks))
    line = failure(monkeypatch, capsys, *FRAGILE)
    assert f"(seed {Fragile.made[-4].seed}, 0 actions since) raised ValueError: no board" in line


def test_a_game_that_fails_in_a_validation_ends_the_run_with_the_last_checkpoint_intact(
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
    line = failure(monkeypatch, capsys, *FRAGILE)
    assert "environment 0 of BayesRLTests/Fragile-v0" in line
    assert "1 actions since) raised ValueError: gone" in line
    saved = torch.load("runs/cartpole/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 60
    assert "last.ckpt was saved before the error" in line


def test_which_atari_game_failed_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_envs(EnvSettings("breakout"), 3)
    watched = MonitoredEnvs(envs)
    watched.reset(np.array([5, 6, 7]), np.ones(3, bool))
    watched.step(np.zeros(3, np.int64))
    watched.reset(np.array([8]), np.array([False, True, False]))
    watched.send(np.zeros(3, np.int64))

    def broken() -> None:
        raise RuntimeError("emulator")

    monkeypatch.setattr(envs, "recv", broken)
    with pytest.raises(RunError) as stop:
        watched.recv()
    words = "one of environments 0..2 of breakout (seeds 5, 8, 7; 2, 1, 2 actions since) raised RuntimeError: emulator"
    assert str(stop.value) == words
    watched.close()


def test_actions_are_counted_as_the_history_counts_them() -> None:
    """Beginning a new episode in place of a step is no action, and a reset without a seed goes on counting."""
    settings = EnvSettings("breakout", max_episode_frames=40, sticky_actions=0.0)
    watched = MonitoredEnvs(make_envs(settings, 2))
    watched.reset(np.array([5, 6]), np.ones(2, bool))
    ended = [watched.step(np.zeros(2, np.int64)).truncated.any() for _ in range(25)]
    assert watched._actions.tolist() == [25 - sum(ended[:-1])] * 2
    watched.reset(np.array([UNSEEDED]), np.array([True, False]))
    assert watched._actions[0] > 0
    watched.restore(np.array([3, 4]), [ActionHistory([0] * 4), ActionHistory([0] * 9)])
    assert watched._seeds.tolist() == [3, 4]
    assert watched._actions.tolist() == [4, 9]
    watched.close()


@pytest.mark.parametrize(
    "rewards", [[0, 0, 0], [3e38, 3e38, -3e38], [1, np.nan, 0], [0, np.inf, -np.inf], [0, 1, -np.inf]]
)
def test_a_reward_that_is_not_finite_is_found_wherever_it_is(
    rewards: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick test agrees with the obvious one, and large rewards whose sum is not finite are no failure."""
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 3))
    watched.reset(np.arange(3), np.ones(3, bool))
    watched.send(np.zeros(3, np.int64))
    step = watched.envs.recv()._replace(rewards=np.array(rewards, np.float32))
    monkeypatch.setattr(watched.envs, "recv", lambda: step)
    bad = np.flatnonzero(~np.isfinite(rewards))
    if not len(bad):
        assert watched.recv() is step
        return
    with pytest.raises(
        RunError, match=rf"^environment {bad[0]} of CartPole-v1 .* returned the reward {rewards[bad[0]]:g}$"
    ):
        watched.recv()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_reset_is_judged_by_the_games_that_it_begins(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 2))
    screens, lives = watched.reset(np.arange(2), np.ones(2, bool))
    screens = screens.copy()
    screens[bad] = np.nan
    monkeypatch.setattr(watched.envs, "reset", lambda *_: (screens, lives))
    again = np.array([2]), np.array([True, False])
    if bad:
        assert watched.reset(*again)[0] is screens
        return
    with pytest.raises(RunError, match=r"^environment 0 of CartPole-v1 .* an observation that is not finite$"):
        watched.reset(*again)


def test_an_action_counts_once_the_game_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 1))
    watched.reset(np.array([5]), np.ones(1, bool))
    watched.step(np.zeros(1, np.int64))

    def broken(*_: Any) -> None:
        raise RuntimeError("no entry")

    monkeypatch.setattr(watched.envs, "send", broken)
    with pytest.raises(RunError, match=r"\(seed 5, 1 actions since\) raised RuntimeError: no entry"):
        watched.send(np.zeros(1, np.int64))


def test_what_is_wrong_with_a_setting_stays_that(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 1))
    error = ConfigError("data.env", "x", "is wrong")

    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(watched.envs, "send", broken)
    with pytest.raises(ConfigError):
        watched.send(np.zeros(1, np.int64))
