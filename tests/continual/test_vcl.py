"""The posterior becomes the prior: variational continual learning against the exact posterior of all the data."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bayes_rl.bayes.kl import bayesian_layers, joint_kl
from bayes_rl.bayes.layers import BayesConv2d, BayesLayer, BayesLinear
from bayes_rl.bayes.posteriors import make_family
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual import TaskSamples
from bayes_rl.errors import ConfigError
from tests.helpers.twins import make_consolidator, make_samples, make_twin, seeded

NOISE, PRECISION = 0.5, 2.0


def spread(layer: BayesLayer) -> BayesLayer:
    """In float64, with posterior and prior that differ for each weight."""
    layer.double()
    with torch.no_grad():
        layer.weight_log_var.uniform_(-8.0, 3.0)
        layer.prior_mean.normal_()
        layer.prior_precision.uniform_(0.1, 9.0)
    return layer


def linear(rows: int = 3) -> BayesLinear:
    layer = spread(BayesLinear(4, rows, PosteriorSettings(), sequential=True))
    assert isinstance(layer, BayesLinear)
    return layer


def by_distributions(layer: BayesLayer) -> Tensor:
    posterior = Normal(layer.weight_mu, layer.weight_log_var.exp().sqrt())
    return kl_divergence(posterior, Normal(layer.prior_mean, layer.prior_precision.rsqrt())).sum()


def test_kl_from_each_weights_own_prior_equals_torch_distributions() -> None:
    layers: list[BayesLayer] = [
        linear(),
        linear(2),
        spread(BayesConv2d(2, 3, 2, sequential=True)),
    ]
    oracle = torch.stack([by_distributions(layer) for layer in layers]).sum()
    torch.testing.assert_close(joint_kl(layers), oracle, rtol=1e-10, atol=0.0)
    parameters = [p for layer in layers for p in (layer.weight_mu, layer.weight_log_var)]
    for ours, theirs in zip(
        torch.autograd.grad(joint_kl(layers), parameters), torch.autograd.grad(oracle, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_first_prior_is_that_of_any_layer() -> None:
    torch.manual_seed(1)
    sequential = BayesLinear(4, 3, PosteriorSettings(prior_precision=PRECISION), sequential=True)
    torch.manual_seed(1)
    usual = BayesLinear(4, 3, PosteriorSettings(prior_precision=PRECISION))
    # Sums of a dozen float32 terms.
    torch.testing.assert_close(sequential.kl_divergence(), usual.kl_divergence(), rtol=1e-5, atol=1e-5)


def test_nothing_diverges_from_a_prior_that_the_posterior_has_just_become() -> None:
    layer = linear()
    layer.become_prior()
    kl = layer.kl_divergence()
    assert abs(kl.item()) < 1e-12
    kl.backward()
    assert layer.weight_mu.grad is not None
    assert layer.weight_log_var.grad is not None
    assert torch.equal(layer.weight_mu.grad, torch.zeros(3, 4, dtype=torch.float64))
    assert layer.weight_log_var.grad.abs().max() < 1e-12


def test_priors_are_part_of_the_state() -> None:
    layer, other = linear(), linear()
    layer.become_prior()
    other.load_state_dict(layer.state_dict())
    assert other.kl_divergence().item() == layer.kl_divergence().item()
    assert "prior_mean" not in BayesLinear(4, 3).state_dict()


def fit(layer: BayesLinear, phi: Tensor, y: Tensor) -> None:
    """Maximise the ELBO of one batch of data."""
    layer.bias.requires_grad_(False)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(parameters, max_iter=300, tolerance_change=1e-13, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        variance = phi.square() @ layer.log_var().exp()[0]
        error = (y - layer(phi, "mean")[:, 0]).square() + variance
        loss = (error / (2 * NOISE**2)).sum() + layer.kl_divergence()
        loss.backward()
        return loss

    optimizer.step(step)


def test_two_batches_in_turn_give_the_posterior_of_both() -> None:
    """With orthogonal features the factorised family holds the exact posterior, so nothing is lost on the way."""
    scales = torch.tensor([0.5, 1.0, 1.5, 0.75], dtype=torch.float64)
    phi = torch.tensor(hadamard(16)[:, 1:5], dtype=torch.float64) * scales
    batches = [phi, 0.6 * phi.flip(1)]
    weights = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)
    data = [(x, x @ weights + NOISE * torch.randn(16, dtype=torch.float64)) for x in batches]
    layer = BayesLinear(4, 1, PosteriorSettings(prior_precision=PRECISION, init_log_var=-4.0), True).double()
    for x, y in data:
        fit(layer, x, y)
        layer.become_prior()
    everything, answers = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    precision = PRECISION * torch.eye(4, dtype=torch.float64) + everything.T @ everything / NOISE**2
    mean = torch.linalg.solve(precision, everything.T @ answers) / NOISE**2
    torch.testing.assert_close(layer.weight_mu.detach()[0], mean, rtol=0.01, atol=0.0)
    torch.testing.assert_close(layer.log_var().detach().exp()[0], 1 / precision.diag(), rtol=0.01, atol=0.0)
    first = torch.linalg.solve(
        PRECISION * torch.eye(4, dtype=torch.float64) + phi.T @ phi / NOISE**2, phi.T @ data[0][1]
    )
    assert (mean - first / NOISE**2).abs().max() > 0.03 * mean.abs().max()  # the second batch had something to say


def test_precision_follows_the_clamp() -> None:
    layer = linear()
    with torch.no_grad():
        layer.weight_log_var.fill_(-1e3)
    layer.become_prior()
    assert torch.equal(layer.prior_precision, torch.full((3, 4), math.exp(11.0), dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"family": "low_rank"}, {"family": "members"}, {"prior": "log_uniform"}])
def test_other_families_cannot_become_a_prior(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="mean_field with prior gaussian"):
        make_family(PosteriorSettings(**settings), sequential=True)  # type: ignore[arg-type]


# ------------------------------------------------------------------ weights without a distribution
def test_by_default_all_weights_of_a_nature_network_are_kept() -> None:
    """By the prior, or by a penalty as strong as that of `ewc`; together these are all weights of the prediction."""
    twin = make_twin("nature", sequential=True)
    method = make_consolidator(twin, None, "vcl")
    assert method.settings.strength == make_consolidator(twin, None, "ewc").settings.strength > 0
    layers = bayesian_layers(twin)
    bayesian = {f"{key}.{name}" for key in layers for name in ("weight_mu", "weight_log_var")}
    deterministic = {name for name, _ in twin.named_parameters()} - bayesian
    assert set(method.ewc.names) == deterministic
    kept_by_prior = sum(layer.weight_mu.numel() for layer in layers.values())
    kept_by_penalty = sum(p.numel() for name, p in twin.named_parameters() if name in deterministic)
    weights = kept_by_prior + kept_by_penalty
    assert kept_by_penalty > 0.9 * weights
    assert method.describe() == (
        f"consolidation: vcl, the prior protects {kept_by_prior} weights ({100 * kept_by_prior / weights:.1f} % of all "
        f"weights), lambda 0.001, protects {kept_by_penalty:,} deterministic weights of actors and critics "
        f"({100 * kept_by_penalty / weights:.1f} % of all weights), {method.memory_bytes / 2**20:.1f} MiB"
    )
    method.end_task(twin, TaskSamples(*make_samples(twin), seeded()))
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.startswith("trunks"):
                parameter.add_(0.1)
    assert method.penalty(twin) > 0


def test_what_no_strength_leaves_free_is_said() -> None:
    line = make_consolidator(make_twin("nature", sequential=True), 0.0, "vcl").describe()
    assert re.search(
        r"the prior protects 72 weights .*, nothing protects [\d,]+ others \(9\d\.\d % of all weights\)", line
    )
