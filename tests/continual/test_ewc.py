"""Elastic Weight Consolidation against the formulas, and of a twin with all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_rl import losses
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.continual.base import TaskSamples
from bayes_rl.continual.ewc import EWC, QuadraticPenalties, add_penalty_gradients, sum_of_quadratics
from bayes_rl.continual.fisher import Parameters
from bayes_rl.networks.actor_critic import TwinActorCritic
from tests.helpers.twins import (
    assert_same,
    fisher_of,
    make_consolidator,
    make_samples,
    make_twin,
    registered,
    seeded,
)


def many_tensors(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, anchors and Fishers: a scalar, a vector, a kernel with channels last, several blocks, and long rows."""
    shapes: list[tuple[int, ...]] = [(), (7,), (6, 4, 3, 3), (700, 401), (3, 1000, 70), (2, 300_000)]
    tensors = [[torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(3)]
    tensors = [[t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in ts] for ts in tensors]
    return tensors[0], tensors[1], [f.square() for f in tensors[2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_added_gradient_is_that_of_the_plain_formula(dtype: torch.dtype) -> None:
    weights, anchors, fishers = many_tensors(dtype)
    gradients = []
    for fast in (True, False):
        leaves = [w.clone().requires_grad_() for w in weights]
        loss = torch.stack([(leaf.square().sum() + leaf.sum()) for leaf in leaves]).sum()
        if not fast:
            parts = [losses.quadratic_penalty(*waf) for waf in zip(leaves, anchors, fishers, strict=True)]
            loss = loss + 3.0 * torch.stack(parts).sum()
        loss.backward()
        if fast:
            add_penalty_gradients(leaves, anchors, fishers, 3.0)
        gradients.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.stride() == theirs.stride()  # channels last, as the network's own
        exact = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-14, "atol": 1e-14}
        torch.testing.assert_close(ours, theirs, **exact)


def test_only_gradients_that_are_there_are_added_to_and_nothing_else_is_changed() -> None:
    weights, anchors, fishers = many_tensors(torch.float32)
    before = [t.clone() for t in (*weights, *anchors, *fishers)]
    weights[1].requires_grad_().sum().backward()
    add_penalty_gradients(weights, anchors, fishers, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (*weights, *anchors, *fishers), strict=True))
    torch.testing.assert_close(weights[1].grad, 1 + 2 * fishers[1] * (weights[1].detach() - anchors[1]))
    assert all(w.grad is None for i, w in enumerate(weights) if i != 1)
    with pytest.raises(ValueError, match="shapes must be equal"):
        add_penalty_gradients([torch.zeros(3)], [torch.zeros(1)], [torch.zeros(3)], 1.0)


def test_two_quadratics_are_one_and_a_constant() -> None:
    """Completing the square by hand: 3 (w - 1)^2 + 1 (w - 5)^2 = 4 (w - 2)^2 + 12."""
    one, two = torch.tensor([3.0, 0.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 0.0])
    total, anchor, constant = sum_of_quadratics(one, torch.ones(4), two, torch.full((4,), 5.0))
    assert total.tolist() == [4.0, 2.0, 2.0, 0.0]
    assert anchor.tolist() == [2.0, 5.0, 1.0, 5.0]
    assert constant.item() == 12.0


def test_where_nothing_was_protected_the_common_anchor_is_the_new_one_to_the_bit() -> None:
    fisher, new_fisher = torch.zeros(1000), torch.rand(1000)
    anchor, new_anchor = torch.randn(2, 1000)
    total, merged, constant = sum_of_quadratics(fisher, anchor, new_fisher, new_anchor)
    assert torch.equal(merged, new_anchor)
    assert torch.equal(total, new_fisher)
    assert constant.item() == 0.0


class EveryTask:
    """The slow twin: keeps each task's anchor and Fisher, and adds up the plain formula."""

    def __init__(self, ewc_lambda: float) -> None:
        self.ewc_lambda = ewc_lambda
        self.tasks: list[tuple[Parameters, Parameters]] = []

    def penalty(self, parameters: Parameters) -> Tensor:
        parts = [losses.quadratic_penalty(parameters[n], a[n], f[n]) for a, f in self.tasks for n in a]
        return self.ewc_lambda * torch.stack(parts).sum()


def make_ewc(ewc_lambda: float = 3.0) -> tuple[QuadraticPenalties, Parameters, Parameters]:
    """A penalty with one task, its anchor and its Fisher, float64."""
    anchor = {"a.weight": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    fisher = {name: torch.rand_like(p) for name, p in anchor.items()}
    ewc = QuadraticPenalties(anchor, ewc_lambda)
    ewc.consolidate(anchor, fisher)
    return ewc, anchor, fisher


def moved(anchor: Parameters, direction: Parameters, by: float) -> Parameters:
    return {name: p + by * direction[name] for name, p in anchor.items()}


def value_and_gradient(penalty: Callable[[Parameters], Tensor], at: Parameters) -> tuple[Tensor, Parameters]:
    leaves = {name: p.clone().requires_grad_() for name, p in at.items()}
    value = penalty(leaves)
    value.backward()
    return value.detach(), {name: p.grad for name, p in leaves.items() if p.grad is not None}


def test_penalty_is_zero_with_zero_gradient_at_the_anchor() -> None:
    ewc, anchor, _ = make_ewc()
    value, gradient = value_and_gradient(ewc.penalty, anchor)
    assert value.item() == 0.0
    assert_same(gradient, {name: torch.zeros_like(p) for name, p in anchor.items()}, rtol=0.0, atol=0.0)


def test_before_the_first_consolidation_the_penalty_is_zero_and_touches_no_gradient() -> None:
    parameters = {"w": torch.randn(3, requires_grad=True)}
    ewc = QuadraticPenalties(parameters, 10.0)
    penalty = ewc.penalty(parameters)
    assert penalty.item() == 0.0
    assert penalty.shape == ()
    assert not penalty.requires_grad
    assert ewc.consolidations.item() == 0
    assert not ewc.active


def test_penalty_by_hand_and_exactly_quadratic() -> None:
    ewc, anchor, fisher = make_ewc(ewc_lambda=3.0)
    direction = {name: torch.randn_like(p) for name, p in anchor.items()}
    expected = 1.5 * sum((fisher[name] * direction[name].square()).sum() for name in anchor)
    for by in (1.0, -1.0, 0.5, 4.0):
        value, gradient = value_and_gradient(ewc.penalty, moved(anchor, direction, by))
        torch.testing.assert_close(value, by**2 * expected, rtol=1e-12, atol=0.0)
        force = {name: 3.0 * by * fisher[name] * direction[name] for name in anchor}
        assert_same(gradient, force, rtol=1e-12, atol=1e-15)


def test_lambda_scales_the_penalty() -> None:
    ewc, anchor, fisher = make_ewc(ewc_lambda=1.0)
    strong = QuadraticPenalties(anchor, 250.0)
    strong.consolidate(anchor, fisher)
    for penalty in (ewc, strong):
        penalty.consolidate(moved(anchor, fisher, 1.0), fisher)
    parameters = moved(anchor, fisher, 3.0)
    torch.testing.assert_close(strong.penalty(parameters), 250.0 * ewc.penalty(parameters), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_penalty_is_the_sum_over_all_tasks(tasks: int) -> None:
    """In value and gradient, though two tensors hold all of them; some weights matter to no task, or to one."""
    shapes = {"trunk": (50, 7), "head.0": (9,), "head.1": (9,)}
    parameters = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    ewc = QuadraticPenalties(parameters, 0.7)
    memory = sum(b.nbytes for b in ewc.buffers())
    slow = EveryTask(0.7)
    for task in range(tasks):
        here = {name: p + torch.randn_like(p) for name, p in parameters.items()}
        fisher = {name: torch.rand_like(p).pow(4) * (torch.rand_like(p) < 0.7) for name, p in parameters.items()}
        for head in range(2):
            fisher[f"head.{head}"] *= float(head == task % 2)
        ewc.consolidate(here, fisher)
        slow.tasks.append((here, fisher))
        if task < 2:  # a head that one task alone has is anchored where that task left it
            own = fisher[f"head.{task}"] > 0
            assert torch.equal(ewc.anchor(f"head.{task}")[own], here[f"head.{task}"][own])
    assert ewc.consolidations.item() == tasks
    assert sum(b.nbytes for b in ewc.buffers()) == memory
    for _ in range(3):
        at = {name: p + torch.randn_like(p) for name, p in parameters.items()}
        ours, theirs = (value_and_gradient(p.penalty, at) for p in (ewc, slow))
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0.0)
        assert_same(ours[1], theirs[1], rtol=1e-10, atol=1e-12)


def test_online_ewc_decays_the_fisher_and_keeps_the_latest_anchor() -> None:
    """F* = gamma F* + F, by hand: 0.5 (0.5 * 8 + 2) + 1 = 4; the penalty is (3 / 2) * 4 * (w - w_3)^2."""
    start = {"w": torch.zeros(1, dtype=torch.float64)}
    ewc = QuadraticPenalties(start, 3.0, decay=0.5)
    for fisher, anchor in ((8.0, 1.0), (2.0, -2.0), (1.0, 5.0)):
        here = {"w": torch.full((1,), anchor, dtype=torch.float64)}
        ewc.consolidate(here, {"w": torch.full((1,), fisher, dtype=torch.float64)})
        value, gradient = value_and_gradient(ewc.penalty, here)
        assert value.item() == 0.0  # at every task's end, not at the first only
        assert not gradient["w"].any()
    value, gradient = value_and_gradient(ewc.penalty, {"w": torch.full((1,), 7.0, dtype=torch.float64)})
    assert value.item() == 1.5 * 4.0 * 4.0
    assert gradient["w"].item() == 3.0 * 4.0 * 2.0
    assert ewc.consolidations.item() == 3


@pytest.mark.parametrize(("decay", "fisher"), [(0.0, 2.0), (1.0, 10.0)])
def test_the_ends_of_the_decay_forget_all_or_nothing(decay: float, fisher: float) -> None:
    ewc = QuadraticPenalties({"w": torch.zeros(1)}, 1.0, decay)
    for value in (8.0, 2.0):
        ewc.consolidate({"w": torch.ones(1)}, {"w": torch.full((1,), value)})
    assert ewc.fisher("w").item() == fisher


def test_the_anchor_is_a_copy_of_the_parameters() -> None:
    parameters = {"w": torch.ones(3)}
    ewc = QuadraticPenalties(parameters, 2.0)
    ewc.consolidate(parameters, {"w": torch.ones(3)})
    parameters["w"] += 1.0  # in place, as an optimizer does
    assert ewc.penalty(parameters).item() == 3.0  # (2 / 2) * 3 * 1^2


def test_state_dict_round_trip_keeps_everything() -> None:
    ewc, anchor, fisher = make_ewc()
    ewc.consolidate(moved(anchor, fisher, 1.0), fisher)
    state = {key: value.clone() for key, value in ewc.state_dict().items()}
    zeros = {name: torch.zeros_like(p) for name, p in anchor.items()}
    loaded = QuadraticPenalties(zeros, 3.0)
    loaded.penalty(anchor)  # asked before it is loaded
    loaded.load_state_dict(state)
    parameters = moved(anchor, fisher, 1.5)
    assert torch.equal(loaded.penalty(parameters), ewc.penalty(parameters))
    assert loaded.penalty(parameters).item() > 0
    assert loaded.consolidations.item() == 2
    assert loaded.constant.item() > 0
    assert not list(ewc.parameters())  # buffers: no optimizer may train them
    fresh = QuadraticPenalties(zeros, 3.0)
    loaded.load_state_dict(fresh.state_dict())
    assert not loaded.active


def test_a_missing_parameter_and_a_changed_shape_are_errors() -> None:
    ewc, anchor, fisher = make_ewc()
    with pytest.raises(KeyError):
        ewc.consolidate({"b": anchor["b"]}, fisher)
    with pytest.raises(ValueError, match="shapes must be equal"):
        ewc.consolidate({**anchor, "b": anchor["b"][:1]}, fisher)
    with pytest.raises(ValueError, match="shapes must be equal"):
        ewc.penalty({**anchor, "b": anchor["b"][:1]})


@pytest.mark.parametrize("protect", ["actor", "critic", "both"])
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("bayesian", ["heads", "all", "none"])
@pytest.mark.parametrize("posterior", ["mean_field", "low_rank"])
@pytest.mark.parametrize("method", ["ewc", "vcl"])
def test_what_is_protected(protect: str, shared_trunk: bool, bayesian: str, posterior: str, method: str) -> None:
    """Means and deterministic parameters, with `vcl` the latter alone; never variances, factors, priors or noise."""
    scale = 1.0 if posterior == "low_rank" and bayesian != "none" else 0.0
    twin = make_twin("mlp", shared_trunk, bayesian, posterior, "learned_gaussian", scale)
    trunks = {"actor": ["trunks.0.", "trunks.1."], "critic": ["trunks.2.", "trunks.3."]}
    kinds = ["actor", "critic"] if protect == "both" else [protect]
    own = [f"{kind}s." for kind in kinds]
    own += ["trunks.0."] if shared_trunk else [trunk for kind in kinds for trunk in trunks[kind]]
    bayesian_names = {
        f"{layer}.{part}"
        for layer in bayesian_layers(twin)
        for part in ("weight_mu", "weight_log_var", "weight_factor")
        if part != "weight_mu" or method == "vcl"
    }
    named = dict(twin.named_parameters())
    expected = {name for name in named if name.startswith(tuple(own))} - bayesian_names
    consolidator = make_consolidator(twin, method=method, protected_networks=protect)
    assert set(consolidator.ewc.names) == expected
    ours = consolidator.protected(twin)
    assert set(ours) == expected
    assert all(p is named[name] for name, p in ours.items())
    assert not list(consolidator.parameters())  # buffers: no optimizer may train them


@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
def test_the_penalty_is_zero_at_the_anchor_and_pulls_back_to_it(likelihood: str) -> None:
    twin = make_twin(likelihood=likelihood)
    consolidator = make_consolidator(twin, 3.0)
    consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    penalty = consolidator.penalty(twin)
    penalty.backward()
    assert penalty.item() == 0.0
    assert not any(p.grad.any() for p in twin.parameters() if p.grad is not None)

    anchor = {name: p.detach().clone() for name, p in twin.named_parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    penalty = consolidator.penalty(twin)
    fisher, here = fisher_of(consolidator), dict(twin.named_parameters())
    expected = sum(1.5 * (fisher[name] * (here[name] - anchor[name]).square()).sum() for name in fisher)
    torch.testing.assert_close(penalty, expected)
    assert penalty.item() > 0
    penalty.backward()
    for name, parameter in here.items():
        if name in fisher:
            force = 3.0 * fisher[name] * (parameter.detach() - anchor[name])
            torch.testing.assert_close(parameter.grad, force, rtol=1e-4, atol=1e-6)
        else:
            assert parameter.grad is None


def step(twin: TwinActorCritic, consolidator: EWC | None) -> list[Tensor | None]:
    """Gradients of an update that draws its weights from the global generator."""
    twin.zero_grad()
    twin(torch.ones(5, 4), "sample").q_values.square().mean().backward()
    if consolidator is not None:
        consolidator.add_gradients(twin)
    return [p.grad for p in twin.parameters()]


@pytest.mark.parametrize("settings", [{"ewc_lambda": 0.0}, {"method": "none", "ewc_lambda": None}])
def test_without_strength_training_is_fine_tuning_to_the_bit(settings: dict[str, Any]) -> None:
    twin = make_twin()
    samples = make_samples(twin)
    state = torch.get_rng_state()
    plain = step(twin, None)
    torch.set_rng_state(state)
    consolidator = make_consolidator(twin, **settings)
    consolidator.end_task(twin, TaskSamples(*samples, seeded()))
    for ours, theirs in zip(step(twin, consolidator), plain, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or torch.equal(ours, theirs)
    assert consolidator.penalty(twin).item() == 0.0
    assert not consolidator.active
    assert consolidator.memory_bytes < 16


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_consolidation_leaves_networks_gradients_and_the_global_generator_alone(fisher: str) -> None:
    twin = make_twin("minatar", bayesian="all", posterior="low_rank", prior_function_scale=1.0, likelihood="hl_gauss")
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    samples, state, generator = make_samples(twin), torch.get_rng_state(), seeded()
    consolidator = make_consolidator(twin, fisher=fisher)
    consolidator.end_task(twin, TaskSamples(*samples, generator))
    consolidator.penalty(twin)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(generator.get_state(), seeded().get_state())
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert all(p.grad is None for p in twin.parameters())
    assert all(isinstance(p, nn.Parameter) for p in twin.parameters())
    assert len(bayesian_layers(twin)) == 6


def test_vcl_makes_the_posterior_the_prior_and_other_methods_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TwinActorCritic] = []
    monkeypatch.setattr(TwinActorCritic, "become_prior", lambda twin, task: seen.append(twin))
    for method, ewc_lambda, handed in (
        ("vcl", 1.0, True),
        ("vcl", 0.0, True),
        ("ewc", 1.0, False),
        ("none", None, False),
    ):
        twin = make_twin()
        consolidator = make_consolidator(twin, ewc_lambda, method)
        consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
        assert seen == [twin] * handed
        assert (
            "consolidations" not in consolidator.state_dict() if method == "none" else consolidator.ewc.consolidations
        )
        seen.clear()


def test_two_tasks_of_a_twin_add_up() -> None:
    twin = make_twin("minatar")
    consolidator, slow = make_consolidator(twin, 2.0), EveryTask(2.0)
    for task in range(2):
        samples = make_samples(twin)
        consolidator.end_task(twin, TaskSamples(*samples, seeded(task)))
        names = consolidator.protected(twin)
        slow.tasks.append(({n: p.detach().clone() for n, p in names.items()}, registered(twin, samples, task)))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    penalty = consolidator.penalty(twin)
    torch.testing.assert_close(penalty, slow.penalty(consolidator.protected(twin)), rtol=1e-4, atol=0.0)
    assert penalty.item() > 0


def test_a_strong_penalty_holds_the_networks_at_the_anchor() -> None:
    """The same updates move protected weights less; weights with a large Fisher hardly at all."""
    distances = {}
    for ewc_lambda in (1e-6, 1e4):
        torch.manual_seed(6)
        twin = make_twin()
        consolidator = make_consolidator(twin, ewc_lambda)
        consolidator.end_task(twin, TaskSamples(*make_samples(twin, 100), seeded()))
        anchor = {name: p.detach().clone() for name, p in twin.named_parameters()}
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
        for _ in range(30):
            output = twin(torch.randn(16, 4))
            loss = (output.q_values - 1).square().mean() + output.action_logits.square().mean()
            optimizer.zero_grad()
            loss.backward()
            consolidator.add_gradients(twin)
            optimizer.step()
        fisher, here = fisher_of(consolidator), dict(twin.named_parameters())
        distances[ewc_lambda] = sum((fisher[n] * (here[n].detach() - anchor[n]).square()).sum() for n in fisher)
    assert distances[1e4] < 0.1 * distances[1e-6]


def test_the_state_of_a_consolidator_is_loaded_into_a_fresh_one() -> None:
    twin = make_twin("minatar")
    ours, fresh = make_consolidator(twin), make_consolidator(twin)
    ours.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    fresh.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert fresh.penalty(twin).item() == ours.penalty(twin).item() > 0


def test_a_process_goes_on_observing_and_counts_in_no_share() -> None:
    arguments = ("mlp", True, "gaussian_process", "members", "gaussian", 1.0)
    plain, twin = make_twin("mlp", bayesian="none"), make_twin(*arguments)
    consolidator, of_plain = make_consolidator(twin, 400.0), make_consolidator(plain, 400.0)
    assert set(consolidator.ewc.names) == set(of_plain.ewc.names)
    assert consolidator.describe() == of_plain.describe()


def test_memory_and_description() -> None:
    twin = make_twin("mlp", bayesian="none")
    consolidator = make_consolidator(twin, 400.0, protected_networks="critic")
    # Trunk 4 -> 6 -> 6 with two LayerNorms, two heads 6 -> 3.
    weights = (4 * 6 + 6 + 12) + (6 * 6 + 6 + 12) + 2 * (6 * 3 + 3)
    assert consolidator.memory_bytes == 2 * 4 * weights + 4 + 8  # and the constant, and the counter
    share = f"{100 * weights / (weights + 2 * (6 * 3 + 3)):.1f} % of all weights"
    assert consolidator.describe() == (
        f"consolidation: ewc, lambda 400, protects {weights} weights of the critics ({share}), 0.0 MiB"
    )
    assert make_consolidator(twin, 0.0).describe() == "consolidation: ewc, no penalty"
    large = QuadraticPenalties({"w": torch.zeros(2**18)}, 1.0)
    consolidator.ewc = large
    assert "protects 262,144 weights" in consolidator.describe()
    assert "2.0 MiB" in consolidator.describe()
