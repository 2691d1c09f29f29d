"""What only a GPU can show; `pytest -m gpu tests/gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from bayes_rl.agent.behaviour import Behaviour
from bayes_rl.agent.compilation import REPLAYED
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.device_replay import DeviceReplay
from bayes_rl.data.n_step import LIFE_LOSS
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.types import Batch, Transition
from bayes_rl.utils.device import to_device_async
from tests.helpers.agents import make_trainer
from tests.helpers.options import merged, title

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # of other versions than the ones this project is developed with
]

GPU = torch.device("cuda", 0)
WARM = 6  # updates until everything is allocated, compiled and recorded
FAMILIES: list[dict[str, Any]] = [
    {},
    {"network": {"bayesian": "none"}},
    {
        "posterior": {"family": "members"},
        "network": {"prior_function_scale": 1.0},
        "likelihood": {"family": "hl_gauss"},
    },
    {
        "network": {"bayesian": "all"},
        "likelihood": {"family": "learned_gaussian"},
        "objective": {"update_pairs": "random"},
    },
    {
        "network": {"bayesian": "gaussian_process", "prior_function_scale": 0.2, "random_features": 64},
        "likelihood": {"family": "return_gaussian"},
        "exploration": "both",
    },
    {"network": {"bayesian": "none"}, "optimizer": {"family": "ivon", "actor_lr": 0.04, "critic_lr": 0.04}},
]
FUSED = FAMILIES[:-1]  # IVON asks after every update whether its gradients were finite, as only fused Adam need not


def filled(kind: type[ReplayBuffer], steps: int = 120, **settings: Any) -> Any:
    """A replay of Atari's screens with the same random episodes in it."""
    there = {"device": GPU} if kind is DeviceReplay else {}
    envs, rng = 4, np.random.default_rng(0)
    replay = kind(200, envs, (1, 84, 84), np.dtype(np.uint8), **settings, **there)
    for _ in range(steps):
        now, then = (rng.integers(0, 256, (envs, 1, 84, 84)).astype(np.uint8) for _ in range(2))
        ended, how, lost = rng.random(envs) < 0.1, rng.random((2, envs)) < 0.6, rng.random(envs) < 0.2
        actions, rewards = rng.integers(0, 4, envs), rng.normal(0, 2, envs).astype(np.float32)
        replay.add(now, actions, rewards, ended & how[0], ended & how[1], lost, then)
    return replay


class Stream:
    """Minibatches straight from a replay."""

    def __init__(self, replay: ReplayBuffer, count: int, scale: float = 1.0) -> None:
        self.replay, self.count, self.scale = replay, count, scale

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            transition = self.replay.sample(16, np.random.default_rng(number))
            transition = transition._replace(reward=transition.reward * self.scale)
            yield Batch(transition, len(self.replay) + number, number)


class NoWaiting(pl.Callback):
    """From update `WARM` to the last, asking the device for a number is an error."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if WARM <= trainer.global_step < trainer.num_training_batches else 0)


def train(
    stream: Stream, precision: str = "32-true", *callbacks: pl.Callback, **settings: Any
) -> VariationalActorCritic:
    torch.manual_seed(1)
    module = VariationalActorCritic(**merged({"network": {"hidden_dim": 64}}, settings))
    trainer = make_trainer(*callbacks, accelerator="gpu", precision=precision, log_every=0)
    try:
        trainer.fit(module, stream, Stream(stream.replay, 0))
    finally:
        torch.cuda.set_sync_debug_mode(0)
    return module


def weights(module: VariationalActorCritic) -> dict[str, Tensor]:
    return {name: p.detach().cpu() for name, p in module.named_parameters()}


# ------------------------------------------------------------------------------------------------- replay
@pytest.mark.parametrize("life_loss", LIFE_LOSS)
@pytest.mark.parametrize("n_step", [1, 5, 11])
def test_a_minibatch_made_on_the_gpu_is_that_of_the_cpu(n_step: int, life_loss: str) -> None:
    rules = {"n_step": n_step, "life_loss": life_loss}
    here, there = (filled(kind, **rules) for kind in (ReplayBuffer, DeviceReplay))
    for seed in range(5):
        one, two = (replay.sample(300, np.random.default_rng(seed)) for replay in (here, there))
        for name, a, b in zip(Transition._fields, one, two, strict=True):
            assert b.device.type == "cuda"
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b.cpu(), rtol=0, atol=0, equal_nan=True, msg=name)


def test_what_was_uploaded_may_be_changed_at_once() -> None:
    """Page-locked memory is not used again before the memory has been read, however many copies wait."""
    torch.cuda._sleep(200_000_000)  # type: ignore[attr-defined]  # a tenth of a second that the copies wait
    x, there = torch.zeros(1_000_000), []
    for value in range(20):
        x.fill_(value)
        there.append(to_device_async(x, GPU))
    assert [float(y.max()) for y in there] == [float(y.min()) for y in there] == list(range(20))


def test_writing_and_sampling_wait_for_nothing() -> None:
    replay = filled(DeviceReplay)
    replay.sample(64, np.random.default_rng(0))
    screens, no = np.zeros((4, 1, 84, 84), np.uint8), np.zeros(4, bool)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(30):
            ended = np.arange(4) == number % 9
            replay.add(screens, np.zeros(4, np.int64), np.zeros(4, np.float32), ended, no, no, screens)
            replay.sample(64, np.random.default_rng(number))
    finally:
        torch.cuda.set_sync_debug_mode(0)


# ------------------------------------------------------------------------------------------------ learning
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("settings", FUSED, ids=title)
def test_updates_wait_for_nothing_and_stay_finite(settings: dict[str, Any], precision: str) -> None:
    module = train(Stream(filled(DeviceReplay), 20), precision, NoWaiting(), **settings)
    assert module.global_step == 20
    assert all(value.isfinite().all() for value in weights(module).values())
    assert module.guard.skipped == 0


class Losses(pl.Callback):
    """The loss of every update; asking for it waits, so not beside `NoWaiting`."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize("mode", REPLAYED)
@pytest.mark.parametrize("settings", FUSED, ids=title)
def test_recorded_updates_wait_for_nothing_and_stay_finite(settings: dict[str, Any], mode: str) -> None:
    torch._dynamo.reset()
    # Each choice of pairs is a graph of its own, recorded when it comes.
    settings = merged(settings, {"objective": {"update_pairs": "both"}})
    module = train(Stream(filled(DeviceReplay), 20), "bf16-mixed", NoWaiting(), compile=mode, **settings)
    assert module.global_step == 20
    assert all(value.isfinite().all() for value in weights(module).values())
    assert module.guard.skipped == 0


@pytest.mark.parametrize("mode", REPLAYED)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.01), ("bf16-mixed", 0.03)])
@pytest.mark.parametrize("settings", FAMILIES, ids=title)
def test_recorded_updates_have_the_losses_of_plain_ones(
    settings: dict[str, Any], precision: str, tolerance: float, mode: str
) -> None:
    """Weights that hardly vary, so that it does not matter which random numbers a recorded graph has."""
    settings = merged(settings, {"posterior": {"init_log_var": -11.0}})
    curves = []
    for how in ("none", mode):
        torch._dynamo.reset()
        losses = Losses()
        train(Stream(filled(DeviceReplay), 20), precision, losses, compile=how, **settings)
        curves.append(losses.values)
    plain, recorded = curves  # the first update warms up, the second is recorded, others are replays
    np.testing.assert_allclose(recorded[:4], plain[:4], rtol=tolerance)
    np.testing.assert_allclose(np.mean(recorded), np.mean(plain), rtol=0.05)


class Gradients(pl.Callback):
    """The gradients of every update, before the optimizer uses them."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.values.append({n: p.grad.detach().cpu() for n, p in module.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("mode", REPLAYED)
@pytest.mark.parametrize("settings", FAMILIES, ids=title)
def test_recorded_gradients_are_those_of_plain_updates(settings: dict[str, Any], mode: str) -> None:
    """Of every parameter, in the first four updates, with step sizes so small that the weights stay where they are."""
    rates = {"actor_lr": 1e-9, "critic_lr": 1e-9}
    settings = merged(settings, {"posterior": {"init_log_var": -11.0}, "optimizer": rates})
    found = []
    for how in ("none", mode):
        torch._dynamo.reset()
        gradients = Gradients()
        train(Stream(filled(DeviceReplay), 4), "32-true", gradients, compile=how, **settings)
        found.append(gradients.values)
    apart = {}
    for update, (plain, recorded) in enumerate(zip(*found, strict=True)):
        assert plain.keys() == recorded.keys()
        for name, gradient in plain.items():
            apart[f"update {update}: {name}"] = float((recorded[name] - gradient).norm() / gradient.norm())
    assert not (wrong := {name: distance for name, distance in apart.items() if not distance < 0.1}), wrong  # NaN, too


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_updates_that_are_not_finite_are_left_out(precision: str) -> None:
    class Spoilt(Stream):
        def __iter__(self) -> Iterator[Batch]:
            for number, batch in enumerate(super().__iter__()):
                bad = torch.full_like(batch.transition.reward, torch.nan if number in (3, 7) else 0)
                yield batch._replace(transition=batch.transition._replace(reward=batch.transition.reward + bad))

    module = train(Spoilt(filled(DeviceReplay), 12), precision)
    module.guard.synchronize()
    assert module.guard.skipped == 2
    assert all(value.isfinite().all() for value in weights(module).values())


def test_a_gradient_scaler_leaves_out_what_overflows() -> None:
    """Under 16-mixed: a first scale of 65536 is too large for returns of thousands; the scaler finds its own."""
    module = train(Stream(filled(DeviceReplay), 60, scale=1000.0), "16-mixed", NoWaiting())
    module.guard.synchronize()
    assert module.guard.skipped == 0  # losses were finite, gradients are the scaler's
    assert all(value.isfinite().all() for value in weights(module).values())
    assert module.global_step == 60


# -------------------------------------------------------------------------------------------------- acting
@pytest.mark.parametrize("posterior", ["mean_field", "members"])
def test_actions_are_those_of_the_cpu(posterior: str) -> None:
    """Greedy, and by one draw for each of 64 environments, some of which begin a new episode."""
    torch.manual_seed(0)
    module = VariationalActorCritic(
        network={"hidden_dim": 64}, posterior={"family": posterior}, exploration="thompson", num_actions=6
    )
    for p in (p for actor in module.twin.actors for p in actor.parameters()):
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    observations = torch.randint(0, 256, (64, 4, 84, 84), dtype=torch.uint8)
    seeds = [list(range(64)), [*range(60), 100, 101, 102, 103]]
    here = [module.act(observations), *(module.act_by_draw(observations, s) for s in seeds)]
    module.behaviour = Behaviour(module.twin)
    module.to(GPU)
    there = [module.act(observations), *(module.act_by_draw(observations, s) for s in seeds)]
    for one, two in zip(here, there, strict=True):
        assert two.device.type == "cpu"
        assert (one == two).float().mean() > 0.9  # near ties are decided by rounding
