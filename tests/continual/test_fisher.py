"""Fisher diagonals against closed forms and slow loops of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood, sampled_log_prob
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual import fisher as fisher_room
from bayes_rl.continual.base import TaskSamples
from bayes_rl.continual.fisher import Parameters, fisher_diagonal, network_score, normalised, prefixes, stratified
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.settings import NetworkSettings
from tests.helpers.twins import (
    ACTIONS,
    BINS,
    NOISE_STD,
    SHAPES,
    Samples,
    assert_same,
    make_consolidator,
    make_samples,
    make_twin,
    registered,
    seeded,
)

SAMPLES = 64


def chunked(samples: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(s.split(size) for s in samples), strict=True))


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
    {"encoder": "mlp", "bayesian": "all", "posterior": "low_rank", "prior_function_scale": 2.0},
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


@pytest.mark.parametrize("shared_trunk", [pytest.param(True, marks=pytest.mark.slow), False])
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


def test_the_same_generator_gives_the_same_fisher_and_another_one_another() -> None:
    twin = make_twin()
    samples = make_samples(twin)
    first, second, other = (registered(twin, samples, seed, protected_networks="actor") for seed in (1, 1, 2))
    assert_same(first, second, rtol=0.0, atol=0.0)
    assert not torch.equal(first["actors.0.bias"], other["actors.0.bias"])


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


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_only_a_leaky_unit_that_is_off_is_protected(activation: str) -> None:
    layers = LayerFactory(PosteriorSettings(), activation=activation)
    twin = TwinActorCritic(
        TwinSettings(NetworkSettings("minatar", 6), SHAPES["minatar"], ACTIONS, layers),
        make_likelihood(LikelihoodSettings("gaussian", 1.0, (-2.0, 2.0), BINS)),
    )
    with torch.no_grad():
        twin.trunks[0].layers[0].bias[0] = -100.0  # no input of 0 to 1 turns this channel on
    fisher = registered(twin, make_samples(twin))["trunks.0.layers.0.weight"]
    assert bool((fisher[0] > 0).any()) == (activation == "leaky_relu")
    assert (fisher[1:] > 0).any()
