"""The guard: an update that is not finite changes nothing, and five in a row stop the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.update_guard import SKIPS_IN_A_ROW, UpdateGuard
from bayes_rl.errors import RunError
from tests.helpers.command_line import SHORT, failure_of, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")


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
# A fused optimizer, and (as gradients are clipped) none.
@pytest.mark.parametrize("precision", slow_but(["32-true", "bf16-mixed"], "32-true"))
def test_an_update_that_is_not_finite_is_left_out_and_nothing_else(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = {0, 7, 8, 100}
    option = f"--trainer.precision={precision}"
    with monkeypatch.context() as patch:
        poison_batch(patch, updates)
        agent = run(patch, *SHORT, "--name=poisoned", option).model
        fused = agent.trainer.optimizers[0].defaults["fused"]
    with monkeypatch.context() as patch:
        leave_out(patch, updates)
        run(patch, *SHORT, "--name=absent", option)
    assert fused == (precision == "32-true")
    assert skipped("poisoned") == 4
    a, b = learned("poisoned"), learned("absent")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(value.isfinite().all() for value in a.values())
    assert {float(value) for key, value in a.items() if key.endswith(".step")} == {116.0}


@pytest.mark.slow
def test_a_gradient_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "critics.1.weight_log_var"
    with monkeypatch.context() as patch:
        poison_gradient(patch, name, {5})
        run(patch, *SHORT, "--trainer.max_epochs=1", "--name=poisoned")
    with monkeypatch.context() as patch:
        leave_out(patch, {5})
        run(patch, *SHORT, "--trainer.max_epochs=1", "--name=absent")
    assert skipped("poisoned") == 1
    a, b = learned("poisoned"), learned("absent")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_a_run_without_harm_is_as_if_nobody_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, *SHORT, "--name=watched")
    monkeypatch.setattr(UpdateGuard, "check", lambda *_, **__: None)
    run(monkeypatch, *SHORT, "--name=alone")
    a, b = learned("watched"), learned("alone")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_skipped_updates_are_logged_and_counted_across_a_resumption(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every_update = "--trainer.log_every_n_steps=1"
    with monkeypatch.context() as patch:
        poison_batch(patch, {2, 4})
        run(patch, *SHORT, every_update)
    run(monkeypatch, *SHORT, every_update, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert skipped("cartpole") == 2
    events = EventAccumulator("runs/cartpole/version_0", size_guidance={"scalars": 0}).Reload()
    values = [event.value for event in events.Scalars("train/skipped_updates")]
    assert values == [0, 0, 0, 1, 1, *[2] * 175]


@pytest.mark.parametrize("likelihood", slow_but(["gaussian", "learned_gaussian", "hl_gauss", "two_hot"], "gaussian"))
def test_five_in_a_row_stop_the_run_by_name_and_leave_the_checkpoint(
    likelihood: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--model.likelihood.family={likelihood}"
    run(monkeypatch, *SHORT, option, "--trainer.max_epochs=1")
    saved = Path("runs/cartpole/version_0/checkpoints/last.ckpt")
    content = saved.read_bytes()
    with monkeypatch.context() as patch:
        poison_batch(patch, {3, *range(10, 60)})
        line = failure_of(patch, capsys, *SHORT, option, "--ckpt_path=last")
    assert "5 updates in a row were left out: nll is nan" in line
    assert "kl" not in line.replace("cartpole", "")
    assert f"{saved} was saved before the error" in line
    assert saved.read_bytes() == content
    assert "RunError" in Path("runs/cartpole/version_0/error.log").read_text()
    agent = VariationalActorCritic.load_from_checkpoint(saved, weights_only=True)
    assert all(p.isfinite().all() for p in agent.parameters())
    assert run(monkeypatch, *SHORT, option, "--ckpt_path=last").trainer.global_step == 120  # it goes on from there


@pytest.mark.slow
def test_four_in_a_row_are_not_five(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_batch(monkeypatch, {*range(10, 14), *range(15, 19)}, float("nan"))
    run(monkeypatch, *SHORT, "--trainer.max_epochs=1")
    assert skipped("cartpole") == 8


def test_a_gradient_that_stops_the_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison_gradient(monkeypatch, "actors.1.weight_mu", set(range(20, 30)))
    line = failure_of(monkeypatch, capsys, *SHORT)
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
