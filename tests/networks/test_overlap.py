"""Backward pass on two threads: the bits of torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks import overlap
from bayes_rl.networks.encoders import build_encoder
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.overlap import Convolution, Linear, evaluate
from bayes_rl.utils.side_thread import SIDE_THREAD

SHAPE = (4, 84, 84)


def make(name: str, **options: Any) -> nn.Module:
    """Return an encoder without Bayesian layers."""
    return build_encoder(name, SHAPE, 12, LayerFactory(PosteriorSettings(), "none", **options))


def gradients(monkeypatch: pytest.MonkeyPatch, encoder: nn.Module, x: Tensor, cores: int) -> list[Tensor | None]:
    """Return the gradients of a scalar of the features, with the given number of cores."""
    monkeypatch.setattr(SIDE_THREAD, "_cores", cores)
    encoder.zero_grad()
    features = evaluate(encoder, x, "mean")
    assert ("_Encoder" in type(features.grad_fn).__name__) == (cores > 1)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nature", {}),
        ("nature", {"activation": "leaky_relu"}),
        ("nature", {"num_tasks": 2, "conditioning": "gains"}),
        ("impala", {}),
        ("pseudo_resnet", {}),
    ],
)
def test_gradients_have_the_bits_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    encoder, x = make(name, **options), torch.rand(3, *SHAPE)
    alone = gradients(monkeypatch, encoder, x, 1)
    for _ in range(3):
        beside = gradients(monkeypatch, encoder, x, 2)
        for one, other in zip(alone, beside, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)  # type: ignore[arg-type]


def test_a_layer_used_twice_has_the_sum_of_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(5, 5)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, weight_mode: Any) -> Tensor:
            y: Tensor = self.layer(self.layer(x).tanh())
            return y

    x = torch.rand(3, 5)
    alone, beside = (gradients(monkeypatch, Twice(), x, cores) for cores in (1, 2))
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(one, other)


def test_a_retained_graph_has_a_second_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SIDE_THREAD, "_cores", 2)
    encoder = make("nature")
    features, parameters = evaluate(encoder, torch.rand(2, *SHAPE), "mean"), list(encoder.parameters())
    first, second = (torch.autograd.grad(features.sum(), parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_fixed_layers_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make("nature")
    for parameter in encoder.layers[0].parameters():  # type: ignore[index, union-attr]
        parameter.requires_grad_(False)
    x = torch.rand(2, *SHAPE)
    alone, beside = (gradients(monkeypatch, encoder, x, cores) for cores in (1, 2))
    assert alone[:2] == beside[:2] == [None, None]
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], beside[2:], strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["no_grad", "autocast", "functorch"])
def test_other_passes_are_torchs_own(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(SIDE_THREAD, "_cores", 2)
    monkeypatch.setattr(overlap._Encoder, "apply", None)
    encoder, x = make("nature"), torch.rand(1, *SHAPE)
    if case == "no_grad":
        with torch.no_grad():
            evaluate(encoder, x, "mean")
    elif case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            evaluate(encoder, x, "mean")
    else:
        parameters = dict(encoder.named_parameters())

        def total(values: dict[str, Tensor]) -> Tensor:
            run = type("Run", (nn.Module,), {"forward": lambda self, x: evaluate(self.encoder, x, "mean").sum()})()
            run.encoder = encoder
            named = {f"encoder.{name}": value for name, value in values.items()}
            result: Tensor = torch.func.functional_call(run, named, (x,))
            return result

        assert torch.func.grad(total)(parameters).keys() == parameters.keys()


def test_layers_are_those_of_torch_for_everybody_else() -> None:
    convolution, linear = Convolution(2, 3, 3), Linear(4, 2)
    x, features = torch.rand(2, 2, 5, 5), torch.rand(3, 4)
    assert torch.equal(convolution(x), nn.functional.conv2d(x, convolution.weight, convolution.bias))
    assert torch.equal(linear(features), nn.functional.linear(features, linear.weight, linear.bias))


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(4, 6, 3, dilation=2),
        Convolution(4, 6, 3, groups=2),
        Convolution(4, 6, 3, padding=1, padding_mode="circular"),
        Convolution(4, 6, 3, padding="same"),
        Convolution(4, 6, 3, bias=False),
    ],
    ids=["dilation", "groups", "circular", "same", "no bias"],
)
def test_options_that_the_second_thread_does_not_know_have_the_gradients_of_one_thread(
    layer: Convolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_equal_with_a_second_thread(layer, monkeypatch)


def test_a_frozen_bias_stays_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Convolution(4, 6, 3)
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    assert_equal_with_a_second_thread(layer, monkeypatch)
    assert layer.bias.grad is None


def assert_equal_with_a_second_thread(layer: Convolution, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, weight_mode: str) -> Tensor:
            features: Tensor = self.layer(x).flatten(1)
            return features

    encoder, x = Encoder(), torch.rand(2, 4, 12, 12)
    alone = gradients(monkeypatch, encoder, x, 1)
    beside = gradients(monkeypatch, encoder, x, 2)
    for one, other in zip(alone, beside, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)  # type: ignore[arg-type]
