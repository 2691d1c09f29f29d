"""A replay's copy on a device makes the same minibatches as the replay itself, to the last bit; here on the CPU."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.device_replay import DeviceReplay, copy_bytes
from bayes_rl.data.n_step import LIFE_LOSS
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.errors import ConfigError
from bayes_rl.training import preflight as forecast
from bayes_rl.types import Transition

pytestmark = pytest.mark.usefixtures("shared_parser")

CPU = torch.device("cpu")
ROOT = Path(cli.__file__).parents[2]
SCREENS = {"pixels": ((1, 3, 3), np.uint8), "planes": ((2, 2, 3), np.uint8), "vector": ((5,), np.float32)}


def pair(num_envs: int, ring: int, directory: Path | None = None, kind: str = "pixels", **settings: Any) -> list[Any]:
    """A replay, and one with a copy; the first in memory."""
    shape, dtype = SCREENS[kind]
    arguments = (ring * num_envs, num_envs, shape, np.dtype(dtype))
    copied = DeviceReplay(*arguments, device=CPU, directory=directory, **settings)
    return [ReplayBuffer(*arguments, **settings), copied]


def play(replays: list[Any], steps: int, seed: int, p_end: float = 0.15, p_idle: float = 0.1) -> None:
    """The same random episodes into all of them: both kinds of end, lost lives, environments that idle."""
    rng, first = np.random.default_rng(seed), replays[0]
    shape, envs = (first.num_envs, *first.screen_shape), first.num_envs
    for _ in range(steps):
        ended, how, lost = rng.random(envs) < p_end, rng.random((2, envs)) < 0.6, rng.random(envs) < 0.2
        now, then = ((rng.random(shape) * 255).astype(first.files.screens.dtype) for _ in range(2))
        actions, rewards = rng.integers(0, 18, envs), rng.normal(0, 2, envs).astype(np.float32)
        idle = rng.random(envs) < p_idle
        terminated, truncated = ended & how[0] & ~idle, ended & how[1] & ~idle
        for replay in replays:
            replay.add(now, actions, rewards, terminated, truncated, lost, then, idle)


def assert_same(one: Transition, other: Transition) -> None:
    for name, a, b in zip(Transition._fields, one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)


def assert_alike(replays: list[Any], batch: int = 200, seed: int = 3) -> None:
    """Both draw the same sample, and have the same for every slot that can be drawn."""
    assert_same(*(replay.sample(batch, np.random.default_rng(seed)) for replay in replays))
    low, count = replays[0]._window()
    env = np.repeat(np.arange(len(low)), count)
    number = np.concatenate([low[e] + np.arange(n) for e, n in enumerate(count)])
    assert_same(*(replay.transitions(env, number) for replay in replays))


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("life_loss", LIFE_LOSS)
@pytest.mark.parametrize("n_step", [1, 3, 11])
@pytest.mark.parametrize("kind", SCREENS)
def test_minibatches_are_the_same_bits(kind: str, n_step: int, life_loss: str, clip: float | None) -> None:
    """Random episodes, until rings of 40 slots were gone round several times."""
    rules = {"n_step": n_step, "life_loss": life_loss, "reward_clip": clip, "gamma": 0.97, "slack": 5}
    replays = pair(3, 40, kind=kind, **rules)
    for seed, steps in enumerate((20, 30, 90)):
        play(replays, steps, seed)
        assert_alike(replays)


@pytest.mark.parametrize("frame_stack", [1, 2, 7])
def test_stacks_are_padded_with_zeros_alike(frame_stack: int) -> None:
    replays = pair(2, 60, frame_stack=frame_stack, n_step=2)
    play(replays, 90, 0, p_end=0.4)
    assert_alike(replays)
    sample = replays[1].sample(500, np.random.default_rng(0)).observation
    assert (sample.flatten(2).sum(-1) == 0).any() == (frame_stack > 1)


def test_what_may_change_between_samples_may_change_here_too() -> None:
    replays = pair(2, 50, n_step=4)
    play(replays, 120, 1)
    for n_step, gamma in ((4, 0.99), (9, 0.99), (9, 0.5), (1, 0.0), (2, 1.0)):
        for replay in replays:
            replay.n_step, replay.gamma = n_step, gamma
        assert_alike(replays)


@pytest.mark.parametrize("n_step", [3, 10])
def test_returns_are_added_up_in_the_order_of_steps(n_step: int) -> None:
    """A small reward is lost behind a huge one that is taken back later; in another order it would not be."""
    replays, no = pair(1, 40, n_step=n_step, gamma=1.0, reward_clip=None), np.zeros(1, bool)
    screen = np.zeros((1, 1, 3, 3), np.uint8)
    for reward in ([1.0, 2.0**80, -(2.0**80)] + [0.0] * 7) * 3:
        for replay in replays:
            replay.add(screen, np.zeros(1, np.int64), np.array([reward], np.float32), no, no, no, screen)
    assert_alike(replays)
    assert replays[1].transitions(np.array([0]), np.array([0])).reward.tolist() == [0.0]


def test_ages_that_no_longer_fit_into_their_byte() -> None:
    replays = pair(1, 400, n_step=2, frame_stack=200)
    play(replays, 390, 1, p_end=0.003, p_idle=0.0)
    assert_alike(replays, batch=20)


def test_a_minibatch_shares_no_memory_with_the_copy() -> None:
    replays = pair(1, 30, n_step=1, frame_stack=1)
    play(replays, 25, 1)
    for part in replays[1].sample(9, np.random.default_rng(0)):
        part.zero_()
    assert_alike(replays)


def test_each_step_is_one_transfer_of_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after an ended episode go with the others; a minibatch takes nothing but its slots there."""
    sent: list[tuple[torch.dtype, int]] = []

    def counted(x: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append((x.dtype, x.numel()))
        return x.to(device)

    monkeypatch.setattr("bayes_rl.data.device_replay.to_device_async", counted)
    replays = pair(4, 30, n_step=1)
    play(replays, 10, 0, p_end=0.9)
    assert [dtype for dtype, _ in sent].count(torch.uint8) == 10
    assert len(sent) == 30  # screens, numbers, and the returns of the episodes that ended
    replays[1].sample(8, np.random.default_rng(0))
    sent.clear()
    replays[1].sample(8, np.random.default_rng(1))
    assert sent == [(torch.int64, 16)]


# ----------------------------------------------------------------------------------------------- going on
def test_a_copy_is_made_from_the_files_again(tmp_path: Path) -> None:
    """Also of what was written after the checkpoint, and of rings that were gone round."""
    for steps in (30, 200):
        directory = tmp_path / str(steps)
        replays = pair(2, 50, directory, n_step=3, slack=40)
        play(replays, steps, 0)
        state = replays[1].state_dict()
        plain = replays[0].state_dict()
        play(replays, 10, 1)  # lost with the process
        again = pair(2, 50, directory, n_step=3, slack=40)[1]
        again.load_state_dict(state)
        replays[0].load_state_dict(plain | {"history": None})
        both = [replays[0], again]
        assert_alike(both)
        play(both, 40, 2)
        assert_alike(both)


def test_an_empty_state_needs_no_copy(tmp_path: Path) -> None:
    one, other = pair(2, 50, tmp_path)[1], pair(2, 50, tmp_path / "other")[1]
    other.load_state_dict(one.state_dict())
    assert not hasattr(other, "_device_screens")


def fit(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> cli.BayesCLI:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *words])
    return cli.run()


TINY = [
    *("--config", str(ROOT / "configs/minatar.yaml"), "--name=game", "--data.frames_per_epoch=200"),
    *("--data.replay.capacity=500", "--data.replay.min_size=100", "--data.replay.batch_size=8", "--data.num_envs=4"),
    *(
        "--model.network.hidden_dim=16",
        "--data.evaluation.games=1",
        "--data.rules.max_episode_frames=60",
        "--trainer.precision=32-true",
    ),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]


def test_a_run_with_a_copy_is_the_run_without_one_also_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs in one go without a copy; one, and one more, with it: the same weights and optimizer."""
    fit(monkeypatch, tmp_path / "plain", *TINY, "--trainer.max_epochs=2")
    monkeypatch.setattr(ReplayDataModule, "_copy_device", CPU)
    fit(monkeypatch, tmp_path / "copied", *TINY, "--trainer.max_epochs=1")
    more = fit(monkeypatch, tmp_path / "copied", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert type(more.datamodule.stream.replay) is DeviceReplay
    paths = [tmp_path / name / "runs/game/version_0/checkpoints/last.ckpt" for name in ("plain", "copied")]
    one, two = (torch.load(path, weights_only=True) for path in paths)
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    moments = [saved["optimizer_states"][0]["state"] for saved in (one, two)]
    for key, values in moments[0].items():
        assert all(torch.equal(value, moments[1][key][name]) for name, value in values.items())


# ---------------------------------------------------------------------------------------- the option, the forecast
def test_without_a_gpu_the_option_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for option, words in (
        ("--data.replay.device=cuda", ("data.replay.device", "'cuda'", "device is cpu", "use cpu")),
        ("--data.replay.device=gpu", ("data.replay.device", "'gpu'", "cpu, cuda")),
    ):
        monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *TINY, "--trainer.accelerator=cpu", option])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_an_agent_that_learned_on_a_gpu_plays_and_goes_on_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(monkeypatch, tmp_path, *TINY, "--trainer.max_epochs=1")
    config = tmp_path / "runs/game/version_0/config.yaml"
    text = config.read_text()
    assert "    device: cpu" in text
    config.write_text(text.replace("    device: cpu", "    device: cuda"))
    monkeypatch.setattr(sys, "argv", ["cli.py", "validate", "--ckpt_path=last", "--trainer.accelerator=cpu"])
    cli.run()
    fit(monkeypatch, tmp_path, "--ckpt_path=last", "--trainer.max_epochs=2", "--data.replay.device=cpu")


def test_the_forecast_counts_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = fit(monkeypatch, tmp_path, *TINY, "--trainer.max_epochs=1")
    data, replay = done.datamodule, done.datamodule.stream.replay
    assert forecast.copied_bytes(data) == 0
    assert "GPU" not in forecast.describe(done.trainer, done.model, data)
    monkeypatch.setattr(ReplayDataModule, "_copy_device", CPU)
    shape = (4, replay.slots, replay.screen_shape, replay.files.screens.dtype)
    copied = DeviceReplay(500, *shape[:1], *shape[2:], slack=replay.slots - replay.ring, device=CPU)
    play([copied], 1, 0)
    taken = copied._device_screens.nbytes + copied._device_numbers.nbytes
    data.replay_settings = replace(data.replay_settings, device="cuda")
    assert forecast.copied_bytes(data) == taken == copy_bytes(*shape)
    assert f"{forecast._mib(taken)} for replay" in forecast.describe(done.trainer, done.model, data)


def test_a_copy_that_does_not_fit_into_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ReplayDataModule(env="CartPole-v1", replay={"capacity": 50_000, "device": "cuda"})
    agent: Any = VariationalActorCritic(
        network={"encoder": "mlp", "hidden_dim": 8}, observation_shape=(16,), num_actions=2
    )
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)), max_epochs=1)
    trainer.max_steps, trainer.limit_train_batches = -1, 1.0
    copied = forecast.copied_bytes(data)
    for free, fits in ((copied // 2, False), (2 * copied, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        with nullcontext() if fits else pytest.raises(ConfigError, match=r"replay.capacity.* of the GPU's memory"):
            forecast.check_room(trainer, agent, data)
