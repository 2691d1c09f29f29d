"""Gradients by hand against autograd of the plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from bayes_rl.bayes import ops as fused
from bayes_rl.bayes.ops import VARIANCE_FLOOR, clamp_with_inward_gradient, gaussian_kl, joined_linear, sampled_linear

LIMIT = 2.0
BLOCKED = 2
PRECISION = 3.0


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A layer counts as small, whose log-variances are clamped, or as large, where it is looked first."""
    if request.param == "large":
        monkeypatch.setattr(fused, "SMALL", 0)
    return str(request.param)


def parameters(
    outputs: int = 5, inputs: int = 4, members: tuple[int, ...] = (), span: float = 3 * LIMIT
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, mean, log_var (within +-span, so that some of it is beyond the limits) and bias, in float64."""
    x = torch.randn(7, inputs, dtype=torch.float64)
    mean = torch.randn(*members, outputs, inputs, dtype=torch.float64)
    log_var = torch.empty(outputs, inputs, dtype=torch.float64).uniform_(-span, span)
    bias = torch.randn(outputs, dtype=torch.float64)
    return x.requires_grad_(), mean.requires_grad_(), log_var.requires_grad_(), bias.requires_grad_()


def layers(x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, blocked: int = 0) -> tuple[Tensor, Tensor]:
    """By three layers of 2, 2 and 1 outputs."""
    means, log_vars, biases = (values.split(2) for values in (mean, log_var, bias))
    return sampled_linear(x, means, log_vars, biases, LIMIT, PRECISION, blocked)


def plain(x: Tensor, mean: Tensor, log_var: Tensor, bias: Tensor, blocked: int) -> tuple[Tensor, Tensor]:
    """The formulas; the actors' gradient is stopped by `detach`."""
    variance = clamp_with_inward_gradient(log_var, -LIMIT, LIMIT).exp()
    inputs = [x.detach()] * blocked + [x] * (len(mean) - blocked)
    rows = [f @ m + b for f, m, b in zip(inputs, mean, bias, strict=True)]
    spread = [(f.square() @ v + VARIANCE_FLOOR).sqrt() for f, v in zip(inputs, variance, strict=True)]
    y = torch.stack(rows, -1) + torch.stack(spread, -1) * torch.randn(len(x), len(mean), dtype=torch.float64)
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, PRECISION**-0.5))
    return y, kl_divergence(Normal(mean, variance.sqrt()), prior).sum()


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("span", [3 * LIMIT, 0.9 * LIMIT])
@pytest.mark.parametrize("blocked", [0, BLOCKED, 5])
def test_a_sampled_linear_layer_its_kl_and_their_gradients_equal_the_plain_formula(blocked: int, span: float) -> None:
    tensors = parameters(span=span)
    results = []
    for by_hand in (True, False):
        torch.manual_seed(1)
        y, kl = layers(*tensors, blocked) if by_hand else plain(*tensors, blocked)
        results.append([y, kl, *torch.autograd.grad((3 * y.sin()).sum() + 0.7 * kl, tensors, materialize_grads=True)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("blocked", [0, BLOCKED, 5])
@pytest.mark.parametrize("grows", [True, False])
def test_joined_linear_layers_and_their_gradients_equal_the_layers_one_by_one(blocked: int, grows: bool) -> None:
    x, weight, _, bias = parameters()
    tensors = (x.requires_grad_(grows), weight, bias)
    ours = joined_linear(x, weight.split(2), bias.split(2), blocked)
    rows = [(x.detach() if i < blocked else x) @ weight[i] + bias[i] for i in range(5)]
    theirs = torch.stack(rows, -1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(joined_linear(x, weight.split(2), bias.split(2), blocked), ours)
    wanted = [t for t in tensors if t.requires_grad]
    both = [torch.autograd.grad(y.sin().sum(), wanted, materialize_grads=True) for y in (ours, theirs)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_large_log_variances_within_the_limits_are_used_as_they_are(size: str) -> None:
    within = torch.full((3,), LIMIT)
    assert (fused._clamped(within, LIMIT) is within) == (size == "large")
    for end in (-LIMIT, LIMIT):
        assert torch.equal(fused._clamped(torch.tensor([0.0, 1.01 * end]), LIMIT), torch.tensor([0.0, end]))
    assert fused._clamped(torch.tensor([0.0, math.nan]), LIMIT).isnan().tolist() == [False, True]


def test_under_autocast_only_products_lose_digits() -> None:
    """bfloat16 keeps 8 bits: a relative error of 2^-8 for each of the products and their operands."""
    x, mean, _, bias = (tensor.detach().float().requires_grad_() for tensor in parameters(outputs=6, inputs=64))
    narrow = torch.full_like(mean, -30.0).requires_grad_()  # next to no noise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, kl = sampled_linear(x, [mean], [narrow], [bias], 40.0, PRECISION)
    assert (y.dtype, kl.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(kl, gaussian_kl(mean, narrow, PRECISION, 40.0), rtol=1e-6, atol=0.0)
    gradients = torch.autograd.grad(y.float().sum() + kl, [x, mean, narrow, bias])
    exact = x @ mean.t() + bias
    scale = 4 * 2**-8 * float((x.abs() @ mean.abs().t()).detach().max())
    torch.testing.assert_close(y.float(), exact, rtol=0.0, atol=scale)
    expected = torch.autograd.grad(exact.sum() + gaussian_kl(mean, narrow, PRECISION, 40.0), [x, mean, narrow, bias])
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == torch.float32
        # The noise has a standard deviation of 1e-4, and its derivatives are as small.
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=4 * 2**-8 * float(theirs.abs().max()) + 1e-3)


def test_under_autocast_the_noise_has_the_same_variance() -> None:
    draws = 4000
    x = torch.linspace(0.2, 1.5, 8).expand(draws, 8)
    log_var = torch.linspace(-2.0, 0.5, 3 * 8).view(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = sampled_linear(x, [torch.zeros(3, 8)], [log_var], [torch.zeros(3)], 4.0, PRECISION)
    ratio = y.float().square().mean(0) / (x[0].square() @ log_var.exp().t())
    assert ((ratio - 1).abs() < 4 * math.sqrt(2 / draws) + 2**-6).all()


def test_an_input_of_zero_has_the_floor_for_a_variance_and_a_finite_gradient() -> None:
    x, mean, log_var, bias = parameters()
    y, _ = layers(torch.zeros_like(x), mean, log_var, bias)
    assert (y - bias).abs().max() < 6 * math.sqrt(VARIANCE_FLOOR)
    (gradient,) = torch.autograd.grad(y.sum(), log_var)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("span", [3 * LIMIT, 0.9 * LIMIT])
@pytest.mark.parametrize("members", [(), (3,)])
def test_the_kl_and_its_gradient_equal_torch_distributions(members: tuple[int, ...], span: float) -> None:
    _, mean, log_var, _ = parameters(members=members, span=span)
    copies = math.prod(members)
    ours = 0.7 * gaussian_kl(mean, log_var, PRECISION, LIMIT, copies)
    std = clamp_with_inward_gradient(log_var, -LIMIT, LIMIT).exp().sqrt().expand_as(mean)
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, PRECISION**-0.5))
    theirs = 0.7 * kl_divergence(Normal(mean, std), prior).sum() / copies
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
    for one, other in zip(*(torch.autograd.grad(kl, [mean, log_var]) for kl in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_log_variance_beyond_the_limit_moves_only_inward() -> None:
    log_var = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    kl = gaussian_kl(torch.zeros(1, 2), log_var, 1.0, LIMIT)  # whose optimum is 0
    assert (torch.autograd.grad(kl, log_var)[0].sign() == torch.tensor([[-1.0, 1.0]])).all()
    log_var = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    away = -gaussian_kl(torch.zeros(1, 2), log_var, 1.0, LIMIT)
    assert torch.equal(torch.autograd.grad(away, log_var)[0], torch.zeros(1, 2))


class ChangedInPlace(TorchDispatchMode):
    """Mode that remembers the memory of every tensor that an operation changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            self.addresses.add(args[0].data_ptr())
        return result


def test_no_output_of_a_function_with_its_own_gradient_was_changed_in_place() -> None:
    """torch 2.11 compiles such a function to one whose gradients are zero, on every device."""
    mean, log_var, bias, x = torch.ones(3, 4), torch.zeros(3, 4), torch.ones(3), torch.ones(5, 4)
    with ChangedInPlace() as changed:
        y, kl = sampled_linear(x, [mean], [log_var], [bias], 10.0, 1.0)
        outputs = [y, kl, gaussian_kl(mean, log_var, 1.0, 10.0), joined_linear(x, [mean], [bias])]
        outputs.append(clamp_with_inward_gradient(x, 0.0, 1.0))
    assert changed.addresses, "the mode sees nothing"
    assert not changed.addresses & {output.data_ptr() for output in outputs}
