"""Variational layers against explicit weights, algebra and exact Bayesian posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from bayes_rl import losses
from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.kl import kl_divergence
from bayes_rl.bayes.layers import BayesConv2d, BayesLayer, BayesLinear, joint_forward
from bayes_rl.bayes.likelihoods import gaussian_nll
from bayes_rl.bayes.settings import PosteriorSettings
from tests.helpers.bayes_layers import (
    FAMILIES,
    SIZE,
    close,
    each_kind,
    each_posterior,
    float_layer,
    float_modes,
    inputs,
    make,
    make_draws,
    make_linear,
)

DRAWS = 100_000
SIGMAS = 4.0  # Monte Carlo estimates must lie within this many standard errors


# ------------------------------------------------------------------ layers and their oracles


def weight_of(layer: BayesLayer, draws: Draws, row: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of one draw, by the definition."""
    weight: Tensor = layer.weight_mu
    bias: Tensor = layer.bias
    if layer.settings.family == "members":
        (member,) = draws.index[row].nonzero()[0].tolist()
        weight, bias = weight[member], bias[member]
    if layer.settings.family == "low_rank":
        for z, column in zip(draws.index[row], layer.weight_factor, strict=True):
            weight = weight + z * column
    if draws.noise is not None and layer.key in draws.noise:
        weight = weight + layer.weight_log_var.exp().sqrt() * draws.noise[layer.key][row]
    return weight, bias


def plain(layer: BayesLayer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The deterministic layer."""
    if isinstance(layer, BayesConv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)
    return F.linear(x, weight, bias)


def jacobian(layer: BayesLayer, x: Tensor) -> Tensor:
    """Outputs by the weights of one input: `[outputs, weights]`, a convolution as a product with patches."""
    patches = x[None]
    if isinstance(layer, BayesConv2d):
        kernel = layer.weight_log_var.shape[-1]
        patches = F.unfold(x[None], kernel, padding=layer.padding, stride=layer.stride)[0].T
    return torch.kron(torch.eye(len(layer.weight_log_var), dtype=x.dtype), patches.contiguous())


@torch.no_grad()
def moments(layer: BayesLayer, x: Tensor, local: bool) -> tuple[Tensor, Tensor]:
    """Mean and covariance over draws of the outputs for one input; `local` noise is independent between outputs."""
    rows, places = jacobian(layer, x), len(jacobian(layer, x)) // len(layer.weight_log_var)
    bias = layer.bias.repeat_interleave(places, -1)
    diagonal = (rows * layer.weight_log_var.exp().flatten()) @ rows.T
    covariance = diagonal.diag().diag() if local else diagonal
    if layer.settings.family == "members":
        each = layer.weight_mu.flatten(1) @ rows.T + bias
        return each.mean(0), covariance + (each - each.mean(0)).T @ (each - each.mean(0)) / len(each)
    if layer.settings.family == "low_rank":
        loading = layer.weight_factor.flatten(1) @ rows.T
        covariance = covariance + loading.T @ loading
    return rows @ layer.weight_mu.flatten() + bias, covariance


def check_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """`[N, n]` independent samples have this mean and covariance."""
    count = len(samples)
    deviation = samples - mean
    assert (deviation.mean(0).abs() < SIGMAS * (covariance.diag() / count).sqrt()).all()
    products = deviation[:, :, None] * deviation[:, None, :]
    assert ((products.mean(0) - covariance).abs() < SIGMAS * products.std(0) / math.sqrt(count)).all()


# ------------------------------------------------------------------ exact Bayesian linear regression
NOISE = 0.5
TARGET_WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)


class Regression:
    """y = phi w + noise with a Gaussian prior of precision k: everything about it is known."""

    def __init__(self, phi: Tensor, k: float = 2.0) -> None:
        self.phi, self.k = phi, k
        self.y = phi @ TARGET_WEIGHTS + NOISE * torch.randn(len(phi), dtype=torch.float64)
        identity = torch.eye(4, dtype=torch.float64)
        self.precision = k * identity + phi.T @ phi / NOISE**2
        self.mean = torch.linalg.solve(self.precision, phi.T @ self.y) / NOISE**2
        covariance = NOISE**2 * torch.eye(len(phi), dtype=torch.float64) + phi @ phi.T / k
        self.evidence = MultivariateNormal(torch.zeros_like(self.y), covariance).log_prob(self.y).item()

    def layer(self, posterior: str, index_dim: int) -> BayesLinear:
        return BayesLinear(
            4, 1, PosteriorSettings(posterior, index_dim, prior_precision=self.k, init_log_var=-4.0)
        ).double()

    def elbo(self, layer: BayesLinear) -> Tensor:
        """Closed form: the expected squared error is (y - mean)^2 + variance, over members their average."""
        size = layer.family.index_size
        every = Draws(torch.eye(size, dtype=torch.float64), {})
        mean = layer(self.phi, "mean")[:, 0]
        variance = self.phi.square() @ layer.log_var().exp()[0]
        if layer.settings.family == "members":
            mean = layer(self.phi[None], every)[..., 0]
        elif layer.settings.family == "low_rank":
            variance = variance + (layer(self.phi[None], every)[..., 0] - mean).square().sum(0)
        nll = ((self.y - mean).square() + variance) / (2 * NOISE**2) + math.log(NOISE) + 0.5 * math.log(2 * math.pi)
        return -nll.sum(-1).mean() - layer.kl_divergence()

    def fit(self, layer: BayesLinear) -> float:
        """Maximise the ELBO, which may never exceed the evidence; its last value. The regression has no bias."""
        nn.init.zeros_(layer.bias.requires_grad_(False))
        parameters = [p for p in layer.parameters() if p.requires_grad]
        search = "strong_wolfe"
        optimizer = torch.optim.LBFGS(parameters, max_iter=300, tolerance_change=1e-13, line_search_fn=search)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = -self.elbo(layer)
            loss.backward()
            assert -loss.item() <= self.evidence + 1e-9
            return loss

        optimizer.step(step)
        return self.elbo(layer).item()


def correlated() -> Regression:
    shared = torch.randn(16, 1, dtype=torch.float64)
    return Regression(shared + 0.7 * torch.randn(16, 4, dtype=torch.float64))


def orthogonal() -> Regression:
    scales = torch.tensor([0.5, 1.0, 1.5, 0.75], dtype=torch.float64)
    return Regression(torch.tensor(hadamard(16)[:, 1:5], dtype=torch.float64) * scales)


@pytest.mark.parametrize("problem", [correlated, orthogonal])
@pytest.mark.parametrize(("posterior", "index_dim"), [("mean_field", 8), ("members", 1)])
def test_mean_field_learns_the_best_factorised_posterior(
    problem: Callable[[], Regression], posterior: str, index_dim: int
) -> None:
    """Exact means and, as precisions, the diagonal of the exact precision; the evidence is missed by
    KL(q || exact) = (sum log diag P - log det P) / 2.
    """
    exact = problem()
    layer = exact.layer(posterior, index_dim)
    elbo = exact.fit(layer)
    diagonal = exact.precision.diag()
    torch.testing.assert_close(layer.weight_mu.detach().flatten(), exact.mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(layer.log_var().detach().exp()[0], 1 / diagonal, rtol=0.01, atol=0.0)
    gap = 0.5 * (diagonal.log().sum() - exact.precision.logdet()).item()
    assert gap > 0.5 if problem is correlated else gap < 1e-9
    assert abs(exact.evidence - elbo - gap) < 1e-3


@pytest.mark.parametrize("problem", [correlated, orthogonal])
def test_low_rank_as_wide_as_the_weights_reaches_the_evidence(problem: Callable[[], Regression]) -> None:
    exact = problem()
    layer = exact.layer("low_rank", 4)
    assert abs(exact.evidence - exact.fit(layer)) < 1e-2
    torch.testing.assert_close(layer.weight_mu.detach()[0], exact.mean, rtol=0.01, atol=0.0)
    factor = layer.weight_factor.detach()[:, 0]
    covariance = factor.T @ factor + layer.log_var().detach()[0].exp().diag()
    difference = covariance - exact.precision.inverse()
    assert difference.abs().max() < 0.02 * covariance.abs().max()


def test_members_stay_below_the_evidence() -> None:
    exact = correlated()
    single = exact.fit(exact.layer("mean_field", 1))
    assert exact.fit(exact.layer("members", SIZE)) <= single + 1e-6  # their overlap is not credited


@each_kind
def test_one_member_is_a_mean_field(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_rl.bayes.ops.standard_normal", torch.ones_like)  # outputs are mean + std
    single = make(kind, "mean_field")
    settings = PosteriorSettings("members", 1, prior_precision=3.0)
    layer: BayesLayer = BayesLinear(4, 3, settings) if kind == "linear" else BayesConv2d(2, 2, 3, 2, 1, settings)
    layer.double().load_state_dict({k: v if "log_var" in k else v[None] for k, v in single.state_dict().items()})
    noise = make_draws(single, 5).noise
    x = inputs(kind, 2)
    only, none = torch.ones(5, 1).double(), torch.zeros(5, 0).double()
    close(layer.kl_divergence(), single.kl_divergence())
    close(layer(x, "mean"), single(x, "mean"))
    close(layer(x[None], Draws(only, noise)), single(x[None], Draws(none, noise)))
    close(layer(x, "sample"), single(x, "sample"))
    close(layer(x[None], Draws(only)), single(x[None], Draws(none)))


def test_sampled_gradients_reach_the_exact_posterior() -> None:
    """The objective as it is learned: a KL that is averaged, unscaled or scaled by another N would end elsewhere."""
    exact = orthogonal()
    layer = exact.layer("mean_field", 1)
    optimizer = torch.optim.Adam([layer.weight_mu, layer.weight_log_var], lr=0.05)  # the model has no bias
    steps, copies = 600, 64  # copies of the data only make the gradient less noisy
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
    x, target = exact.phi.repeat(copies, 1), exact.y.repeat(copies)
    for _ in range(steps):
        nll = gaussian_nll(layer(x, "sample").squeeze(-1), target, NOISE).mean()
        loss = losses.negative_elbo(nll, layer.kl_divergence(), len(exact.y), temperature=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    torch.testing.assert_close(layer.weight_mu.detach()[0], exact.mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(layer.log_var().detach().exp()[0], 1 / exact.precision.diag(), rtol=0.01, atol=0.0)


def test_elbo_divides_the_kl_by_the_number_of_data() -> None:
    layer, nll = BayesLinear(64, 32), torch.tensor(0.5)
    kl = layer.kl_divergence()
    for num_data in (1, 1000, 1_000_000):
        loss = losses.negative_elbo(nll, kl, num_data, temperature=1.0)
        torch.testing.assert_close(loss, nll + kl / num_data)


# ------------------------------------------------------------------ samples of outputs
@each_kind
@each_posterior
@torch.no_grad()
def test_a_sample_has_the_moments_of_the_algebra(kind: str, posterior: str) -> None:
    """Outputs of one row are correlated by its index alone, rows not at all."""
    layer, x = make(kind, posterior), inputs(kind)
    samples = layer(x.expand(DRAWS, *x.shape), "sample").flatten(1)
    mean, covariance = moments(layer, x, local=True)
    check_moments(samples, mean, covariance)
    standard = (samples - mean) / covariance.diag().sqrt()
    lagged = standard[1:, :, None] * standard[:-1, None, :]
    assert (lagged.mean(0).abs() < SIGMAS * lagged.std(0) / math.sqrt(len(lagged))).all()


@each_kind
@torch.no_grad()
def test_a_mean_field_sample_agrees_with_drawing_weights(kind: str) -> None:
    """The covariance is left out: that of places in an image is what the local draw ignores."""
    layer, x = make(kind, "mean_field"), inputs(kind)
    ours = layer(x.expand(DRAWS, *x.shape), "sample")
    std = (0.5 * layer.weight_log_var).exp()
    weights = layer.weight_mu + std * torch.randn(DRAWS, *std.shape, dtype=torch.float64)  # the slow twin
    slow = (weights.flatten(1) @ jacobian(layer, x).T).view_as(ours) + layer.bias.view(-1, *[1] * (ours.ndim - 2))
    assert ((ours.mean(0) - slow.mean(0)).abs() < SIGMAS * (2 * slow.var(0) / DRAWS).sqrt()).all()
    ratio_error = 2.0 / math.sqrt(DRAWS - 1)  # std of the ratio of two equal sample variances: sqrt(2 * 2 / n)
    assert ((ours.var(0) / slow.var(0) - 1).abs() < SIGMAS * ratio_error).all()


@each_posterior
def test_each_call_samples_afresh_and_the_seed_repeats_it(posterior: str) -> None:
    layer, x = make_linear(posterior), torch.ones(2, 4, dtype=torch.float64)
    torch.manual_seed(5)
    first, second = layer(x, "sample"), layer(x, "sample")
    torch.manual_seed(5)
    assert not torch.equal(first, second)
    assert torch.equal(layer(x, "sample"), first)
    assert first.unique().numel() == first.numel()


@each_kind
@each_posterior
@pytest.mark.parametrize("training", [True, False])
def test_mean_is_deterministic_and_sample_is_random_whatever_the_mode(
    kind: str, posterior: str, training: bool
) -> None:
    layer, x = make(kind, posterior).train(training), inputs(kind, 3)
    state = torch.get_rng_state()
    mean = layer(x, "mean")
    assert torch.equal(torch.get_rng_state(), state)  # draws no random number
    members = posterior == "members"
    weight, bias = (p.mean(0) if members else p for p in (layer.weight_mu, layer.bias))
    close(mean, plain(layer, x, weight, bias))
    assert torch.equal(layer(x, "mean"), mean)
    assert not torch.equal(layer(x, "sample"), mean)


@each_kind
@each_posterior
def test_without_a_mode_a_layer_samples_in_training_and_takes_the_mean_in_evaluation(kind: str, posterior: str) -> None:
    layer, x = make(kind, posterior), inputs(kind, 3)
    torch.manual_seed(3)
    trained = layer.train()(x)
    torch.manual_seed(3)
    assert torch.equal(trained, layer(x, "sample"))
    assert torch.equal(layer.eval()(x), layer(x, "mean"))


def test_a_plain_network_of_variational_layers_learns_a_classification() -> None:
    """The use of `bayes_rl.bayes` without the rest of the package, as its documentation shows."""
    num_data = 512
    x = torch.randn(num_data, 16)
    y = (x[:, :2].sum(-1) > 0).long() + 2 * (x[:, 2] > 0).long()
    network = nn.Sequential(BayesLinear(16, 32), nn.ReLU(), BayesLinear(32, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses_seen = []
    for _ in range(200):
        loss = F.cross_entropy(network(x), y) + kl_divergence(network) / num_data
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses_seen.append(loss.item())
    assert losses_seen[-1] < losses_seen[0]
    network.eval()
    accuracy = (network(x).argmax(-1) == y).float().mean()
    assert accuracy > 0.9
    assert torch.equal(network(x), network(x))


# ------------------------------------------------------------------ draws of weights
@each_kind
@each_posterior
@torch.no_grad()
def test_draws_of_weights_have_the_moments_of_the_algebra(kind: str, posterior: str) -> None:
    layer, x = make(kind, posterior), inputs(kind)
    outputs = layer(x[None, None], make_draws(layer, DRAWS))[:, 0].flatten(1)
    check_moments(outputs, *moments(layer, x, local=False))


@each_kind
@each_posterior
@pytest.mark.parametrize("noise", ["all", "empty", "other"])
@pytest.mark.parametrize(("count", "same_input"), [(5, True), (5, False), (1, True)])
def test_draws_in_one_call_equal_a_loop_over_explicit_weights(
    kind: str, posterior: str, noise: str, count: int, same_input: bool
) -> None:
    layer, x = make(kind, posterior), inputs(kind, 1 if same_input else count, 6)
    layer.key = "heads.1"
    draws = make_draws(layer, count)
    if noise != "all":  # a layer without an entry has its mean there
        draws = Draws(draws.index, {} if noise == "empty" else {"heads.2": torch.randn(count, 1)})
    state = torch.get_rng_state()
    outputs = layer(x, draws)
    assert torch.equal(layer(x, draws), outputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(outputs) == count
    for row, output in enumerate(outputs):
        close(output, plain(layer, x[0 if same_input else row], *weight_of(layer, draws, row)))


@each_kind
@each_posterior
def test_gradients_of_draws_equal_those_of_the_loop(kind: str, posterior: str) -> None:
    layer, x = make(kind, posterior), inputs(kind, 4, 3).requires_grad_()
    draws = make_draws(layer, 4)
    slow = torch.stack([plain(layer, x[row], *weight_of(layer, draws, row)) for row in range(4)])
    wanted = [x, *layer.parameters()]
    gradients = (torch.autograd.grad(y.square().sum(), wanted) for y in (layer(x, draws), slow))
    for ours, theirs in zip(*gradients, strict=True):
        close(ours, theirs, 1e-10)


@each_posterior
def test_all_rows_of_a_draw_see_the_same_weights(posterior: str) -> None:
    layer = make_linear(posterior)
    draws = make_draws(layer, 7)
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    zero, *y = (layer(x[None], draws) for x in (0 * a, a, b, 2 * a - 3 * b))
    close(y[2] - zero, 2 * (y[0] - zero) - 3 * (y[1] - zero))
    swapped = layer(a.flip(0)[None], draws)
    close(swapped, y[0].flip(1))


@each_kind
@each_posterior
@torch.no_grad()
def test_draws_without_noise_fix_the_index_and_draw_the_rest_for_every_output(kind: str, posterior: str) -> None:
    layer, x = make(kind, posterior), inputs(kind)
    index = make_draws(layer, 2).index
    rows = DRAWS // 2
    samples = layer(x.expand(1, rows, *x.shape), Draws(index)).flatten(2)
    given = layer(x[None, None], Draws(index, {}))[:, 0].flatten(1)
    factorless = make(kind, "mean_field")
    factorless.weight_log_var.copy_(layer.weight_log_var)
    _, covariance = moments(factorless, x, local=True)
    for mean, sample in zip(given, samples, strict=True):
        check_moments(sample, mean, covariance)
    crossed = (samples[0] - given[0]) * (samples[1] - given[1])  # draws get noise of their own
    assert (crossed.mean(0).abs() < SIGMAS * crossed.std(0) / math.sqrt(rows)).all()


@each_kind
@each_posterior
@torch.no_grad()
def test_local_draws_of_several_inputs_each_have_their_variance(kind: str, posterior: str) -> None:
    layer = make(kind, posterior)
    x, index, rows = inputs(kind, 2), make_draws(layer, 2).index, DRAWS // 4
    samples = layer(x[:, None].expand(2, rows, *x.shape[1:]), Draws(index))
    given = layer(x[:, None], Draws(index, {}))
    for image, mean, sample in zip(x, given, samples, strict=True):
        variance = (jacobian(layer, image).square() @ layer.weight_log_var.exp().flatten()).view_as(mean[0])
        assert ((sample.mean(0) - mean[0]).abs() < SIGMAS * (variance / rows).sqrt()).all()
        assert ((sample.var(0) / variance - 1).abs() < SIGMAS * math.sqrt(2 / (rows - 1))).all()


# ------------------------------------------------------------------ integers for one-hot vectors
@each_posterior
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("same_input", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_are_their_one_hot_vectors(
    posterior: str, noise: bool, same_input: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Outputs are mean + std, whatever the layout in memory.
    monkeypatch.setattr("bayes_rl.bayes.ops.standard_normal", torch.ones_like)
    layer = make_linear(posterior, columns=6)
    draws = make_draws(layer, 3)
    modes: list[WeightMode] = ["mean", "sample", draws if noise else Draws(draws.index), Draws(draws.index, {})]
    numbers = torch.randint(6, (1 if same_input else 3, 8, 1))
    for weights in modes:
        number = numbers if isinstance(weights, Draws) else numbers[0]
        dense = F.one_hot(number[..., 0], 6).double()
        outputs, gradients = [], []
        for x in (number.to(dtype), dense):
            torch.manual_seed(2)
            outputs.append(layer(x, weights))
            gradients.append(torch.autograd.grad(outputs[-1].square().sum(), layer.weight_mu)[0])
        close(outputs[0], outputs[1])
        close(gradients[0], gradients[1])


# ------------------------------------------------------------------ several layers at once
def pair(posterior: str) -> list[BayesLinear]:
    first, second = make_linear(posterior, rows=2), make_linear(posterior, rows=3)
    first.key, second.key = "first", "second"
    return [first, second]


def stacked(layers: list[BayesLinear]) -> BayesLinear:
    """One layer with the outputs of all."""
    whole = make_linear(layers[0].settings.family, rows=sum(len(layer.weight_log_var) for layer in layers))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            axis = -1 if name == "bias" else -2
            parameter.copy_(torch.cat([layer.get_parameter(name) for layer in layers], axis))
    return whole


def draws_of(layers: list[BayesLinear], count: int, named: set[str]) -> Draws:
    parts = [make_draws(layer, count) for layer in layers]
    noise = {key: values for part in parts if part.noise for key, values in part.noise.items() if key in named}
    return Draws(parts[0].index, noise)


@each_posterior
@pytest.mark.parametrize("named", [{"first", "second"}, {"first"}, {"second"}, set(), None])
def test_joint_forward_equals_the_separate_layers(posterior: str, named: set[str] | None) -> None:
    layers = pair(posterior)
    weights: WeightMode = "mean" if named is None else draws_of(layers, 3, named)
    x = inputs("linear", 5) if named is None else inputs("linear", 1, 5)
    together, apart = joint_forward(layers, x, weights), [layer(x, weights) for layer in layers]
    for ours, theirs, layer in zip(together, apart, layers, strict=True):
        close(ours, theirs)
        own = [p for name, p in layer.named_parameters() if "log_var" not in name]
        if named and layer.key in named:
            own.append(layer.weight_log_var)
        gradients = [
            torch.autograd.grad(y.square().sum(), own, retain_graph=True, materialize_grads=True)
            for y in (ours, theirs)
        ]
        for mine, oracle in zip(*gradients, strict=True):
            close(mine, oracle)
        other = layers[1 - layers.index(layer)].weight_mu
        (leak,) = torch.autograd.grad(ours.sum(), other, retain_graph=True, materialize_grads=True)
        assert not leak.any()


@each_posterior
@torch.no_grad()
def test_a_joint_sample_has_the_moments_of_one_layer(posterior: str) -> None:
    """The index is that of the row, shared by the layers."""
    layers, x = pair(posterior), inputs("linear")
    outputs = joint_forward(layers, x.expand(DRAWS, -1), "sample")
    assert [y.shape[-1] for y in outputs] == [2, 3]
    check_moments(torch.cat(outputs, -1), *moments(stacked(layers), x, local=True))


@each_posterior
@torch.no_grad()
def test_joint_local_draws_have_the_conditional_moments(posterior: str) -> None:
    layers, x = pair(posterior), inputs("linear")
    index = make_draws(layers[0], 1).index
    samples = torch.cat(joint_forward(layers, x.expand(1, DRAWS, -1), Draws(index)), -1)[0]
    mean = torch.cat([layer(x[None, None], Draws(index, {})) for layer in layers], -1)[0, 0]
    variance = torch.cat([layer.weight_log_var.exp() @ x.square() for layer in layers])
    check_moments(samples, mean, variance.diag())


@each_posterior
def test_joint_forward_takes_integers(posterior: str) -> None:
    layers, number = pair(posterior), torch.randint(4, (1, 6, 1))
    draws = draws_of(layers, 3, {"first", "second"})
    dense = F.one_hot(number[..., 0], 4).double()
    for ours, layer in zip(joint_forward(layers, number, draws), layers, strict=True):
        close(ours, layer(dense, draws))
    for ours, layer in zip(joint_forward(layers, number[0], "mean"), layers, strict=True):
        close(ours, layer(dense[0], "mean"))


# ------------------------------------------------------------------ numbers
@each_posterior
def test_initial_means_have_the_scale_of_the_fan_in_and_log_variances_are_narrow(posterior: str) -> None:
    """And so does the part of a draw that depends on the index of `low_rank`. A scale of 1 is that of `nn.Linear`."""
    layer = BayesLinear(256, 400, PosteriorSettings(posterior, SIZE, init_scale=2.0))
    std = 1 / 16 / math.sqrt(3)
    expected = [(layer.weight_mu, 0.0, 2 * std), (layer.bias, 0.0, std), (layer.weight_log_var, -9.0, 1e-3)]
    if layer.settings.family == "low_rank":
        expected.append((layer.weight_factor, 0.0, 2 * std / math.sqrt(SIZE)))
    for tensor, mean, std in expected:
        values, count = tensor.detach().double(), tensor.numel()
        assert abs(values.mean().item() - mean) < SIGMAS * std / math.sqrt(count) + 1e-6  # float32 rounding of -9
        assert abs(values.std().item() - std) < SIGMAS * std / math.sqrt(2 * count) + 1e-6
    plain = nn.Linear(256, 400)
    for name, ours in (("weight", layer.weight_mu / 2), ("bias", layer.bias)):
        assert ours.abs().max() <= 1 / 16
        torch.testing.assert_close(ours.abs().max(), getattr(plain, name).abs().max(), rtol=0.02, atol=0)


def test_the_fan_in_of_a_convolution_is_its_patch() -> None:
    layer = BayesConv2d(16, 64, 5, settings=PosteriorSettings(init_scale=1.0))
    std = 1 / math.sqrt(3 * 16 * 25)
    assert abs(layer.weight_mu.std().item() / std - 1) < SIGMAS / math.sqrt(2 * layer.weight_mu.numel())


@pytest.mark.parametrize(("raw", "used"), [(100.0, 11.0), (-100.0, -11.0), (2.5, 2.5)])
def test_log_variances_are_clamped_to_their_limit(raw: float, used: float) -> None:
    layer = BayesLinear(3, 2).double()
    with torch.no_grad():
        layer.weight_log_var.fill_(raw)
    assert torch.equal(layer.log_var(), torch.full((2, 3), used, dtype=torch.float64))
    assert torch.isfinite(layer.kl_divergence())
    x = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    expected = 6.0 * math.exp(used)  # sum of x^2 times the variance
    drawn = Draws(torch.zeros(20_000, 0), {"": torch.randn(20_000, 2, 3, dtype=torch.float64)})
    with torch.no_grad():
        for draws in (layer(x.expand(20_000, -1), "sample"), layer(x[None], drawn)[:, 0]):
            assert abs(draws.var(0) / expected - 1).max() < SIGMAS * math.sqrt(2 / (20_000 - 1))


def test_variance_floor_keeps_the_gradient_of_a_zero_input_finite() -> None:
    layer = BayesLinear(3, 2).double()
    for draws in (
        layer(torch.zeros(DRAWS, 3, dtype=torch.float64), "sample"),
        layer(torch.zeros(1, DRAWS, 3, dtype=torch.float64), Draws(torch.zeros(1, 0)))[0],
    ):
        assert abs(draws.var(0).detach() / 1e-8 - 1).max() < SIGMAS * math.sqrt(2 / (DRAWS - 1))
        draws.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@each_kind
@pytest.mark.parametrize(("posterior", "prior"), FAMILIES)
@pytest.mark.parametrize("raw", [-1e4, -11.0, 11.0, 1e4])
def test_extreme_log_variances_stay_finite_in_float32(kind: str, posterior: str, prior: str, raw: float) -> None:
    layer = float_layer(kind, posterior, prior)
    with torch.no_grad():
        layer.weight_log_var.fill_(raw)
        layer.weight_mu[..., 0] = 0.0
    x = inputs(kind, 4).float()
    kl = layer.kl_divergence()
    outputs = float_modes(layer, x)
    (kl + sum(y.square().mean() for y in outputs)).backward()
    assert all(torch.isfinite(y).all() for y in (kl, *outputs))
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_widest_limit_still_stays_finite_in_float32() -> None:
    for raw in (-1e4, 1e4):
        layer = BayesLinear(64, 64, PosteriorSettings("low_rank", SIZE, log_var_limit=60.0))
        with torch.no_grad():
            layer.weight_log_var.fill_(raw)
        kl = layer.kl_divergence()
        kl.backward()
        assert torch.isfinite(kl)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in layer.parameters())
