"""Elastic Weight Consolidation against closed forms, slow loops of per-sample gradients, and a twin with all tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_rl import losses
from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood, sampled_log_prob
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual import fisher as fisher_room
from bayes_rl.continual.base import METHODS, TaskSamples
from bayes_rl.continual.ewc import EWC, ElasticWeightConsolidation, add_penalty_gradients, sum_of_quadratics
from bayes_rl.continual.fisher import Parameters, fisher_diagonal, network_score, normalised, prefixes, stratified
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.errors import ConfigError
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory

NOISE_STD = 0.5
SAMPLES = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chunked(samples: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(s.split(size) for s in samples), strict=True))


def assert_same(ours: Parameters, theirs: Parameters, rtol: float, atol: float) -> None:
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=atol, msg=(name + ": {}").format)


# ------------------------------------------------------------------ settings
BAD = [
    ("method", "ewcc", "model.consolidation", "'ewc'"),
    ("ewc_lambda", -1.0, "model.ewc_lambda", "-1.0"),
    ("ewc_lambda", float("nan"), "model.ewc_lambda", "nan"),
    ("ewc_lambda", float("inf"), "model.ewc_lambda", "inf"),
    ("protected_networks", "critics", "model.protect", "'critic'"),
    ("fisher", "True", "model.fisher", "'true'"),
    ("fisher_samples", 0, "model.fisher_samples", "0"),
    ("fisher_norm", "max", "model.fisher_norm", "mean"),
    ("online_decay", -0.1, "model.online_decay", "-0.1"),
    ("online_decay", 1.1, "model.online_decay", "1.1"),
    ("online_decay", float("nan"), "model.online_decay", "nan"),
]


@pytest.mark.parametrize(("name", "value", "key", "said"), BAD)
def test_a_setting_that_cannot_work_is_named(name: str, value: Any, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        ConsolidationSettings(**{name: value})
    assert error.value.key == key
    assert said in str(error.value)


def test_the_ends_of_the_ranges_are_allowed_and_settings_are_frozen() -> None:
    for method in ("none", "ewc", "online_ewc", "vcl"):
        settings = ConsolidationSettings(method, 0.0, "actor", "empirical", 1, "mean", 0.0)
    assert ConsolidationSettings(online_decay=1.0).fisher_samples == 2000
    with pytest.raises(AttributeError):
        settings.ewc_lambda = 1.0  # type: ignore[misc]


def test_which_networks_are_protected() -> None:
    networks = {p: ConsolidationSettings(protected_networks=p).networks() for p in ("actor", "critic", "both")}
    assert networks["actor"] == [("actor", 0), ("actor", 1)]
    assert networks["critic"] == [("critic", 0), ("critic", 1)]
    assert networks["both"] == networks["actor"] + networks["critic"]


# ------------------------------------------------------------------ Fisher in closed form
def linear_score(parameters: Parameters, sample: tuple[Tensor, ...]) -> Tensor:
    """log N(y | w . x + b, NOISE_STD^2) up to a constant."""
    x, y = sample
    return -0.5 * ((y - parameters["w"] @ x - parameters["b"]) / NOISE_STD).square()


def linear_problem(samples: int) -> tuple[Parameters, tuple[Tensor, Tensor]]:
    """Parameters and data whose y is drawn from the model itself, float64."""
    parameters = {"w": torch.randn(3, dtype=torch.float64), "b": torch.randn((), dtype=torch.float64)}
    x = torch.randn(samples, 3, dtype=torch.float64)
    y = x @ parameters["w"] + parameters["b"] + NOISE_STD * torch.randn(samples, dtype=torch.float64)
    return parameters, (x, y)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_fisher_of_a_linear_gaussian_model_has_the_closed_form_for_every_chunk_size(size: int) -> None:
    """The score is x (y - w . x) / noise^2, so the diagonal is the mean of its square."""
    parameters, (x, y) = linear_problem(SAMPLES)
    fisher = fisher_diagonal(linear_score, parameters, chunked((x, y), size))
    residual = (y - x @ parameters["w"] - parameters["b"]) / NOISE_STD**2
    torch.testing.assert_close(fisher["w"], (x * residual[:, None]).square().mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(fisher["b"], residual.square().mean(), rtol=1e-12, atol=0.0)


def test_fisher_is_the_expectation_of_x_squared_over_the_noise_variance() -> None:
    """For y drawn from the model E[score^2] = x^2 / noise^2; Monte Carlo within 4 standard errors."""
    samples = 20_000
    parameters, (x, y) = linear_problem(samples)
    fisher = fisher_diagonal(linear_score, parameters, chunked((x, y), 1000))
    exact = x.square().mean(0) / NOISE_STD**2
    # Given x, score^2 = (x^2 / noise^2) chi^2_1, with variance 2 x^4 / noise^4.
    standard_error = (2 * x.pow(4).mean(0) / NOISE_STD**4 / samples).sqrt()
    assert ((fisher["w"] - exact).abs() < 4 * standard_error).all()


def test_fisher_is_not_the_square_of_the_mean_gradient() -> None:
    """Defect 7 of the original: the gradient of a batch, squared, vanishes as 1 / batch size."""
    parameters, (x, y) = linear_problem(SAMPLES)
    fisher = fisher_diagonal(linear_score, parameters, chunked((x, y), SAMPLES))
    residual = (y - x @ parameters["w"] - parameters["b"]) / NOISE_STD**2
    wrong = (x * residual[:, None]).mean(0).square()
    assert (fisher["w"] > 4 * wrong).all()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_fisher_of_a_softmax_model_has_the_closed_form(size: int) -> None:
    """Logits W x + b: F(W_aj) = p_a (1 - p_a) x_j^2, exact where M stratified numbers meet multiples of 1 / M."""
    counts = torch.tensor([5, 0, 30, 29], dtype=torch.float64)  # of 64; one class has next to no probability
    probs = counts.clamp_min(1e-300) / SAMPLES
    x = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    weight = torch.randn(4, 3, dtype=torch.float64)
    parameters = {"weight": weight, "bias": probs.log() - weight @ x}

    def score(p: Parameters, sample: tuple[Tensor, ...]) -> Tensor:
        return sampled_log_prob(p["weight"] @ sample[0] + p["bias"], sample[1])

    samples = (x.expand(SAMPLES, 3), stratified(SAMPLES, seeded()))
    fisher = fisher_diagonal(score, parameters, chunked(samples, size))
    expected = probs * (1 - probs)
    torch.testing.assert_close(fisher["bias"], expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(fisher["weight"], expected[:, None] * x.square(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_stratified_numbers_fill_every_interval_once_in_random_order(count: int) -> None:
    u = stratified(count, seeded(3))
    assert u.dtype == torch.float64
    assert torch.equal((u * count).floor().sort().values, torch.arange(count, dtype=torch.float64))
    assert ((u >= 0) & (u < 1)).all()
    assert torch.equal(u, stratified(count, seeded(3)))
    if count == 1000:
        assert not torch.equal(u, u.sort().values)
        within = u * count % 1
        # Uniform: mean 1/2 with variance 1/12 / count.
        assert abs(within.mean().item() - 0.5) < 4 * (1 / 12 / count) ** 0.5
        assert within.std().item() == pytest.approx(12**-0.5, rel=0.1)


def test_a_class_is_drawn_by_the_inverse_of_the_distribution_function() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()
    for u, drawn in [(0.0, 0), (0.19, 0), (0.21, 2), (0.69, 2), (0.71, 3), (1.0, 3)]:
        log_prob = sampled_log_prob(logits, torch.tensor(u))
        torch.testing.assert_close(log_prob, logits[drawn])
    batch = sampled_log_prob(logits.expand(2, 4), torch.tensor([0.1, 0.5], dtype=torch.float64))
    torch.testing.assert_close(batch, logits[[0, 2]])
    with pytest.raises(ValueError, match="shapes must be equal"):
        sampled_log_prob(logits.expand(2, 4), torch.tensor(0.5))


def test_a_normalised_fisher_has_mean_one_over_all_weights() -> None:
    fisher = {"a": torch.rand(3, 2), "b": 50 * torch.rand(5)}
    ours = normalised(fisher)
    assert torch.cat([f.flatten() for f in ours.values()]).mean().item() == pytest.approx(1.0, rel=1e-6)
    torch.testing.assert_close(ours["a"][0, 0] / ours["b"][3], fisher["a"][0, 0] / fisher["b"][3])
    nothing = {"a": torch.zeros(3)}
    assert torch.equal(normalised(nothing)["a"], nothing["a"])


# ------------------------------------------------------------------ the quadratic, fast and slow
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


# ------------------------------------------------------------------ tasks
class EveryTask:
    """The slow twin: keeps each task's anchor and Fisher, and adds up the plain formula."""

    def __init__(self, ewc_lambda: float) -> None:
        self.ewc_lambda = ewc_lambda
        self.tasks: list[tuple[Parameters, Parameters]] = []

    def penalty(self, parameters: Parameters) -> Tensor:
        parts = [losses.quadratic_penalty(parameters[n], a[n], f[n]) for a, f in self.tasks for n in a]
        return self.ewc_lambda * torch.stack(parts).sum()


def make_ewc(ewc_lambda: float = 3.0) -> tuple[ElasticWeightConsolidation, Parameters, Parameters]:
    """A penalty with one task, its anchor and its Fisher, float64."""
    anchor = {"a.weight": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    fisher = {name: torch.rand_like(p) for name, p in anchor.items()}
    ewc = ElasticWeightConsolidation(anchor, ewc_lambda)
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
    ewc = ElasticWeightConsolidation(parameters, 10.0)
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
    strong = ElasticWeightConsolidation(anchor, 250.0)
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
    ewc = ElasticWeightConsolidation(parameters, 0.7)
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
    ewc = ElasticWeightConsolidation(start, 3.0, decay=0.5)
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
    ewc = ElasticWeightConsolidation({"w": torch.zeros(1)}, 1.0, decay)
    for value in (8.0, 2.0):
        ewc.consolidate({"w": torch.ones(1)}, {"w": torch.full((1,), value)})
    assert ewc.fisher("w").item() == fisher


def test_the_anchor_is_a_copy_of_the_parameters() -> None:
    parameters = {"w": torch.ones(3)}
    ewc = ElasticWeightConsolidation(parameters, 2.0)
    ewc.consolidate(parameters, {"w": torch.ones(3)})
    parameters["w"] += 1.0  # in place, as an optimizer does
    assert ewc.penalty(parameters).item() == 3.0  # (2 / 2) * 3 * 1^2


def test_state_dict_round_trip_keeps_everything() -> None:
    ewc, anchor, fisher = make_ewc()
    ewc.consolidate(moved(anchor, fisher, 1.0), fisher)
    state = {key: value.clone() for key, value in ewc.state_dict().items()}
    zeros = {name: torch.zeros_like(p) for name, p in anchor.items()}
    loaded = ElasticWeightConsolidation(zeros, 3.0)
    loaded.penalty(anchor)  # asked before it is loaded
    loaded.load_state_dict(state)
    parameters = moved(anchor, fisher, 1.5)
    assert torch.equal(loaded.penalty(parameters), ewc.penalty(parameters))
    assert loaded.penalty(parameters).item() > 0
    assert loaded.consolidations.item() == 2
    assert loaded.constant.item() > 0
    assert not list(ewc.parameters())  # buffers: no optimizer may train them
    fresh = ElasticWeightConsolidation(zeros, 3.0)
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


# ------------------------------------------------------------------ the Fisher of a twin
ACTIONS, BINS = 3, 5
SHAPES = {"mlp": (4,), "minatar": (4, 6, 6), "nature": (2, 36, 36)}


def make_twin(
    encoder: str = "mlp",
    shared_trunk: bool = True,
    bayesian: str = "heads",
    posterior: str = "mean_field",
    likelihood: str = "gaussian",
    prior_scale: float = 0.0,
    categories: int = 0,
) -> TwinActorCritic:
    layers = LayerFactory(PosteriorSettings(posterior, size=2, init_log_var=-4.0), bayesian, categories)
    shape = (1,) if categories else SHAPES[encoder]
    settings = TwinSettings(encoder, shape, ACTIONS, 6, shared_trunk, layers, prior_scale)
    return TwinActorCritic(settings, make_likelihood(LikelihoodSettings(likelihood, NOISE_STD, (-2.0, 2.0), BINS)))


Samples = tuple[Tensor, Tensor, Tensor]


def make_samples(twin: TwinActorCritic, size: int = 11) -> Samples:
    """Observations as the replay stores them, actions, and both pairs' TD targets."""
    shape, categories = twin.settings.observation_shape, twin.settings.layers.categories
    observation = torch.randn(size, *shape)
    if len(shape) == 3:
        observation = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    if categories:
        observation = torch.randint(categories, (size, 1), dtype=torch.int32)
    return observation, torch.randint(ACTIONS, (size,)), torch.randn(2, size)


def make_consolidator(
    twin: TwinActorCritic, ewc_lambda: float | None = 2.0, method: str = "ewc", **settings: Any
) -> Any:
    return METHODS[method](twin, ConsolidationSettings(method, ewc_lambda, **{"fisher_norm": "none", **settings}))


def registered(twin: TwinActorCritic, samples: Samples, seed: int = 0, **settings: Any) -> Parameters:
    """The Fisher diagonal after one consolidation."""
    consolidator = make_consolidator(twin, **settings)
    consolidator.end_task(twin, TaskSamples(*samples, seeded(seed)))
    assert consolidator.ewc.consolidations.item() == 1
    return fisher_of(consolidator)


def fisher_of(consolidator: EWC) -> Parameters:
    return {name: consolidator.ewc.fisher(name).clone() for name in consolidator.ewc.names}


def squared_gradients(outputs: Tensor, parameters: Parameters) -> Parameters:
    """(d output / dw)^2 summed over the outputs, by one backward pass for each."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for output in outputs.flatten():
        found = torch.autograd.grad(output, list(parameters.values()), allow_unused=True, retain_graph=True)
        for name, g in zip(parameters, found, strict=True):
            total[name] += 0.0 if g is None else g.square()
    return total


def slow_fisher(
    twin: TwinActorCritic, samples: Samples, scores: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Parameters:
    """Mean over samples of the squared gradients of `scores(observation, action, targets)`, summed over scores."""
    named = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    observation, action, targets = samples
    for i in range(len(action)):
        for name, squares in squared_gradients(scores(observation[i : i + 1], action[i], targets[:, i]), named).items():
            total[name] += squares / len(action)
    return total


def assert_registered(ours: Parameters, slow: Parameters) -> None:
    # Sums of dozens of float32 squares, each from a backward pass of a few thousand terms.
    assert_same(ours, {name: slow[name] for name in ours}, rtol=1e-3, atol=1e-6)
    assert all(slow[name].any() for name in ours)
    rest = [name for name in slow if name not in ours]
    assert all(not slow[name].any() for name in rest if name.startswith("trunks"))


CASES: list[dict[str, Any]] = [
    {"encoder": "mlp"},
    {"encoder": "mlp", "shared_trunk": False},
    {"encoder": "minatar"},
    {"encoder": "minatar", "shared_trunk": False, "bayesian": "trunk"},
    {"encoder": "nature"},
    {"encoder": "mlp", "bayesian": "none"},
    {"encoder": "mlp", "bayesian": "all", "posterior": "low_rank", "prior_scale": 2.0},
    {"encoder": "mlp", "bayesian": "all", "categories": 4},
    {"encoder": "mlp", "bayesian": "heads", "categories": 4, "likelihood": "learned_gaussian"},
]
IDS = ["-".join(map(str, case.values())) for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_fisher_of_gaussian_critics_equals_a_slow_loop_over_samples(case: dict[str, Any]) -> None:
    """Per critic and sample: (dQ(s, a) / dw / noise_std)^2 at the mean weights, summed over the two critics."""
    twin = make_twin(**case)
    samples = make_samples(twin, 20)
    slow = slow_fisher(twin, samples, lambda x, a, _: twin(x).q_values[:, 0, a] / NOISE_STD)
    assert_registered(registered(twin, samples, protected_networks="critic"), slow)


def policy_logits(twin: TwinActorCritic, observation: Tensor) -> Tensor:
    """Of both actors, `[2, A]`, through the trunk."""
    return torch.cat([twin.actor(pair, twin.prepare(observation)) for pair in range(2)])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_actor_alone_is_the_one_of_the_twin(case: dict[str, Any]) -> None:
    twin = make_twin(**case)
    observation, _, _ = make_samples(twin)
    logits = torch.stack([twin.actor(pair, twin.prepare(observation)) for pair in range(2)])
    torch.testing.assert_close(logits, twin(observation).action_logits)
    logits[1].square().sum().backward()
    moved = {name for name, p in twin.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith(prefixes(twin, ("actor", 1))) for name in moved)
    assert any(name.startswith("trunks.") for name in moved)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_empirical_fisher_of_actors_is_the_score_of_the_actions_taken(case: dict[str, Any]) -> None:
    twin = make_twin(**case)
    samples = make_samples(twin)
    slow = slow_fisher(twin, samples, lambda x, a, _: policy_logits(twin, x).log_softmax(-1)[:, a])
    assert_registered(registered(twin, samples, protected_networks="actor", fisher="empirical"), slow)


@pytest.mark.parametrize("likelihood", ["gaussian", "learned_gaussian", "hl_gauss"])
def test_empirical_fisher_of_critics_is_the_score_of_the_targets(likelihood: str) -> None:
    twin = make_twin("minatar", likelihood=likelihood)
    samples = make_samples(twin)

    def scores(x: Tensor, a: Tensor, targets: Tensor) -> Tensor:
        return twin.likelihood.nll(twin(x).raw[:, 0, a], targets)

    ours = registered(twin, samples, protected_networks="critic", fisher="empirical")
    assert_registered(ours, slow_fisher(twin, samples, scores))


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("encoder", ["mlp", "minatar"])
def test_true_fisher_of_actors_is_exact_for_probabilities_that_the_samples_can_meet(
    encoder: str, shared_trunk: bool
) -> None:
    """sum_b p_b (d log p_b / dw)^2: one state many times, with probabilities in multiples of 1 / M."""
    twin = make_twin(encoder, shared_trunk)
    observation, action, targets = make_samples(twin, 1)
    count = 40
    probs = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])
    with torch.no_grad():
        for pair in range(2):
            bias: Tensor = twin.actors[pair].bias  # type: ignore[assignment]
            bias += probs[pair].log() - twin.actor(pair, twin.prepare(observation))[0]

    def scores(x: Tensor, _: Tensor, __: Tensor) -> Tensor:
        return probs.sqrt() * policy_logits(twin, x).log_softmax(-1)

    slow = slow_fisher(twin, (observation, action, targets), scores)
    many = observation.expand(count, *observation.shape[1:]), action.expand(count), targets.expand(2, count)
    ours = registered(twin, many, protected_networks="actor")
    assert_same(ours, {name: slow[name] for name in ours}, rtol=1e-4, atol=1e-6)
    for pair in range(2):
        torch.testing.assert_close(ours[f"actors.{pair}.bias"], probs[pair] * (1 - probs[pair]), rtol=1e-5, atol=0.0)


def exact_categorical(twin: TwinActorCritic, samples: Samples) -> Parameters:
    """Of a categorical likelihood: sum_b p_b (d log p_b / dw)^2, summed over the critics."""

    def scores(x: Tensor, a: Tensor, _: Tensor) -> Tensor:
        raw = twin(x).raw[:, 0, a]
        return raw.softmax(-1).detach().sqrt() * raw.log_softmax(-1)

    return slow_fisher(twin, samples, scores)


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_the_score_of_categorical_critics_averages_to_the_exact_fisher(shared_trunk: bool) -> None:
    """Over evenly spaced numbers instead of random ones: each bin's frequency is right to 1 / 4000."""
    twin = make_twin("mlp", shared_trunk, likelihood="hl_gauss")
    observation, action, targets = make_samples(twin, 3)
    count = 4000
    u = ((torch.arange(count) + 0.5) / count).repeat_interleave(3)
    many = observation.repeat(count, 1), action.repeat(count), u, targets[0].repeat(count)
    exact = exact_categorical(twin, (observation, action, targets))
    fisher: Parameters = {}
    named = dict(twin.named_parameters())
    for pair in range(2):
        mine = {n: p for n, p in named.items() if n in exact and n.startswith(prefixes(twin, ("critic", pair)))}
        part = fisher_diagonal(network_score(twin, ("critic", pair), "true"), mine, chunked(many, 500))
        fisher |= {name: value + fisher.get(name, 0.0) for name, value in part.items()}
    assert_same(fisher, {name: exact[name] for name in fisher}, rtol=5e-3, atol=1e-5)


def test_registrations_of_categorical_critics_scatter_about_the_exact_fisher() -> None:
    """Each draws its own bins: sums over tensors, and their mean over 300 registrations within 4 standard errors."""
    twin = make_twin(likelihood="two_hot")
    samples = make_samples(twin, 12)
    each = [registered(twin, samples, seed, protected_networks="critic") for seed in range(300)]
    rows = torch.stack([torch.stack([f.sum() for f in fisher.values()]) for fisher in each])
    exact = exact_categorical(twin, samples)
    expected = torch.stack([exact[name].sum() for name in each[0]])
    error = rows.std(0) / len(rows) ** 0.5
    assert (error > 0).all()  # they are random
    assert ((rows.mean(0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
def test_the_registered_fisher_does_not_depend_on_the_chunk_size(
    likelihood: str, fisher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = make_twin("minatar", likelihood=likelihood)
    samples, results = make_samples(twin), []
    own = prefixes(twin, ("actor", 0))
    weights = sum(p.numel() for n, p in twin.named_parameters() if n.startswith(own) and "log_var" not in n)
    sizes: list[int] = []
    per_sample = fisher_room.vmap

    def watched(*args: Any, **kwargs: Any) -> Any:
        function = per_sample(*args, **kwargs)
        return lambda p, chunk: sizes.append(len(chunk[0])) or function(p, chunk)  # type: ignore[func-returns-value]

    monkeypatch.setattr(fisher_room, "vmap", watched)
    for chunk in (1, 3 * weights, 2**23):
        monkeypatch.setattr(fisher_room, "FISHER_CHUNK", chunk)
        sizes.clear()
        results.append(registered(twin, samples, fisher=fisher))
        assert sizes[0] == {1: 1, 3 * weights: 3, 2**23: 11}[chunk]
    for result in results[1:]:
        assert_same(result, results[0], rtol=1e-4, atol=1e-6)


def test_the_fishers_of_all_networks_add_up() -> None:
    twin = make_twin("minatar")
    samples = make_samples(twin)
    parts = {protect: registered(twin, samples, protected_networks=protect) for protect in ("actor", "critic")}
    both = registered(twin, samples, protected_networks="both")
    assert set(both) == set(parts["actor"]) | set(parts["critic"])
    expected = {n: sum(p[n] for p in parts.values() if n in p) for n in both}
    assert_same(both, expected, rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    assert any(name.startswith("trunks") for name in set(parts["actor"]) & set(parts["critic"]))


def test_autocast_does_not_reach_the_fisher() -> None:
    twin = make_twin("minatar")
    samples = make_samples(twin)
    outside = registered(twin, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = registered(twin, samples)
    assert_same(inside, outside, rtol=1e-5, atol=1e-7)


def test_the_mean_norm_gives_every_task_one_scale() -> None:
    twin = make_twin("minatar")
    samples = make_samples(twin)
    plain, norm = registered(twin, samples), registered(twin, samples, fisher_norm="mean")
    assert torch.cat([f.flatten() for f in norm.values()]).mean().item() == pytest.approx(1.0, rel=1e-5)
    assert_same(norm, normalised(plain), rtol=1e-5, atol=0.0)


# ------------------------------------------------------------------ the consolidator
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
    twin = make_twin("minatar", bayesian="all", posterior="low_rank", prior_scale=1.0, likelihood="hl_gauss")
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


def test_the_same_generator_gives_the_same_fisher_and_another_one_another() -> None:
    twin = make_twin()
    samples = make_samples(twin)
    first, second, other = (registered(twin, samples, seed, protected_networks="actor") for seed in (1, 1, 2))
    assert_same(first, second, rtol=0.0, atol=0.0)
    assert not torch.equal(first["actors.0.bias"], other["actors.0.bias"])


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


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda o, a, t: (o[:0], a[:0], t[:, :0]), "M > 0"),
        (lambda o, a, t: (o[1:], a, t), r"\[M, ...\]"),
        (lambda o, a, t: (o, a[:, None], t), r"\[M\]"),
        (lambda o, a, t: (o, a, t.T), r"\[2, M\]"),
        (lambda o, a, t: (o, a, None), "needs TD targets"),
        (lambda o, a, t: (o * float("nan"), a, t), "trunks.* is not finite"),
    ],
)
def test_samples_that_cannot_be_used_are_errors_and_register_nothing(change: Any, match: str) -> None:
    twin = make_twin()
    consolidator = make_consolidator(twin, fisher="empirical")
    with pytest.raises(ValueError, match=match):
        consolidator.end_task(twin, TaskSamples(*change(*make_samples(twin)), seeded()))
    assert not consolidator.ewc.active


@pytest.mark.parametrize(("fisher", "protect"), [("true", "both"), ("empirical", "actor")])
def test_where_no_target_is_looked_at_none_is_needed(fisher: str, protect: str) -> None:
    twin = make_twin()
    observation, action, targets = make_samples(twin)
    results = [
        registered(twin, (observation, action, t), fisher=fisher, protected_networks=protect) for t in (targets, None)
    ]
    assert_same(results[0], results[1], rtol=0.0, atol=0.0)


# ------------------------------------------------------------------ what the user is told
def test_memory_and_description() -> None:
    twin = make_twin("mlp", bayesian="none")
    consolidator = make_consolidator(twin, 400.0, protected_networks="critic")
    # Trunk 4 -> 6 -> 6 with two LayerNorms, two heads 6 -> 3.
    weights = (4 * 6 + 6 + 12) + (6 * 6 + 6 + 12) + 2 * (6 * 3 + 3)
    assert consolidator.memory_bytes == 2 * 4 * weights + 4 + 8  # and the constant, and the counter
    assert (
        consolidator.describe() == f"consolidation: ewc, lambda 400, protects {weights} weights of the critics, 0.0 MiB"
    )
    vcl = make_consolidator(make_twin(), 0.5, "vcl").describe()
    assert "vcl, lambda 0.5" in vcl
    assert "deterministic weights of actors and critics" in vcl
    assert make_consolidator(twin, 0.0).describe() == "consolidation: ewc, no penalty"
    large = ElasticWeightConsolidation({"w": torch.zeros(2**18)}, 1.0)
    consolidator.ewc = large
    assert "protects 262,144 weights" in consolidator.describe()
    assert "2.0 MiB" in consolidator.describe()


def test_frozen_share_by_hand() -> None:
    """w = 2 and rms gradient 0.2: frozen where 0.2 / (5 F) < 0.01 * 2, beyond F = 2."""
    twin = make_twin()
    consolidator = make_consolidator(twin, 5.0)
    named = consolidator.protected(twin)
    name = "critics.1.weight_mu"
    fisher = {n: torch.zeros_like(p) for n, p in named.items()}
    fisher[name][0], fisher[name][1] = 2.1, 1.9
    fisher["actors.0.weight_mu"] += 1e9  # whose gradient the optimizer does not know
    optimizer = torch.optim.AdamW(twin.parameters(), betas=(0.9, 0.99))
    assert consolidator.frozen_share(twin, optimizer) == 0.0
    with torch.no_grad():
        named[name].fill_(2.0)
    consolidator.ewc.consolidate(named, fisher)
    assert consolidator.frozen_share(twin, optimizer) == 0.0
    second_moment = torch.full_like(named[name], 0.2**2 * (1 - 0.99**3))  # as Adam's third step finds it
    optimizer.state[named[name]] = {"step": torch.tensor(3.0), "exp_avg_sq": second_moment}
    share = consolidator.frozen_share(twin, optimizer)
    weights = sum(p.numel() for p in named.values())
    assert share == pytest.approx(6 / weights, rel=1e-9)
    second_moment[0, :2] = 0.0  # nothing pulls at these two, so that nothing holds them either
    assert consolidator.frozen_share(twin, optimizer) == pytest.approx(4 / weights, rel=1e-9)


def test_frozen_share_of_an_optimizer_that_stepped() -> None:
    twin = make_twin()
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-4)
    for _ in range(3):
        twin(torch.randn(16, 4), "sample").q_values.square().mean().backward()
        optimizer.step()
    shares = []
    for ewc_lambda in (1e-9, 1e9):
        consolidator = make_consolidator(twin, ewc_lambda, protected_networks="critic")
        consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
        shares.append(consolidator.frozen_share(twin, optimizer))
    assert shares[0] == 0.0
    # All but what belongs to units that were off throughout.
    assert 0.5 < shares[1] <= 1.0


def make_active(ewc_lambda: float = 2.0) -> Any:
    twin = make_twin()
    consolidator = make_consolidator(twin, ewc_lambda)
    assert consolidator.out_of_scale(1e9, 1.0, 0) is None  # nothing is protected yet
    consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    return consolidator


def test_a_penalty_that_drowns_the_loss_is_reported_once() -> None:
    consolidator = make_active(2.5)
    assert consolidator.out_of_scale(1000.0, -1.0, 1) is None
    message = consolidator.out_of_scale(1100.0, -1.0, 2)
    assert message is not None
    assert "model.ewc_lambda 2.5" in message
    assert "lower" in message
    assert consolidator.out_of_scale(1e9, 1.0, 3) is None
    assert make_active().out_of_scale(1.0, 0.0, 3) is not None


def test_a_penalty_without_effect_is_reported_after_some_updates() -> None:
    consolidator = make_active()
    for update in (50, 70, 149):
        assert consolidator.out_of_scale(1e-7, 1.0, update, patience=100) is None
    message = consolidator.out_of_scale(1e-7, 1.0, 150, patience=100)
    assert message is not None
    assert "raise" in message
    assert consolidator.out_of_scale(0.0, 1.0, 151, patience=100) is None


def test_a_penalty_that_counted_once_is_not_reported_until_the_next_task() -> None:
    consolidator, twin = make_active(), make_twin()
    consolidator.out_of_scale(1e-3, 1.0, 1, patience=10)
    assert consolidator.out_of_scale(0.0, 1.0, 100, patience=10) is None
    consolidator.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    assert consolidator.out_of_scale(0.0, 1.0, 101, patience=10) is None
    assert consolidator.out_of_scale(0.0, 1.0, 111, patience=10) is not None


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_only_a_leaky_unit_that_is_off_is_protected(activation: str) -> None:
    layers = LayerFactory(PosteriorSettings(), activation=activation)
    twin = TwinActorCritic(
        TwinSettings("minatar", SHAPES["minatar"], ACTIONS, 6, True, layers),
        make_likelihood(LikelihoodSettings("gaussian", 1.0, (-2.0, 2.0), BINS)),
    )
    with torch.no_grad():
        twin.trunks[0].layers[0].bias[0] = -100.0  # no input of 0 to 1 turns this channel on
    fisher = registered(twin, make_samples(twin))["trunks.0.layers.0.weight"]
    assert bool((fisher[0] > 0).any()) == (activation == "leaky_relu")
    assert (fisher[1:] > 0).any()
