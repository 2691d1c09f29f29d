"""Schedules of the step sizes."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl.agent.optimizer import align_state, scheduled_share, set_rates
from bayes_rl.agent.settings import OptimizerSettings
from bayes_rl.errors import ConfigError
from tests.helpers.agents import fit, make_batch, make_module

CASES = [
    ({}, 10**9, 1.0),
    ({"warmup_frames": 200}, 50, 0.25),
    ({"warmup_frames": 200}, 200, 1.0),
    ({"schedule": "linear", "decay_frames": 100}, 0, 1.0),
    ({"schedule": "linear", "decay_frames": 100}, 25, 0.75),
    ({"schedule": "linear", "decay_frames": 100, "final_share": 0.2}, 50, 0.6),
    ({"schedule": "linear", "decay_frames": 100, "final_share": 0.2}, 10**6, 0.2),
    ({"schedule": "linear", "decay_frames": 100, "warmup_frames": 40}, 20, 0.5),
    ({"schedule": "linear", "decay_frames": 100, "warmup_frames": 40}, 90, 0.5),
    ({"schedule": "linear", "decay_frames": 100, "warmup_frames": 40, "hold_frames": 60}, 100, 1.0),
    ({"schedule": "linear", "decay_frames": 100, "warmup_frames": 40, "hold_frames": 60}, 150, 0.5),
    ({"schedule": "cosine", "decay_frames": 100}, 50, 0.5),
    ({"schedule": "cosine", "decay_frames": 100}, 25, 0.5 * (1 + math.cos(math.pi / 4))),
    ({"schedule": "cosine", "decay_frames": 100, "final_share": 0.1}, 100, 0.1),
]


@pytest.mark.parametrize(("settings", "frames", "share"), CASES)
def test_the_schedule_is_the_closed_form(settings: dict[str, float], frames: int, share: float) -> None:
    assert scheduled_share(OptimizerSettings(**settings), frames) == pytest.approx(share, abs=1e-12)  # type: ignore[arg-type]


def test_both_step_sizes_follow_the_schedule() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in ("actor", "critic", "critic")]
    optimizer = torch.optim.AdamW(groups)
    settings = OptimizerSettings(actor_lr=0.4, critic_lr=0.8, schedule="linear", decay_frames=100)
    set_rates(optimizer, settings, 25)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.6, 0.6])


def test_averages_of_another_layout_are_those_of_their_parameter_after_alignment() -> None:
    """The oracle is the step that is not fused, which reads both by their indices."""

    def trained(fused: bool, aligned: bool) -> tuple[Tensor, torch.optim.AdamW]:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5, 3).t())
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
        for _ in range(2):
            parameter.grad = torch.randn(5, 3).t()
            optimizer.step()
            state = optimizer.state[parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].contiguous()
            if aligned:
                align_state(optimizer)
        return parameter.detach(), optimizer

    expected, _ = trained(fused=False, aligned=False)
    found, optimizer = trained(fused=True, aligned=True)
    torch.testing.assert_close(found, expected)
    (state,) = optimizer.state.values()
    assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == found.stride() == (1, 3)
    assert not torch.allclose(trained(fused=True, aligned=False)[0], expected)  # else there would be nothing to align


class OtherLayout(pl.Callback):
    """Averages of the table in the layout of a linear layer, as of a checkpoint of version 0.1.0."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weight = pl_module.twin.trunks[0].layers[0].weight  # type: ignore[union-attr,index]
        averages = {"exp_avg": torch.zeros(weight.shape), "exp_avg_sq": torch.ones(weight.shape)}
        trainer.optimizers[0].state[weight] = {"step": torch.tensor(1.0), **averages}


def test_a_fit_begins_with_averages_in_the_layout_of_their_parameters() -> None:
    module = make_module(observation_shape=(1,), num_categories=6)
    batch = make_batch(observation=torch.randint(6, (6, 1)), next_observation=torch.randint(6, (6, 1)))
    trainer = fit(module, [batch], OtherLayout())
    weight = module.twin.trunks[0].layers[0].weight
    assert weight.stride() != (6, 1)
    assert trainer.optimizers[0].state[weight]["exp_avg"].stride() == weight.stride()


@pytest.mark.parametrize("key", ["warmup_frames", "hold_frames", "decay_frames", "final_share", "schedule"])
def test_a_schedule_that_cannot_work_is_refused(key: str) -> None:
    value = {"warmup_frames": -1, "hold_frames": -1, "decay_frames": -1, "final_share": 1.5, "schedule": "cosine"}[key]
    with pytest.raises(ConfigError) as raised:
        OptimizerSettings(**{key: value})  # type: ignore[arg-type]
    assert raised.value.key == f"model.optimizer.{key}"
