"""The natural-gradient optimizer: its draws, its posterior against the exact one, and its place in an update."""

from __future__ import annotations

import copy
import math
from typing import Any

import ivon
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from scipy import stats
from torch import Tensor, nn

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.natural_gradient import IVON
from bayes_rl.agent.task_switching import reset_for_task
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.bayes.weight_posterior import WeightPosterior
from bayes_rl.continual import ConsolidationSettings
from bayes_rl.errors import ConfigError
from tests.helpers.agents import EWC, NATURAL, EachUpdate, fit, make_batch, make_module
from tests.helpers.options import merged

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

WIDE = PosteriorSettings(prior_precision=4.0, init_log_var=-3.0)


def make(
    *values: Tensor, lr: float = 0.01, rate: float = 0.01, settings: PosteriorSettings = WIDE
) -> tuple[list[nn.Parameter], WeightPosterior, IVON]:
    """Return parameters with these values, their posterior and its optimizer."""
    parameters = {str(number): nn.Parameter(value.clone()) for number, value in enumerate(values)}
    posterior = WeightPosterior(parameters, settings)
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    return list(parameters.values()), posterior, IVON([{"params": list(names), "lr": lr}], names, posterior, rate)


def update(optimizer: IVON, loss: Any, data_weight: float) -> None:
    """Do one update; `loss()` is that of a mean datum."""
    optimizer.draw(data_weight)
    optimizer.zero_grad()
    loss().backward()
    optimizer.take_back()
    optimizer.record()
    optimizer.step()


# ------------------------------------------------------------------ the posterior
def test_draws_have_the_gaussian_of_the_state() -> None:
    torch.manual_seed(1)
    (weight,), posterior, optimizer = make(torch.linspace(-2, 2, 5, dtype=torch.float64))
    optimizer.draw(7.0)
    optimizer.take_back()
    optimizer.record()
    posterior.precision("0").copy_(torch.tensor([2.0, 5.0, 30.0, 700.0, 1e6]))
    gaussian = torch.distributions.Normal(weight.detach().clone(), posterior.precision("0").clone() ** -0.5)
    draws = []
    for _ in range(2000):
        optimizer.draw(7.0)
        draws.append(weight.detach().clone())
        optimizer.take_back()
        assert torch.equal(weight.detach(), gaussian.mean)
        optimizer.record()  # without a gradient; the next update draws anew
    for column in gaussian.cdf(torch.stack(draws)).T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3


def test_two_updates_are_a_pair_of_opposite_draws() -> None:
    (weight,), _, optimizer = make(torch.zeros(50), lr=0.0)
    draws = []

    def loss() -> Tensor:
        draws.append(weight.detach().clone())
        return 0.0 * weight.sum()

    for _ in range(6):
        update(optimizer, loss, 1e-9)  # the precisions hardly change
    scaled = [draw / draw.abs().max() for draw in draws]
    for first, second in zip(scaled[::2], scaled[1::2], strict=True):
        torch.testing.assert_close(first, -second, rtol=0.1, atol=0.01)
    assert (scaled[0] - scaled[2]).abs().max() > 0.5


def test_the_divergence_is_that_of_torch_s_distributions() -> None:
    torch.manual_seed(2)
    means = {name: torch.randn(shape, dtype=torch.float64) for name, shape in (("a.b", (3, 4)), ("c", (5,)))}
    posterior = WeightPosterior(means, WIDE)
    prior, expected = torch.distributions.Normal(0.0, WIDE.prior_precision**-0.5), 0.0
    for name, mean in means.items():
        posterior.precision(name).copy_(torch.rand(mean.shape, dtype=torch.float64) * 50 + 0.5)
        gaussian = torch.distributions.Normal(mean, posterior.precision(name) ** -0.5)
        expected += torch.distributions.kl_divergence(gaussian, prior).sum().item()
    assert posterior.kl_divergence(means).item() == pytest.approx(expected, rel=1e-12)
    assert posterior.log_variances().exp().sum().item() == pytest.approx(
        sum((1 / posterior.precision(name)).sum().item() for name in means), rel=1e-12
    )


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 5.0])
def test_a_linear_regression_gets_its_exact_mean_and_diagonal(temperature: float) -> None:
    """The posterior of a conjugate model is N(A^-1 b, A^-1), A = X^T X / T + k; the best diagonal Gaussian has diag(A).

    The noise of y has standard deviation 1. Precisions are averaged over 4000 updates; their noise comes from weights
    that depend on each other.
    """
    torch.manual_seed(3)
    size, count = 6, 200
    inputs = torch.randn(count, size, dtype=torch.float64) @ (torch.eye(size) + 0.2 * torch.randn(size, size)).double()
    inputs *= torch.linspace(0.2, 1.5, size, dtype=torch.float64)
    targets = inputs @ torch.randn(size, dtype=torch.float64) + torch.randn(count, dtype=torch.float64)
    exact = inputs.T @ inputs / temperature + WIDE.prior_precision * torch.eye(size, dtype=torch.float64)
    exact_mean = torch.linalg.solve(exact, inputs.T @ targets / temperature)
    (weight,), posterior, optimizer = make(torch.zeros(size, dtype=torch.float64), lr=0.02, rate=0.01)

    def loss() -> Tensor:
        return 0.5 * (targets - inputs @ weight).square().mean()

    means, precisions = [], []
    for number in range(5000):
        update(optimizer, loss, count / temperature)
        if number >= 1000:
            means.append(weight.detach().clone())
            precisions.append(posterior.precision("0").clone())
    torch.testing.assert_close(torch.stack(precisions).mean(0), exact.diagonal(), rtol=0.06, atol=0)
    spread = exact.diagonal() ** -0.5
    assert ((torch.stack(means).mean(0) - exact_mean).abs() < 0.01 * spread).all()
    assert (exact_mean.abs() > 3 * spread).any()


def test_trajectories_equal_those_of_the_authors_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ivon-opt`, given the same noise, with decay k / N: P = N (h + decay). Its initial h is a float32."""
    torch.manual_seed(4)
    start, data_weight, rate, lr = torch.randn(30, dtype=torch.float64), 50.0, 0.02, 0.05
    (ours,), posterior, optimizer = make(start, lr=lr, rate=rate)
    theirs, decay = nn.Parameter(start.clone()), WIDE.prior_precision / data_weight
    library = ivon.IVON(
        [theirs],
        lr=lr,
        ess=data_weight,
        hess_init=posterior.init_precision / data_weight - decay,
        beta2=1 - rate,
        weight_decay=decay,
        rescale_lr=False,
    )
    monkeypatch.setattr(ivon._ivon.torch, "randn", lambda *_, **__: optimizer.state[ours]["noise"].clone())

    def loss(weight: Tensor) -> Tensor:
        return (weight.cos() + 0.3 * weight.square() * torch.arange(30)).mean() + 0.1 * weight.prod()

    for _ in range(60):
        update(optimizer, lambda: loss(ours), data_weight)
        with library.sampled_params(train=True):
            library.zero_grad()
            loss(theirs).backward()
        library.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-7)
        of_library = data_weight * (library.param_groups[0]["hess"] + decay)
        torch.testing.assert_close(posterior.precision("0"), of_library, rtol=1e-6, atol=0)
    assert not torch.allclose(ours.detach(), start, atol=0.1)
    assert posterior.precision("0").std() > 1


def test_more_data_scale_the_information_and_leave_the_prior() -> None:
    _, posterior, optimizer = make(torch.zeros(4))
    optimizer.draw(10.0)
    optimizer.take_back()
    optimizer.record()
    posterior.precision("0").copy_(torch.tensor([4.0, 5.0, 104.0, 3.0]))  # the prior's is 4
    optimizer.draw(30.0)
    torch.testing.assert_close(posterior.precision("0"), torch.tensor([4.0, 7.0, 304.0, 2.0]))  # 1 would be half of 2
    optimizer.take_back()
    optimizer.record()
    optimizer.draw(30.0)
    torch.testing.assert_close(posterior.precision("0"), torch.tensor([4.0, 7.0, 304.0, 2.0]))


def test_a_concave_loss_widens_a_gaussian_to_twice_the_variance_of_the_prior() -> None:
    torch.manual_seed(5)
    (weight,), posterior, optimizer = make(torch.zeros(3), lr=0.0, rate=0.1)
    variances = []
    for _ in range(300):
        update(optimizer, lambda: -weight.square().sum(), 10.0)
        variances.append(posterior.std("0").square())
    torch.testing.assert_close(torch.stack(variances).amax(0), torch.full((3,), 2 / WIDE.prior_precision))
    assert (torch.stack(variances).median(0).values > 1 / WIDE.prior_precision).all()


def test_a_saved_state_continues_within_a_pair_bit_for_bit() -> None:
    def run(updates: int, parameters: Any, optimizer: IVON) -> None:
        for _ in range(updates):
            update(optimizer, lambda: (parameters[0] - 1).pow(4).mean() + parameters[1].square().sum(), 20.0)

    start = torch.randn(6), torch.randn(2, 3)
    torch.manual_seed(6)
    straight = make(*start)
    run(5, straight[0], straight[2])
    torch.manual_seed(6)
    first = make(*start)
    run(3, first[0], first[2])  # the fourth update has the opposite of the third one's draw
    second = make(*(p.detach() for p in first[0]))
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    run(2, second[0], second[2])
    assert all(torch.equal(a, b) for a, b in zip(straight[0], second[0], strict=True))
    state = straight[1].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second[1].state_dict().items())


def test_a_parameter_without_gradient_stays_with_its_posterior_and_momentum() -> None:
    parameters, posterior, optimizer = make(torch.ones(3), torch.ones(2))
    update(optimizer, lambda: parameters[0].square().sum() + parameters[1].square().sum(), 10.0)
    before = parameters[1].detach().clone(), posterior.precision("1").clone()
    momentum = optimizer.state[parameters[1]]["momentum"].clone()
    update(optimizer, lambda: parameters[0].square().sum(), 10.0)
    assert torch.equal(parameters[1], before[0])
    assert torch.equal(posterior.precision("1"), before[1])
    assert torch.equal(optimizer.state[parameters[1]]["momentum"], momentum)


# ------------------------------------------------------------------ its place in an update
def state_of(module: VariationalActorCritic) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def trained(*options: Any, updates: int = 1, seed: int = 7, **settings: Any) -> VariationalActorCritic:
    """Return an agent after updates of the same batches and noise."""
    torch.manual_seed(seed)
    module = make_module(NATURAL, *options)
    torch.manual_seed(seed)
    fit(module, [make_batch() for _ in range(updates)], **settings)
    return module


class Penalised(pl.Callback):
    """Gives the EWC penalty a Fisher and anchors before the first update."""

    def __init__(self, distance: float) -> None:
        self.distance = distance

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        named = {name: p.detach() for name, p in module.twin.named_parameters()}
        anchors = {name: p + self.distance for name, p in named.items()}
        module.consolidator.ewc.consolidate(anchors, {name: torch.ones_like(p) for name, p in named.items()})


def test_the_penalty_has_the_gradient_of_the_means_and_changes_means_alone() -> None:
    """In the first update a mean moves by lr N g / P more, g = -lambda F distance: the momentum is debiased."""
    options = merged(EWC, {"consolidation": {"consolidate_every": 100, "fisher_norm": "none"}})
    distance = 0.01
    penalised = trained_with(options, Penalised(distance))
    with_penalty, without = state_of(penalised), state_of(trained(options))
    logged, count = penalised.trainer.callback_metrics, sum(p.numel() for p in penalised.twin.parameters())
    assert logged["train/ewc_penalty"].item() == pytest.approx(0.5 * count * distance**2, rel=1e-3)  # of the means
    assert logged["train/frozen_share"] == 0  # which is known with Adam only
    seen = 0
    for name, value in without.items():
        if name.startswith("weight_posterior."):
            assert torch.equal(value, with_penalty[name])
        if name.startswith("twin."):
            key = f"weight_posterior.precision_{name.removeprefix('twin.').replace('.', '__')}"
            expected = value + NATURAL["optimizer"]["critic_lr"] * 1000 * distance / without[key]
            torch.testing.assert_close(with_penalty[name], expected, rtol=1e-4, atol=1e-7)
            seen += 1
    assert seen > 5


def trained_with(options: Any, *callbacks: pl.Callback, seed: int = 7) -> VariationalActorCritic:
    torch.manual_seed(seed)
    module = make_module(NATURAL, options)
    torch.manual_seed(seed)
    fit(module, [make_batch()], *callbacks, log_every=1)
    return module


def test_an_update_weighs_the_data_by_their_number_and_the_temperature() -> None:
    torch.manual_seed(11)
    module = make_module(NATURAL, objective={"kl_temperature": 4.0})
    optimizer: Any = fit(module, [make_batch(num_data=1000), make_batch(num_data=1200)]).optimizers[0]
    assert {state["data_weight"] for state in optimizer.state.values()} == {300.0}


def test_clipping_changes_means_alone() -> None:
    clipped, whole = state_of(trained(gradient_clip_val=1e-3)), state_of(trained())
    for name, value in whole.items():
        if name.startswith("weight_posterior."):
            assert torch.equal(value, clipped[name])
    assert not torch.equal(clipped["twin.critics.0.weight"], whole["twin.critics.0.weight"])


class Watch(pl.Callback):
    """Notes the weights at the hooks of an update, and checks that they are the means wherever others see them."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.drawn: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.means.append(self.weights(module))

    def on_before_backward(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.drawn.append(self.weights(module))

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        assert torch.equal(self.weights(module), self.means[-1])

    @staticmethod
    def weights(module: Any) -> Tensor:
        return torch.cat([p.detach().flatten() for p in module.twin.parameters()])


@pytest.mark.parametrize("accumulated", [1, 3])
def test_only_forward_and_backward_see_the_draw_and_an_update_has_one(accumulated: int) -> None:
    watch = Watch()
    torch.manual_seed(8)
    module = make_module(NATURAL)
    fit(module, [make_batch() for _ in range(6)], watch, accumulate_grad_batches=accumulated)
    noise = [drawn - mean for drawn, mean in zip(watch.drawn, watch.means, strict=True)]
    groups = [noise[at : at + accumulated] for at in range(0, 6, accumulated)]
    for group in groups:
        assert all(torch.equal(other, group[0]) for other in group)
        assert (group[0] != 0).float().mean() > 0.99
    assert not torch.equal(groups[0][0], groups[1][0])
    for at in range(0, 6, accumulated):  # means stay within an update
        assert all(torch.equal(watch.means[at], mean) for mean in watch.means[at : at + accumulated])


def test_a_gradient_scaler_and_bf16_give_the_estimates_of_float32() -> None:
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    exact, scaled, coarse = (
        state_of(trained(updates=2, **how)) for how in ({}, {"plugins": scaler}, {"precision": "bf16-mixed"})
    )
    for name, value in exact.items():
        if name.startswith(("twin.", "weight_posterior.")):
            torch.testing.assert_close(scaled[name], value, rtol=0.05, atol=5e-3)
            torch.testing.assert_close(coarse[name], value, rtol=0.2, atol=5e-2)


def test_an_update_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(9)
    module, states = make_module(NATURAL), []
    follow = EachUpdate(lambda trainer, agent: states.append(state_of(agent)))
    batches = [make_batch(), make_batch(reward=torch.full((6,), math.inf)), make_batch()]
    fit(module, batches, follow)
    assert module.guard.skipped == 1
    compared = [name for name in states[0] if name.startswith(("twin.", "weight_posterior."))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in compared)
    assert not any(torch.equal(states[1][name], states[2][name]) for name in compared if name.startswith("twin."))
    assert all(torch.isfinite(value).all() for name, value in states[2].items() if name in compared)


def test_a_reset_at_a_task_switch_gives_the_initial_posterior_back() -> None:
    module = trained(updates=20)
    optimizer: Any = module.trainer.optimizers[0]
    assert module.weight_posterior is not None
    precision = module.weight_posterior.precision("critics.0.weight")
    assert not torch.equal(precision, torch.full_like(precision, module.weight_posterior.init_precision))
    reset_for_task(module.twin, module.target_twin, optimizer, 0, ConsolidationSettings())
    optimizer.draw(1000.0)
    optimizer.take_back()
    torch.testing.assert_close(precision, torch.full_like(precision, module.weight_posterior.init_precision))


def test_the_divergence_and_the_spread_are_logged_of_the_means() -> None:
    torch.manual_seed(10)
    module = make_module(NATURAL)
    assert module.weight_posterior is not None
    before = copy.deepcopy(module)
    logged = fit(module, [make_batch()], log_every=1).callback_metrics
    of_means = {name: p.detach() for name, p in before.twin.named_parameters()}
    expected = before.weight_posterior.kl_divergence(of_means)  # type: ignore[union-attr]
    torch.testing.assert_close(logged["train/kl"], expected)
    torch.testing.assert_close(
        logged["train/elbo_loss"], logged["train/nll"] + logged["train/kl"] / 1000, rtol=1e-5, atol=1e-6
    )
    std = math.exp(0.5 * PosteriorSettings().init_log_var)
    assert logged["posterior/std_mean"].item() == pytest.approx(std, rel=0.5)


# ------------------------------------------------------------------ refusals
REFUSED: dict[str, dict[str, Any]] = {
    "add --model.network.bayesian none": {"network": {"bayesian": "heads"}},
    "choose --model.objective.kl_temperature above 0": {"objective": {"kl_temperature": 0.0}},
    "choose --model.objective.target ema": {"objective": {"target": "other"}, "network": {"bayesian": "none"}},
    "choose --model.objective.update_pairs both": {"objective": {"update_pairs": "random"}},
}


@pytest.mark.parametrize("advice", REFUSED)
def test_settings_that_cannot_work_together_are_refused_in_one_line(advice: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_module(NATURAL, REFUSED[advice])
    assert str(raised.value).startswith("--model.optimizer.family: 'ivon' ")
    assert str(raised.value).endswith(advice)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("setting", [{"family": "ivom"}, {"precision_rate": 0.0}, {"precision_rate": 1.5}])
def test_a_setting_that_cannot_work_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        make_module(optimizer=setting)
    assert raised.value.key == f"model.optimizer.{next(iter(setting))}"
