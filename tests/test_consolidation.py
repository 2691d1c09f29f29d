"""Elastic Weight Consolidation against closed forms and a slow loop of per-sample gradients."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl import consolidation
from bayes_rl.bayes import bayesian_layers
from bayes_rl.consolidation import (
    Consolidator,
    ElasticWeightConsolidation,
    Parameters,
    critic_score,
    fisher_diagonal,
    protected,
)
from bayes_rl.encoders import Layers
from bayes_rl.likelihoods import make_likelihood
from bayes_rl.module import VariationalActorCritic
from bayes_rl.networks import Twin, TwinSettings
from bayes_rl.posterior import Variational
from bayes_rl.types import Batch, ConfigError, Transition

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

NOISE_STD = 0.5
SAMPLES = 64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(4)


# ------------------------------------------------------------------ Fisher of a linear-Gaussian model
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


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_fisher_of_a_linear_gaussian_model_has_the_closed_form_for_every_chunk_size(chunk_size: int) -> None:
    """The score is x (y - w . x) / noise^2, so the diagonal is the mean of its square."""
    parameters, (x, y) = linear_problem(SAMPLES)
    fisher = fisher_diagonal(linear_score, parameters, (x, y), chunk_size)
    residual = (y - x @ parameters["w"] - parameters["b"]) / NOISE_STD**2
    torch.testing.assert_close(fisher["w"], (x * residual[:, None]).square().mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(fisher["b"], residual.square().mean(), rtol=1e-12, atol=0.0)


def test_fisher_is_the_expectation_of_x_squared_over_the_noise_variance() -> None:
    """For y drawn from the model E[score^2] = x^2 / noise^2; Monte Carlo within 4 standard errors."""
    samples = 20_000
    parameters, (x, y) = linear_problem(samples)
    fisher = fisher_diagonal(linear_score, parameters, (x, y), 1000)
    exact = x.square().mean(0) / NOISE_STD**2
    # Given x, score^2 = (x^2 / noise^2) chi^2_1, with variance 2 x^4 / noise^4.
    standard_error = (2 * x.pow(4).mean(0) / NOISE_STD**4 / samples).sqrt()
    assert ((fisher["w"] - exact).abs() < 4 * standard_error).all()


def test_fisher_is_not_the_square_of_the_mean_gradient() -> None:
    """Defect 7 of the original: the gradient of a batch, squared, vanishes as 1 / batch size."""
    parameters, (x, y) = linear_problem(SAMPLES)
    fisher = fisher_diagonal(linear_score, parameters, (x, y), SAMPLES)
    residual = (y - x @ parameters["w"] - parameters["b"]) / NOISE_STD**2
    wrong = (x * residual[:, None]).mean(0).square()
    assert (fisher["w"] > 4 * wrong).all()


# ------------------------------------------------------------------ penalty
def make_ewc(ewc_lambda: float = 3.0) -> tuple[ElasticWeightConsolidation, Parameters, Parameters]:
    """A consolidated penalty with its anchor and its Fisher, float64."""
    anchor = {"a.weight": torch.randn(3, 2, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    fisher = {name: torch.rand_like(p) for name, p in anchor.items()}
    ewc = ElasticWeightConsolidation(anchor, ewc_lambda)
    ewc.consolidate(anchor, fisher)
    return ewc, anchor, fisher


def moved(anchor: Parameters, direction: Parameters, by: float) -> Parameters:
    return {name: p + by * direction[name] for name, p in anchor.items()}


def test_penalty_is_zero_with_zero_gradient_at_the_anchor() -> None:
    ewc, anchor, _ = make_ewc()
    parameters = {name: p.clone().requires_grad_() for name, p in anchor.items()}
    penalty = ewc.penalty(parameters)
    penalty.backward()
    assert penalty.item() == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters.values() if p.grad is not None)


def test_penalty_is_zero_before_the_first_consolidation() -> None:
    parameters = {"w": torch.randn(3)}
    ewc = ElasticWeightConsolidation(parameters, 10.0)
    assert ewc.penalty(parameters).item() == 0.0
    assert ewc.consolidations.item() == 0


def test_penalty_by_hand_and_exactly_quadratic() -> None:
    ewc, anchor, fisher = make_ewc(ewc_lambda=3.0)
    direction = {name: torch.randn_like(p) for name, p in anchor.items()}
    expected = 1.5 * sum((fisher[name] * direction[name].square()).sum() for name in anchor)
    for by in (1.0, -1.0, 0.5, 4.0):
        penalty = ewc.penalty(moved(anchor, direction, by))
        torch.testing.assert_close(penalty, by**2 * expected, rtol=1e-12, atol=0.0)


def test_lambda_scales_the_penalty() -> None:
    ewc, anchor, fisher = make_ewc(ewc_lambda=1.0)
    strong = ElasticWeightConsolidation(anchor, 250.0)
    strong.consolidate(anchor, fisher)
    parameters = moved(anchor, fisher, 1.0)
    torch.testing.assert_close(strong.penalty(parameters), 250.0 * ewc.penalty(parameters), rtol=1e-12, atol=0.0)


def test_a_later_consolidation_moves_the_anchor_and_replaces_the_fisher() -> None:
    ewc, anchor, fisher = make_ewc()
    here = moved(anchor, fisher, 2.0)
    ewc.consolidate(here, {name: 10 * f for name, f in fisher.items()})
    assert ewc.penalty(here).item() == 0.0
    fresh = ElasticWeightConsolidation(here, 3.0)
    fresh.consolidate(here, {name: 10 * f for name, f in fisher.items()})
    torch.testing.assert_close(ewc.penalty(anchor), fresh.penalty(anchor), rtol=1e-12, atol=0.0)
    assert ewc.consolidations.item() == 2


def test_the_anchor_is_a_copy_of_the_parameters() -> None:
    parameters = {"w": torch.ones(3)}
    ewc = ElasticWeightConsolidation(parameters, 2.0)
    ewc.consolidate(parameters, {"w": torch.ones(3)})
    parameters["w"] += 1.0  # in place, as an optimizer does
    assert ewc.penalty(parameters).item() == 3.0  # (2 / 2) * 3 * 1^2


def test_state_dict_round_trip_keeps_anchor_fisher_and_counter() -> None:
    ewc, anchor, fisher = make_ewc()
    state = {key: value.clone() for key, value in ewc.state_dict().items()}
    loaded = ElasticWeightConsolidation({name: torch.zeros_like(p) for name, p in anchor.items()}, 3.0)
    loaded.load_state_dict(state)
    parameters = moved(anchor, fisher, 1.5)
    assert torch.equal(loaded.penalty(parameters), ewc.penalty(parameters))
    assert loaded.penalty(parameters).item() > 0
    assert loaded.consolidations.item() == 1
    assert not list(ewc.parameters())  # buffers: no optimizer may train them


def test_a_missing_parameter_and_a_changed_shape_are_errors() -> None:
    ewc, anchor, fisher = make_ewc()
    with pytest.raises(KeyError):
        ewc.consolidate({"b": anchor["b"]}, fisher)
    with pytest.raises(ValueError, match="shapes must be equal"):
        ewc.penalty({**anchor, "b": anchor["b"][:1]})


def test_a_negative_lambda_gives_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"ewc_lambda.*-1"):
        ElasticWeightConsolidation({"w": torch.zeros(1)}, -1.0)


# ------------------------------------------------------------------ the Fisher of a twin's critics
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
) -> Twin:
    layers = Layers(Variational(posterior, index_dim=2, init_log_var=-4.0), bayesian, categories)
    shape = (1,) if categories else SHAPES[encoder]
    settings = TwinSettings(encoder, shape, ACTIONS, 6, shared_trunk, layers, prior_scale)
    return Twin(settings, make_likelihood(likelihood, NOISE_STD, (-2.0, 2.0), BINS))


def make_transition(shape: tuple[int, ...], size: int = 5, categories: int = 0) -> Transition:
    observation = torch.randn(size, *shape)
    if len(shape) == 3:
        observation = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    if categories:
        observation = torch.randint(categories, (size, 1), dtype=torch.int32)
    action, discount = torch.randint(ACTIONS, (size,)), torch.full((size,), 0.9)
    return Transition(observation, action, torch.randn(size), discount, observation.clone())


def registered(twin: Twin, transitions: list[Transition], batches: int = 8) -> Parameters:
    """The Fisher diagonal after one registration; only protected parameters have one."""
    consolidator = Consolidator(twin, ewc_lambda=2.0, every=len(transitions), batches=batches)
    for update, transition in enumerate(transitions, start=1):
        consolidator.penalty(twin, transition, update)
    assert consolidator.ewc.consolidations.item() == 1
    return fisher_of(twin, consolidator)


def fisher_of(twin: Twin, consolidator: Consolidator) -> Parameters:
    state = consolidator.ewc.state_dict()
    names = {f"fisher_{name.replace('.', '__')}": name for name, _ in twin.named_parameters()}
    return {names[key]: value.clone() for key, value in state.items() if key.startswith("fisher_")}


def samples_of(transitions: list[Transition]) -> list[tuple[Tensor, Tensor]]:
    return [(t.observation[i], t.action[i]) for t in transitions for i in range(len(t.action))]


def squared_gradients(outputs: Tensor, parameters: Parameters) -> Parameters:
    """(d output / dw)^2 summed over the outputs, by one backward pass for each."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for output in outputs.flatten():
        found = torch.autograd.grad(output, list(parameters.values()), allow_unused=True, retain_graph=True)
        for name, g in zip(parameters, found, strict=True):
            total[name] += 0.0 if g is None else g.square()
    return total


def assert_same(ours: Parameters, theirs: Parameters, rtol: float, atol: float) -> None:
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=atol, msg=(name + ": {}").format)


GAUSSIAN_CASES: list[dict[str, Any]] = [
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


@pytest.mark.parametrize("case", GAUSSIAN_CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_fisher_of_gaussian_critics_equals_a_slow_loop_over_samples(case: dict[str, Any]) -> None:
    """Per critic and sample: (dQ(s, a) / dw / noise_std)^2 at the mean weights, summed over the two critics."""
    twin = make_twin(**case)
    shape, categories = twin.settings.observation_shape, case.get("categories", 0)
    transitions = [make_transition(shape, size, categories) for size in (11, 9)]  # 20: no multiple of any chunk
    fisher = registered(twin, transitions)

    parameters: Parameters = {name: p for name, p in twin.named_parameters() if name in fisher}
    slow = {name: torch.zeros_like(p) for name, p in fisher.items()}
    samples = samples_of(transitions)
    for observation, action in samples:
        q_values = twin(observation[None]).q_values[:, 0, action]
        for name, squares in squared_gradients(q_values, parameters).items():
            slow[name] += squares / NOISE_STD**2 / len(samples)
    # Sums of 40 float32 squares, each from a backward pass of a few thousand terms.
    assert_same(fisher, slow, rtol=1e-3, atol=1e-6)
    assert all(f.any() for name, f in fisher.items() if name.endswith(("weight_mu", "weight", "bias")))


def exact_fisher(twin: Twin, transitions: list[Transition]) -> Parameters:
    """Of a categorical likelihood: sum_b p_b (d log p_b / dw)^2, mean over samples, summed over the critics."""
    parameters = protected(twin)
    exact = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = samples_of(transitions)
    for observation, action in samples:
        raw = twin(observation[None]).raw[:, 0, action]
        scores = raw.softmax(-1).detach().sqrt() * raw.log_softmax(-1)
        for name, squares in squared_gradients(scores, parameters).items():
            exact[name] += squares / len(samples)
    return exact


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_the_score_of_categorical_critics_averages_to_the_exact_fisher(shared_trunk: bool) -> None:
    """Over evenly spaced numbers instead of random ones: each bin's frequency is right to 1 / 4000."""
    twin = make_twin("mlp", shared_trunk, likelihood="hl_gauss")
    transition = make_transition((4,), size=3)
    count = 4000
    u = ((torch.arange(count) + 0.5) / count).repeat_interleave(3)
    observation, action = transition.observation.repeat(count, 1), transition.action.repeat(count)
    fisher: Parameters = {}
    for pair in range(2):
        part = fisher_diagonal(critic_score(twin, pair), protected(twin, (pair,)), (observation, action, u), 500)
        fisher |= {name: value + fisher.get(name, 0.0) for name, value in part.items()}
    assert_same(fisher, exact_fisher(twin, [transition]), rtol=5e-3, atol=1e-5)


def test_registrations_of_categorical_critics_scatter_about_the_exact_fisher() -> None:
    """Each draws its own bins: sums over tensors, and their mean over 300 registrations within 4 standard errors."""
    twin = make_twin(likelihood="two_hot")
    transitions = [make_transition((4,), size=6) for _ in range(2)]
    exact = exact_fisher(twin, transitions)
    rows = torch.stack([torch.stack([f.sum() for f in registered(twin, transitions).values()]) for _ in range(300)])
    expected = torch.stack([exact[name].sum() for name in registered(twin, transitions)])
    live = expected > 0
    error = (rows.std(0) / len(rows) ** 0.5)[live]
    assert (error > 0).all()  # they are random
    assert ((rows.mean(0) - expected)[live].abs() < 4 * error).all()
    assert not rows[:, ~live].any()


@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
def test_the_registered_fisher_does_not_depend_on_the_chunk_size(
    likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin, transitions = make_twin("minatar", likelihood=likelihood), [make_transition((4, 6, 6), 11)]
    results = []
    for chunk in (1, 4, 16, 1000):
        monkeypatch.setattr(consolidation, "FISHER_CHUNK", chunk)
        torch.manual_seed(8)  # the same bins
        results.append(registered(twin, transitions))
    for result in results[1:]:
        assert_same(result, results[0], rtol=1e-4, atol=1e-6)


def test_registration_under_autocast_is_as_exact_as_outside() -> None:
    twin, transitions = make_twin("minatar"), [make_transition((4, 6, 6))]
    outside = registered(twin, transitions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = registered(twin, transitions)
    assert_same(inside, outside, rtol=1e-5, atol=1e-7)


def test_the_fisher_is_averaged_over_the_latest_minibatches_only() -> None:
    twin, transitions = make_twin(), [make_transition((4,), size) for size in (5, 4, 3)]
    assert_same(registered(twin, transitions, batches=2), registered(twin, transitions[1:]), rtol=0.0, atol=0.0)


# ------------------------------------------------------------------ what is protected, and when
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("bayesian", ["heads", "all", "none"])
@pytest.mark.parametrize("posterior", ["mean_field", "low_rank"])
def test_ewc_protects_the_critics_means_factors_and_deterministic_weights_only(
    shared_trunk: bool, bayesian: str, posterior: str
) -> None:
    scale = 1.0 if posterior == "low_rank" and bayesian != "none" else 0.0
    twin = make_twin("mlp", shared_trunk, bayesian, posterior, "learned_gaussian", scale)
    trunks = ("trunks.0.",) if shared_trunk else ("trunks.2.", "trunks.3.")
    networks = {name: p for name, p in twin.named_parameters() if name.startswith(("critics.", *trunks))}
    expected = {name for name in networks if not name.endswith("weight_log_var")}
    assert set(protected(twin)) == expected
    assert all(p is networks[name] for name, p in protected(twin).items())
    consolidator = Consolidator(twin, 1.0, 1, 1)
    assert set(fisher_of(twin, consolidator)) == expected
    assert not list(consolidator.parameters())  # buffers: no optimizer may train them
    bayesian_critics = [f"critics.{i}." for i in range(2)] if bayesian != "none" else []
    factors = {name for name in expected if name.endswith("weight_factor")}
    assert {f"{critic}weight_mu" for critic in bayesian_critics} <= expected
    if posterior == "low_rank":
        assert {f"{critic}weight_factor" for critic in bayesian_critics} <= factors
    else:
        assert not factors
    per_pair = [set(protected(twin, (pair,))) for pair in range(2)]
    assert per_pair[0] | per_pair[1] == expected
    shared = {name for name in expected if name.startswith("trunks.")} if shared_trunk else set()
    assert per_pair[0] & per_pair[1] == shared


def test_registration_comes_every_k_updates_and_once_for_each() -> None:
    """Several minibatches may belong to one update: gradients are accumulated."""
    twin = make_twin()
    consolidator = Consolidator(twin, 1.0, every=3, batches=2)
    counts = []
    for update in (0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 7, 8, 9):
        consolidator.penalty(twin, make_transition((4,)), update)
        counts.append(int(consolidator.ewc.consolidations))
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert consolidator.registered_at == 9
    assert len(consolidator.samples) == 2


def test_consolidate_without_minibatches_registers_nothing() -> None:
    twin = make_twin()
    consolidator = Consolidator(twin, 1.0, every=3, batches=2)
    consolidator.consolidate(twin)
    assert consolidator.ewc.consolidations.item() == 0


@pytest.mark.parametrize("likelihood", ["gaussian", "hl_gauss"])
def test_the_penalty_is_zero_at_the_anchor_and_pulls_back_to_it(likelihood: str) -> None:
    twin, transition = make_twin(likelihood=likelihood), make_transition((4,), 16)
    consolidator = Consolidator(twin, 3.0, every=1, batches=1)
    penalty = consolidator.penalty(twin, transition, 1)
    penalty.backward()
    assert penalty.item() == 0.0
    assert not any(p.grad.any() for p in twin.parameters() if p.grad is not None)

    anchor = {name: p.detach().clone() for name, p in twin.named_parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    consolidator.every = 0
    penalty = consolidator.penalty(twin, transition, 2)
    fisher, here = fisher_of(twin, consolidator), dict(twin.named_parameters())
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


def test_registration_leaves_networks_and_gradients_alone() -> None:
    twin = make_twin("minatar", bayesian="all", posterior="low_rank", prior_scale=1.0)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    registered(twin, [make_transition((4, 6, 6))])
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert all(p.grad is None for p in twin.parameters())
    assert all(isinstance(p, nn.Parameter) for p in twin.parameters())
    assert len(bayesian_layers(twin)) == 6


# ------------------------------------------------------------------ in the agent
def make_module(encoder: str, shape: tuple[int, ...], **settings: Any) -> VariationalActorCritic:
    settings = {"hidden_dim": 6, "num_actions": 3, "ewc_lambda": 2.0, "noise_std": 0.5, **settings}
    return VariationalActorCritic(encoder=encoder, observation_shape=shape, **settings)


def make_batch(shape: tuple[int, ...], size: int = 5) -> Batch:
    return Batch(make_transition(shape, size), num_data=1000, frames=4)


class Stream:
    """A finite stream of given batches (a bare list means several loaders to Lightning)."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_trainer(callback: pl.Callback | None = None, log_every: int = 1) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=log_every,
        limit_val_batches=0,
        callbacks=[callback] if callback else None,
    )


def fit(module: VariationalActorCritic, batches: list[Batch], callback: pl.Callback | None = None) -> None:
    make_trainer(callback).fit(module, Stream(batches), Stream([]))


class Watch(pl.Callback):
    """Notes the number of consolidations and the logged penalty after each update."""

    def __init__(self) -> None:
        self.consolidations: list[int] = []
        self.penalties: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.consolidations.append(int(module.consolidator.ewc.consolidations))
        self.penalties.append(float(trainer.callback_metrics["train/ewc_penalty"]))


def test_consolidation_fires_every_k_updates_and_again_later() -> None:
    """Defect 7 of the original, second half: after the first registration its counter never fires again."""
    watch = Watch()
    module = make_module("mlp", (4,), consolidate_every=3, fisher_batches=2, critic_lr=1e-2)
    fit(module, [make_batch((4,)) for _ in range(11)], watch)
    assert watch.consolidations == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    # Zero until the first anchor, and zero again on the very update that moves it.
    assert [penalty > 0 for penalty in watch.penalties] == [False] * 4 + [True] * 2 + ([False] + [True] * 2) + [
        False,
        True,
    ]


def test_consolidate_every_zero_never_registers() -> None:
    watch = Watch()
    fit(make_module("mlp", (4,), consolidate_every=0), [make_batch((4,))] * 5, watch)
    assert watch.consolidations == [0] * 5
    assert watch.penalties == [0.0] * 5


def test_a_strong_penalty_holds_the_critics_at_the_anchor() -> None:
    """The same updates move protected weights less; weights with a large Fisher hardly at all."""
    distances = {}
    for ewc_lambda in (1e-6, 1e4):
        torch.manual_seed(6)
        module = make_module("mlp", (4,), ewc_lambda=ewc_lambda, consolidate_every=1000, critic_lr=1e-2, target="other")
        trainer = make_trainer(log_every=1000)
        module.trainer = trainer
        batches = [make_batch((4,), size=16) for _ in range(30)]
        module.training_step(batches[0], 0)
        assert module.consolidator is not None
        module.consolidator.consolidate(module.twin)
        anchor = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
        fit(module, batches)
        fisher = fisher_of(module.twin, module.consolidator)
        here = dict(module.twin.named_parameters())
        distances[ewc_lambda] = sum((fisher[n] * (here[n].detach() - anchor[n]).square()).sum() for n in fisher)
    assert distances[1e4] < 0.1 * distances[1e-6]
