"""The learning half of the agent: updates, precision, checkpoints, and problems with known values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from bayes_rl import losses
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.bayes.kl import kl_divergence
from bayes_rl.errors import ConfigError
from bayes_rl.types import Batch, Transition
from bayes_rl.utils.settings import GROUPS
from tests.helpers.agents import (
    ACTIONS,
    EVERYTHING,
    EWC,
    FAMILIES,
    FEATURES,
    LOW_RANK,
    MEMBERS,
    NATURAL,
    EachUpdate,
    SampleData,
    Stream,
    equal,
    fit,
    gradients,
    make_batch,
    make_module,
    make_trainer,
)
from tests.helpers.options import merged

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


# ------------------------------------------------------------------ updates
@pytest.mark.parametrize("bayesian", ["none", "heads"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_ewc_penalty_has_its_whole_gradient_once_per_update(accumulated: int, bayesian: str) -> None:
    """The sum of both gradients by autograd, however many minibatches an update has."""
    module = make_module(EWC, network={"bayesian": bayesian})
    assert module.consolidator is not None
    anchors = {name: p.detach() + torch.randn(p.shape) for name, p in module.twin.named_parameters()}
    fisher = {name: torch.rand(p.shape) for name, p in module.twin.named_parameters()}
    module.consolidator.ewc.consolidate(anchors, fisher)
    batches, gradients = [make_batch() for _ in range(accumulated)], {}
    expected = copy.deepcopy(module)
    expected.trainer = make_trainer()
    torch.manual_seed(9)  # the same noise in both
    parts = [expected.training_step(batch, 0) / accumulated for batch in batches]
    (torch.stack(parts).sum() + expected.consolidator.penalty(expected.twin)).backward()

    def check(*_: Any, **__: Any) -> None:
        gradients.update({name: p.grad.clone() for name, p in module.twin.named_parameters()})

    module.guard.check = check  # type: ignore[method-assign]
    torch.manual_seed(9)
    fit(module, batches, accumulate_grad_batches=accumulated)
    assert gradients
    for name, parameter in expected.twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_gradient_scaler_does_not_scale_the_ewc_penalty_away(clip: float | None) -> None:
    """A step under a scale of 65536 is that without a scaler, where the penalty outweighs the loss."""
    steps = []
    for precision in (None, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))):
        torch.manual_seed(5)
        # With these values a step grows with the gradient.
        optimizer = {"actor_lr": 1e3, "critic_lr": 1e3, "adam_eps": 1e3}
        module = make_module(EWC, optimizer=optimizer, network={"bayesian": "none"})
        start = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
        anchors = {name: p + 100 for name, p in start.items()}
        module.consolidator.ewc.consolidate(anchors, {name: torch.ones_like(p) for name, p in anchors.items()})
        fit(module, [make_batch()], plugins=precision, gradient_clip_val=clip)
        steps.append(torch.cat([(p.detach() - start[name]).flatten() for name, p in module.twin.named_parameters()]))
    assert steps[0].min() > 1e-6
    # float16 has eleven bits, and the loss' own gradient is a hundredth of the whole; float32 of weights near 1.
    torch.testing.assert_close(*steps, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_moving_average_is_a_lerp_towards_the_newest_parameters(tau: float, settings: dict[str, Any]) -> None:
    module = make_module(settings, objective={"tau": tau}, optimizer={"critic_lr": 1e-2, "actor_lr": 1e-2})
    expected = {name: p.clone() for name, p in module.target_twin.named_parameters()}
    checks = []

    def follow(trainer: pl.Trainer, agent: VariationalActorCritic) -> None:
        for name, new in agent.twin.named_parameters():
            expected[name] = (1 - tau) * expected[name] + tau * new.detach()
        for name, average in agent.target_twin.named_parameters():
            torch.testing.assert_close(average.detach(), expected[name])
            checks.append(name)

    fit(module, [make_batch() for _ in range(4)], EachUpdate(follow))
    assert len(checks) == 4 * len(expected)
    assert module.objective.target == "ema"


def test_the_moving_average_starts_as_a_copy_and_other_has_none() -> None:
    module = make_module(objective={"target": "ema"})
    assert equal(dict(module.twin.named_parameters()), dict(module.target_twin.named_parameters()))
    assert make_module(objective={"target": "other"}).target_twin is None


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("settings", [{}, {"optimizer": {"weight_decay": 0.1}}, EWC, MEMBERS, EVERYTHING])
def test_update_pairs_random_leaves_the_other_pair_bitwise_unchanged(
    shared_trunk: bool, settings: dict[str, Any]
) -> None:
    """Each update improves one pair; neither Adam's momentum, weight decay nor EWC may move the other."""
    module = make_module(
        settings, objective={"update_pairs": "random", "target": "other"}, network={"shared_trunk": shared_trunk}
    )
    own = [{"actors.0.", "critics.0."}, {"actors.1.", "critics.1."}]
    if not shared_trunk:
        own[0] |= {"trunks.0.", "trunks.2."}
        own[1] |= {"trunks.1.", "trunks.3."}
    before = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
    chosen = []

    def compare(trainer: pl.Trainer, agent: VariationalActorCritic) -> None:
        now = {name: p.detach().clone() for name, p in agent.twin.named_parameters()}
        changed = {name for name, value in now.items() if not torch.equal(value, before[name])}
        chosen.append([pair for pair in range(2) if any(n.startswith(tuple(own[pair])) for n in changed)])
        before.update(now)
        assert ("likelihood.log_noise" in changed) == ("likelihood.log_noise" in now)  # whichever pair learns

    fit(module, [make_batch() for _ in range(16)], EachUpdate(compare))
    assert all(len(pairs) == 1 for pairs in chosen), f"pairs changed by each update: {chosen}"
    assert {pair for pairs in chosen for pair in pairs} == {0, 1}  # both get their turn


def test_update_pairs_both_changes_both_pairs() -> None:
    module = make_module(objective={"update_pairs": "both"}, network={"shared_trunk": False})
    before = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
    fit(module, [make_batch()])
    unchanged = {name for name, p in module.twin.named_parameters() if torch.equal(p, before[name])}
    assert unchanged == set()


# ------------------------------------------------------------------ precision
@FAMILIES
def test_a_bf16_mixed_update_keeps_heads_and_kl_in_float32(family: dict[str, Any]) -> None:
    seen: dict[str, set[torch.dtype]] = {"heads": set(), "trunk": set(), "kl": set()}
    module = make_module(family, network={"hidden_dim": 16, "shared_trunk": False})

    def heads(_: nn.Module, args: Any, output: Any) -> None:
        seen["heads"] |= {output.action_logits.dtype, output.q_values.dtype}
        seen["kl"].add(kl_divergence(module.twin).dtype)  # inside Lightning's autocast

    module.twin.register_forward_hook(heads)
    for layer in module.twin.trunks.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, output: seen["trunk"].add(output.dtype))
    before = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
    trainer = fit(module, [make_batch() for _ in range(3)], precision="bf16-mixed", log_every=1)
    assert seen == {"heads": {torch.float32}, "trunk": {torch.bfloat16}, "kl": {torch.float32}}
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert not any(torch.equal(p, before[name]) for name, p in module.twin.named_parameters())


def test_the_logged_kl_of_a_bf16_mixed_update_is_that_of_float32() -> None:
    module = make_module(network={"hidden_dim": 16})
    before = kl_divergence(module.twin).item()
    trainer = fit(module, [make_batch()], precision="bf16-mixed", log_every=1)
    assert trainer.callback_metrics["train/kl"].item() == pytest.approx(before, rel=1e-6)  # bf16: 4e-3


# ------------------------------------------------------------------ logging
def test_the_logged_loss_parts_are_logged_apart_with_the_frames_as_the_axis() -> None:
    module = make_module(EWC)
    batch = make_batch(num_data=321)._replace(frames=8888)
    logged = fit(module, [batch], log_every=1).callback_metrics
    for part in ("nll", "kl", "num_data", "temperature", "ewc_penalty", "kl_to_nll", "actor_loss", "elbo_loss"):
        assert f"train/{part}" in logged
    assert logged["step"].item() == 8888.0
    assert logged["train/num_data"].item() == 321.0
    expected = losses.negative_elbo(logged["train/nll"], logged["train/kl"], 321, 1.0)
    torch.testing.assert_close(logged["train/elbo_loss"], expected)
    assert module.frames == 8888


# ------------------------------------------------------------------ checkpoints
CHECKPOINTED = [
    {"objective": {"target": "ema"}},
    merged({"objective": {"target": "other"}, "network": {"shared_trunk": False}}, EWC),
    {
        "network": {"encoder": "minatar", "hidden_dim": 5},
        "observation_shape": (2, 8, 8),
        "pixel_scale": 1.0,
        "game": "breakout",
    },
    merged(EVERYTHING, {"exploration": "thompson", "network": {"bayesian": "all"}}),
    merged(NATURAL, {"exploration": "thompson"}),
    merged(
        MEMBERS,
        {"exploration": "both", "likelihood": {"family": "hl_gauss", "num_bins": 7, "value_range": (-2.0, 2.0)}},
    ),
]


@pytest.mark.parametrize("settings", CHECKPOINTED, ids=["ema", "other-ewc", "minatar", "low_rank", "ivon", "members"])
def test_a_checkpoint_alone_gives_the_same_agent(settings: dict[str, Any], tmp_path: Path) -> None:
    """Tensors and primitives only: `weights_only=True` loads it, and the module needs nothing else."""
    module = make_module(settings)
    shape = tuple(module.hparams.observation_shape)
    images = len(shape) == 3

    def observations(size: int) -> Tensor:
        return torch.randint(0, 2, (size, *shape), dtype=torch.uint8) if images else torch.randn(size, *shape)

    batches = [make_batch(observation=observations(6), next_observation=observations(6)) for _ in range(5)]
    trainer = fit(module, batches)
    path = tmp_path / "agent.ckpt"
    trainer.save_checkpoint(path)

    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["frames"] == 4
    loaded = VariationalActorCritic.load_from_checkpoint(path, weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert loaded.frames == module.frames
    assert equal(module.state_dict(), loaded.state_dict())
    assert module.state_dict().keys() == loaded.state_dict().keys()
    probe = observations(50)
    assert torch.equal(loaded.act(probe), module.act(probe))
    assert torch.equal(loaded.act_by_draw(probe, list(range(50))), module.act_by_draw(probe, list(range(50))))
    assert torch.equal(loaded.twin(probe).q_values, module.twin(probe).q_values)


@pytest.mark.parametrize(
    "family",
    [
        {},
        merged(EVERYTHING, {"objective": {"bootstrap": "greedy"}}),
        merged(NATURAL, {"objective": {"update_pairs": "both"}}),
    ],
    ids=["mean_field", "low_rank", "ivon"],
)
def test_a_resumed_fit_equals_an_uninterrupted_one(family: dict[str, Any], tmp_path: Path) -> None:
    """The weights' noise and draws, Adam's moments, the moving average, Fisher samples and anchors all continue."""
    settings = merged(EWC, {"objective": {"update_pairs": "random"}}, family)
    batches = [make_batch() for _ in range(10)]

    class Epoch(Stream):
        """Five batches an epoch, in order; resuming, Lightning opens the finished epoch once more and reads none."""

        def __init__(self, start: int) -> None:
            super().__init__(batches[start:])

        def __iter__(self) -> Iterator[Batch]:
            for _ in range(5):
                yield self.batches.pop(0)

        def __len__(self) -> int:
            return 5

    def run(epochs: int, start: int, ckpt_path: Path | None = None) -> tuple[VariationalActorCritic, pl.Trainer]:
        torch.manual_seed(11)
        module = make_module(settings)
        trainer = make_trainer(SaveAtTheEnd())
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(module, datamodule=SampleData(Epoch(start)), ckpt_path=ckpt_path)
        return module, trainer

    class SaveAtTheEnd(pl.Callback):
        """Saves where Lightning's own ModelCheckpoint does."""

        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"epoch_{trainer.current_epoch}.ckpt")

    whole, _ = run(2, 0)
    run(1, 0)
    torch.manual_seed(999)
    resumed, trainer = run(2, 5, tmp_path / "epoch_0.ckpt")
    assert trainer.global_step == 10
    assert equal(whole.state_dict(), resumed.state_dict())


# ------------------------------------------------------------------ learning, on problems with known values
COMBINATIONS = [(target, actor_loss) for target in ("other", "ema") for actor_loss in ("dpg", "cross_entropy")]


def learner(target: str, actor_loss: str, **settings: Any) -> VariationalActorCritic:
    return make_module(
        settings,
        network={"hidden_dim": 16},
        objective={"target": target, "actor_loss": actor_loss, "tau": 0.1},
        likelihood={"noise_std": 0.3},
        optimizer={"actor_lr": 1e-2, "critic_lr": 1e-2},
    )


@pytest.mark.parametrize(
    ("target", "actor_loss"),
    [
        pytest.param(*both, marks=() if both in (("ema", "cross_entropy"), ("other", "dpg")) else pytest.mark.slow)
        for both in COMBINATIONS
    ],
)
@pytest.mark.parametrize("shared_trunk", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_bandit_is_solved(target: str, actor_loss: str, shared_trunk: bool) -> None:
    """One state, terminal rewards [0, 1, 0]: Q is the reward of each action, and the best action is 1."""
    rewards = torch.tensor([0.0, 1.0, 0.0])
    action = torch.arange(ACTIONS).repeat(4)
    state = torch.ones(len(action), FEATURES)
    fields = {"observation": state, "next_observation": state, "action": action, "reward": rewards[action]}
    batch = make_batch(len(action), discount=0.0, num_data=10**6, **fields)
    module = learner(target, actor_loss, network={"shared_trunk": shared_trunk})
    fit(module, [batch] * 250)
    q_values = module.twin(state[:1]).q_values[:, 0].detach()
    assert (q_values - rewards).abs().max() < 0.05
    assert module.act(state[:1]).tolist() == [1]


@pytest.mark.parametrize(
    ("target", "actor_loss", "settings"),
    [
        *(pytest.param(*combination, {}, marks=pytest.mark.slow) for combination in COMBINATIONS[1:]),
        (*COMBINATIONS[0], {}),
        (
            "ema",
            "cross_entropy",
            merged(MEMBERS, {"network": {"prior_function_scale": 1.0}, "objective": {"bootstrap": "greedy"}}),
        ),
        pytest.param(
            "ema",
            "cross_entropy",
            merged(LOW_RANK, {"network": {"prior_function_scale": 1.0}, "objective": {"bootstrap": "greedy"}}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_values_are_carried_back_through_a_chain(target: str, actor_loss: str, settings: dict[str, Any]) -> None:
    """Two states. In s0 action 0 ends with 0.5 and action 1 leads to s1 with discount 0.9; in s1 action 0 ends with
    2 and action 1 with -1. So Q(s1) = [2, -1] and Q(s0) = [0.5, 0.9 * 2]: the smaller reward now is a trap.
    """
    s0, s1 = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    table = [(s0, 0, 0.5, 0.0, s0), (s0, 1, 0.0, 0.9, s1), (s1, 0, 2.0, 0.0, s1), (s1, 1, -1.0, 0.0, s1)] * 3
    columns = list(zip(*table, strict=True))
    transition = Transition(
        torch.stack(columns[0]),
        torch.tensor(columns[1]),
        torch.tensor(columns[2]),
        torch.tensor(columns[3]),
        torch.stack(columns[4]),
    )
    module = learner(target, actor_loss, observation_shape=(2,), num_actions=2, **settings)
    fit(module, [Batch(transition, 10**6, 4)] * 400)
    states = torch.stack([s0, s1])
    q_values = module.twin(states).q_values.mean(0).detach()
    assert (q_values - torch.tensor([[0.5, 1.8], [2.0, -1.0]])).abs().max() < 0.1
    assert module.act(states).tolist() == [1, 0]
    assert module.act_by_draw(states, [1, 2]).tolist() == [1, 0]


@pytest.mark.parametrize("group", GROUPS["model"])
def test_an_unknown_field_of_a_group_is_named_with_its_group(group: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--model\.{group}\.unknown: 1 is no option"):
        VariationalActorCritic(**{group: {"unknown": 1}})


# ------------------------------------------------------------------ one pair at random
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_penalty_counts_as_the_loss_does_where_one_pair_learns(accumulated: int, shared_trunk: bool) -> None:
    """Half of its gradient for a shared trunk, else as many parts as the pair has minibatches of the update."""
    rarely = {"consolidation": {"consolidate_every": 10**6}, "network": {"shared_trunk": shared_trunk}}
    module = make_module(EWC, rarely, {"objective": {"update_pairs": "random", "kl_temperature": 0.0}})
    assert module.consolidator is not None
    named = dict(module.twin.named_parameters())
    anchors = {name: p.detach() + torch.randn(p.shape) for name, p in named.items()}
    fisher = {name: 1e6 * torch.rand(p.shape) for name, p in named.items()}  # outweighs the loss
    module.consolidator.ewc.consolidate(anchors, fisher)
    module.zero_grad()
    module.consolidator.penalty(module.twin).backward()
    whole = gradients(module.twin)
    start = {name: p.detach().clone() for name, p in named.items()}
    found: list[dict[str, Tensor]] = []
    module.guard.check = lambda *_, **__: found.append(gradients(module.twin))  # type: ignore[method-assign]
    counts: list[tuple[int, int]] = []
    original = module.on_before_optimizer_step

    def count(optimizer: torch.optim.Optimizer) -> None:
        counts.append((module._trained[0, 0], module._trained[1, 0]))
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(start[name])
        original(optimizer)

    module.on_before_optimizer_step = count  # type: ignore[method-assign]
    fit(module, [make_batch() for _ in range(8 * accumulated)], accumulate_grad_batches=accumulated)
    assert len(found) == 8
    assert {pair for pairs in counts for pair in range(2) if pairs[pair]} == {0, 1}
    trunks = {0: 0, 1: 1, 2: 0, 3: 1}
    for pairs, now in zip(counts, found, strict=True):
        assert sum(pairs) == accumulated
        for name, gradient in now.items():
            kind, number = name.split(".")[:2]
            pair = trunks[int(number)] if kind == "trunks" else int(number)
            part = 0.5 if kind == "trunks" and shared_trunk else pairs[pair] / accumulated
            torch.testing.assert_close(gradient, part * whole[name], rtol=1e-5, atol=50.0, msg=name)
