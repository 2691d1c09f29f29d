"""Bayesian layers with parameters far apart, their inputs and their draws."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor

from bayes_rl.bayes.draws import Draws
from bayes_rl.bayes.layers import BayesConv2d, BayesLayer, BayesLinear
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.priors import PRIORS
from bayes_rl.bayes.settings import PosteriorSettings

SIZE = 3  # of an index
KINDS = ("linear", "conv")
FAMILIES = [(posterior, prior) for posterior in POSTERIORS for prior in PRIORS]
FAMILIES.remove(("low_rank", "log_uniform"))
Layer = TypeVar("Layer", bound=BayesLayer)
each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def spread(layer: Layer) -> Layer:
    """In float64, with log-variances several units apart, so that no term hides another."""
    layer.double()
    with torch.no_grad():
        layer.weight_log_var.uniform_(-8.0, 3.0)
        layer.bias.normal_()
    return layer


def make_linear(
    posterior: str = "mean_field", rows: int = 3, columns: int = 4, k: float = 3.0, prior: str = "gaussian"
) -> BayesLinear:
    return spread(BayesLinear(columns, rows, PosteriorSettings(posterior, SIZE, prior=prior, prior_precision=k)))


def make_conv(posterior: str = "mean_field", k: float = 3.0, prior: str = "gaussian") -> BayesConv2d:
    return spread(
        BayesConv2d(
            2, 2, 3, stride=2, padding=1, settings=PosteriorSettings(posterior, SIZE, prior=prior, prior_precision=k)
        )
    )


def make(kind: str, posterior: str, k: float = 3.0, prior: str = "gaussian") -> BayesLayer:
    """Linear 4 -> 3, or a strided and padded 3x3 convolution of 2 to 2 channels."""
    return make_linear(posterior, k=k, prior=prior) if kind == "linear" else make_conv(posterior, k, prior)


def inputs(kind: str, *leading: int) -> Tensor:
    """Vectors of 4 or images 2x4x4 (which the convolution makes 2x2x2), float64."""
    return torch.randn(*leading, *((4,) if kind == "linear" else (2, 4, 4)), dtype=torch.float64)


def make_draws(layer: BayesLayer, count: int) -> Draws:
    """Random draws of one layer, in float64."""
    size = layer.family.index_size
    index = torch.randn(count, size, dtype=torch.float64)
    if layer.settings.family == "members":
        index = torch.eye(size, dtype=torch.float64)[torch.randint(size, (count,))]
    return Draws(index, {layer.key: torch.randn(count, *layer.weight_log_var.shape, dtype=torch.float64)})


def close(ours: Tensor, oracle: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, oracle, rtol=rtol, atol=rtol)


def float_layer(kind: str, posterior: str, prior: str) -> BayesLayer:
    return make(kind, posterior, prior=prior).float()


def float_modes(layer: BayesLayer, x: Tensor) -> list[Tensor]:
    """Outputs of `x` `[B, ...]` in all modes."""
    draws = make_draws(layer, 3)
    noise = {key: values.float() for key, values in (draws.noise or {}).items()}
    kinds = [Draws(draws.index.float(), noise), Draws(draws.index.float(), {}), Draws(draws.index.float())]
    return [layer(x, "mean"), layer(x, "sample"), *(layer(x[None], each) for each in kinds)]
