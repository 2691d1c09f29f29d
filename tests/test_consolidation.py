"""Elastic Weight Consolidation against closed forms and a slow loop of per-sample gradients."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from bayes_rl.consolidation import ElasticWeightConsolidation, Parameters, fisher_diagonal
from bayes_rl.module import VariationalActorCritic
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


# ------------------------------------------------------------------ the agent's critics
def make_module(encoder: str, shape: tuple[int, ...], **settings: Any) -> VariationalActorCritic:
    settings = {"hidden_dim": 6, "num_actions": 3, "ewc_lambda": 2.0, "noise_std": 0.5, **settings}
    return VariationalActorCritic(encoder=encoder, observation_shape=shape, **settings)


def make_batch(shape: tuple[int, ...], size: int = 5) -> Batch:
    observation = torch.randint(0, 256, (size, *shape), dtype=torch.uint8) if len(shape) == 3 else None
    observation = torch.randn(size, *shape) if observation is None else observation
    transition = Transition(
        observation, torch.randint(3, (size,)), torch.randn(size), torch.full((size,), 0.9), observation.clone()
    )
    return Batch(transition, num_data=1000, frames=4)


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


def protected_fisher(module: VariationalActorCritic) -> dict[str, Tensor]:
    """The Fisher diagonal by parameter name; only protected parameters have one."""
    state = module.ewc.state_dict()
    names = {f"fisher_{name.replace('.', '__')}": name for name, _ in module.twin.named_parameters()}
    return {names[key]: value for key, value in state.items() if key.startswith("fisher_")}


CASES = [
    ("mlp", (4,), True),
    ("mlp", (4,), False),
    ("minatar", (4, 6, 6), True),
    ("minatar", (4, 6, 6), False),
    ("nature", (2, 36, 36), True),
]


@pytest.mark.parametrize(("encoder", "shape", "shared_trunk"), CASES)
def test_fisher_of_the_critics_equals_a_slow_loop_over_samples(
    encoder: str, shape: tuple[int, ...], shared_trunk: bool
) -> None:
    """Per critic and sample: (dQ(s, a) / dw / noise_std)^2 at the mean weights, summed over the two critics."""
    module = make_module(encoder, shape, shared_trunk=shared_trunk)
    trainer = make_trainer(log_every=1000)  # nothing is logged outside of `fit`
    module.trainer = trainer
    batches = [make_batch(shape, size=11), make_batch(shape, size=9)]  # 20: no multiple of any chunk
    for batch in batches:
        module.training_step(batch, 0)
    module.consolidate()

    fisher = protected_fisher(module)
    names, parameters = zip(*((n, p) for n, p in module.twin.named_parameters() if n in fisher), strict=True)
    slow = {name: torch.zeros_like(p) for name, p in fisher.items()}
    samples = [(t.observation[i], t.action[i]) for t, *_ in batches for i in range(len(t.action))]
    for observation, action in samples:
        for pair in range(2):
            q = module.twin(observation[None]).q_values[pair, 0, action] / 0.5
            for name, g in zip(names, torch.autograd.grad(q, parameters, allow_unused=True), strict=True):
                slow[name] += 0.0 if g is None else g.square() / len(samples)
    for name in names:
        # Sums of 40 float32 squares, each from a backward pass of a few thousand terms.
        torch.testing.assert_close(fisher[name], slow[name], rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert all(f.any() for name, f in fisher.items() if name.startswith("critics"))


@pytest.mark.parametrize("shared_trunk", [True, False])
def test_ewc_protects_the_critics_means_and_deterministic_weights_only(shared_trunk: bool) -> None:
    module = make_module("mlp", (4,), shared_trunk=shared_trunk)
    trunks = ("trunks.0.",) if shared_trunk else ("trunks.2.", "trunks.3.")
    expected = {
        name
        for name, _ in module.twin.named_parameters()
        if name.startswith(("critics.", *trunks)) and not name.endswith("log_var")
    }
    assert set(protected_fisher(module)) == expected
    assert any(name.endswith("weight_mu") for name in expected)


class Watch(pl.Callback):
    """Notes the number of consolidations and the logged penalty after each update."""

    def __init__(self) -> None:
        self.consolidations: list[int] = []
        self.penalties: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.consolidations.append(int(module.ewc.consolidations))
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
        module.consolidate()
        anchor = {name: p.detach().clone() for name, p in module.twin.named_parameters()}
        fit(module, batches)
        fisher = protected_fisher(module)
        here = dict(module.twin.named_parameters())
        distances[ewc_lambda] = sum((fisher[n] * (here[n].detach() - anchor[n]).square()).sum() for n in fisher)
    assert distances[1e4] < 0.1 * distances[1e-6]
