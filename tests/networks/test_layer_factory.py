"""The layer factory: which layers it makes, and the choices that it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bayes_rl.bayes.layers import BayesConv2d
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import ConfigError
from bayes_rl.networks.layer_factory import LayerFactory, OneHotLinear


def test_an_unknown_choice_of_bayesian_layers_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.network\.bayesian: 'head'.*nearest: 'heads'"):
        LayerFactory(PosteriorSettings(), "head")


def test_the_table_of_integers_has_unit_variance_bayesian_or_not() -> None:
    settings = PosteriorSettings()
    for bayesian in ("none", "trunk"):
        first = LayerFactory(settings, bayesian, categories=400).first((1,), 100)
        table = first.weight if isinstance(first, OneHotLinear) else first.weight_mu
        assert isinstance(table, Tensor)
        assert table.shape == (100, 400)
        assert abs(table.std().item() - 1) < 0.02  # 4 / sqrt(2 * 40,000)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_table_of_features_is_a_linear_layer_on_one_hot_vectors(dtype: torch.dtype) -> None:
    table = OneHotLinear(6, 4).double()
    torch.nn.init.normal_(table.bias)
    linear = torch.nn.Linear(6, 4).double()
    linear.load_state_dict(table.state_dict())
    numbers = torch.randint(6, (3, 8, 1))  # draws, batch; some numbers occur twice
    found, expected = table(numbers.to(dtype)), linear(F.one_hot(numbers[..., 0], 6).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(table.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copied", [False, True])
def test_a_table_and_its_gradient_have_the_features_of_an_integer_side_by_side(copied: bool) -> None:
    """Also after a copy, and after weights in the layout of a linear layer were loaded, as of version 0.1.0."""
    table = OneHotLinear(6, 4)
    table.load_state_dict(torch.nn.Linear(6, 4).state_dict())
    table = copy.deepcopy(table) if copied else table
    table(torch.tensor([[2], [5]])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.stride() == table.weight.grad.stride() == (1, 4)


def test_convolutions_keep_stride_and_padding() -> None:
    for layers in (LayerFactory(PosteriorSettings(), "none"), LayerFactory(PosteriorSettings(), "all")):
        conv = layers.conv(3, 4, 5, stride=2, padding=1)
        assert conv(torch.rand(1, 3, 11, 11)).shape == (1, 4, 5, 5)
    assert isinstance(conv, BayesConv2d)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.network\.activation: 'rely'.*nearest: 'relu'"):
        LayerFactory(PosteriorSettings(), activation="rely")
