"""The layer factory: which layers it makes, and the choices that it refuses."""

from __future__ import annotations

import pytest
import torch
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


def test_convolutions_keep_stride_and_padding() -> None:
    for layers in (LayerFactory(PosteriorSettings(), "none"), LayerFactory(PosteriorSettings(), "all")):
        conv = layers.conv(3, 4, 5, stride=2, padding=1)
        assert conv(torch.rand(1, 3, 11, 11)).shape == (1, 4, 5, 5)
    assert isinstance(conv, BayesConv2d)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.network\.activation: 'rely'.*nearest: 'relu'"):
        LayerFactory(PosteriorSettings(), activation="rely")
