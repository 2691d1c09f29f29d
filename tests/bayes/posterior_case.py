"""Tests that every posterior family must pass, as a base class for the tests of one family."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from bayes_rl.bayes import BayesConv2d, BayesLayer, BayesLinear, Draws, PosteriorSettings, draws_by_seed, kl_divergence
from bayes_rl.bayes.layers import joint_forward

Layer = TypeVar("Layer", bound=BayesLayer)

COUNT = 20_000
SIGMAS = 5.0
"""Monte Carlo estimates must lie within this many standard errors."""


class PosteriorCase:
    """Tests of a posterior family; subclass it, and name the settings. Seed torch before each test.

    ```python
    class TestMyFamily(PosteriorCase):
        settings = PosteriorSettings("my_family")
    ```

    Attributes:
        settings: of the posterior; a small `size` and a wide `init_log_var` make the tests sharp.
    """

    settings: PosteriorSettings

    def linear(self) -> BayesLinear:
        """Return a float64 layer 4 -> 3 with parameters that differ from each other."""
        return self._perturbed(BayesLinear(4, 3, self.settings))

    def convolution(self) -> BayesConv2d:
        """Return a float64 convolution of 2 to 3 channels."""
        return self._perturbed(BayesConv2d(2, 3, 3, 2, 1, self.settings))

    def _perturbed(self, layer: Layer) -> Layer:
        layer.key = "layer"
        layer.double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return layer

    def draws(self, layer: BayesLayer, count: int) -> Draws:
        """Return the draws of seeds 0, 1, ... in float64."""
        draws = draws_by_seed(layer.family, {layer.key: layer.shape}, list(range(count)))
        assert draws.noise is not None
        return Draws(draws.index.double(), {key: values.double() for key, values in draws.noise.items()})

    def weights(self, layer: BayesLayer, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return weights `[D, *shape]` and biases `[D, out]` of draws, by the definition w = g(index) + s eps."""
        assert draws.noise is not None
        weight, bias = layer.family.weights(layer.parameters_in(draws), draws.index)
        weight = weight + (0.5 * layer.log_var()).exp() * draws.noise[layer.key]
        return weight, bias.expand(draws.size, -1)

    def log_q(self, layer: BayesLayer, weight: Tensor, index: Tensor) -> Tensor:
        """Return log q `[D]` in nats of drawn weights `[D, *shape]`.

        The default is the density given the index, which is right for families without an index, and for families
        whose divergence is that of index and weights jointly. Override it if the index is marginalised.
        """
        mean, _ = layer.family.weights(layer.parameters_in(), index)
        return Normal(mean, (0.5 * layer.log_var()).exp()).log_prob(weight).flatten(1).sum(-1)

    # -------------------------------------------------------------- draws
    def test_a_draw_is_named_by_its_seed(self) -> None:
        layer = self.linear()
        every = draws_by_seed(layer.family, {"layer": layer.shape}, [5, 3, 5])
        alone = draws_by_seed(layer.family, {"layer": layer.shape}, [3])
        assert every.index.shape == (3, layer.family.index_size)
        assert torch.equal(every.index[1], alone.index[0])
        assert torch.equal(every.index[0], every.index[2])
        assert every.noise is not None
        assert alone.noise is not None
        assert torch.equal(every.noise["layer"][1], alone.noise["layer"][0])

    def test_draws_of_a_linear_layer_are_the_weights_of_their_index(self) -> None:
        layer, x = self.linear(), torch.randn(1, 5, 4, dtype=torch.float64)
        draws = self.draws(layer, 6)
        for y, weight, bias in zip(layer(x, draws), *self.weights(layer, draws), strict=True):
            torch.testing.assert_close(y, F.linear(x[0], weight, bias))

    def test_draws_of_a_convolution_are_the_weights_of_their_index(self) -> None:
        layer, x = self.convolution(), torch.randn(1, 5, 2, 6, 6, dtype=torch.float64)
        draws = self.draws(layer, 6)
        for y, weight, bias in zip(layer(x, draws), *self.weights(layer, draws), strict=True):
            torch.testing.assert_close(y, F.conv2d(x[0], weight, bias, 2, 1))

    @torch.no_grad()
    def test_a_sample_has_the_mean_and_variance_of_draws_of_weights(self) -> None:
        layer, x = self.linear(), torch.randn(4, dtype=torch.float64)
        sampled = layer(x.expand(COUNT, -1), "sample")
        drawn = layer(x[None, None], self.draws(layer, COUNT))[:, 0]
        self._assert_same_moments(sampled, drawn)

    @torch.no_grad()
    def test_a_sample_of_a_convolution_has_the_mean_and_variance_of_draws_of_weights(self) -> None:
        layer, x = self.convolution(), torch.randn(2, 3, 3, dtype=torch.float64)
        sampled = layer(x.expand(COUNT, -1, -1, -1), "sample").flatten(1)
        drawn = layer(x[None, None], self.draws(layer, COUNT))[:, 0].flatten(1)
        self._assert_same_moments(sampled, drawn)

    def _assert_same_moments(self, sampled: Tensor, drawn: Tensor) -> None:
        difference, variance = sampled.mean(0) - drawn.mean(0), sampled.var(0) + drawn.var(0)
        assert (difference.abs() < SIGMAS * (variance / COUNT).sqrt()).all()
        squares = [(y - y.mean(0)).square() for y in (sampled, drawn)]
        error = sum((s.var(0) / COUNT for s in squares), torch.zeros(())).sqrt()
        assert ((squares[0].mean(0) - squares[1].mean(0)).abs() < SIGMAS * error).all()

    @torch.no_grad()
    def test_the_mean_is_that_of_the_draws(self) -> None:
        layer, x = self.linear(), torch.randn(4, dtype=torch.float64)
        drawn = layer(x[None, None], self.draws(layer, COUNT))[:, 0]
        error = (drawn.var(0) / COUNT).sqrt()
        assert ((layer(x[None], "mean")[0] - drawn.mean(0)).abs() < SIGMAS * error).all()

    @torch.no_grad()
    def test_layers_together_are_the_layers_alone(self) -> None:
        layers = [self.linear(), self.linear()]
        x = torch.randn(5, 4, dtype=torch.float64)
        for y, layer in zip(joint_forward(layers, x, "mean"), layers, strict=True):
            torch.testing.assert_close(y, layer(x, "mean"))
        draws = self.draws(layers[0], 3)
        for y, layer in zip(joint_forward(layers, x[None], draws), layers, strict=True):
            torch.testing.assert_close(y, layer(x[None], draws))

    # -------------------------------------------------------------- divergence
    @torch.no_grad()
    def test_the_divergence_is_that_of_monte_carlo(self) -> None:
        layer = self.linear()
        draws = self.draws(layer, COUNT)
        weight, _ = self.weights(layer, draws)
        prior = Normal(0.0, layer.settings.prior_precision**-0.5)
        terms = self.log_q(layer, weight, draws.index) - prior.log_prob(weight).flatten(1).sum(-1)
        assert abs(terms.mean() - layer.kl_divergence()) < SIGMAS * terms.std() / math.sqrt(COUNT)

    @torch.no_grad()
    def test_a_divergence_that_a_sample_computes_on_its_way_is_that_of_the_layer(self) -> None:
        layer = self.linear()
        parameters = layer.parameters_in("sample")
        layer.evaluate(torch.randn(5, 4, dtype=torch.float64), "sample", parameters)
        if parameters.kl is not None:
            torch.testing.assert_close(parameters.kl, layer.kl_divergence())

    def test_the_divergence_of_a_network_is_finite_and_no_less_than_that_of_its_layers(self) -> None:
        layers = [self.linear(), self.convolution()]
        total, apart = kl_divergence(nn.ModuleList(layers)), sum(layer.kl_divergence() for layer in layers)
        assert torch.isfinite(total)
        assert total >= apart - 1e-9

    # -------------------------------------------------------------- gradients
    def test_gradients_of_a_sample_and_its_divergence_reach_every_parameter(self) -> None:
        # 64 rows miss no component of a small mixture.
        for layer, x in ((self.linear(), torch.randn(64, 4)), (self.convolution(), torch.randn(64, 2, 6, 6))):
            (layer(x.double(), "sample").square().mean() + layer.kl_divergence()).backward()
            self._assert_gradients(layer)

    def test_gradients_of_draws_reach_every_parameter(self) -> None:
        layer = self.linear()
        draws = self.draws(layer, 64)  # 64 draws of a small mixture miss no component
        layer(torch.randn(1, 5, 4, dtype=torch.float64), draws).square().mean().backward()
        self._assert_gradients(layer)

    def _assert_gradients(self, layer: BayesLayer) -> None:
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert (parameter.grad != 0).all(), name

    def test_the_mean_depends_on_the_parameters_that_the_family_names(self) -> None:
        """EWC anchors these parameters alone."""
        layer = self.linear()
        layer(torch.randn(5, 4, dtype=torch.float64), "mean").square().mean().backward()
        reached = {name for name, p in layer.named_parameters() if p.grad is not None and (p.grad != 0).any()}
        assert reached == {*layer.family.mean_parameters}
        assert layer.spread_parameters() == {name for name, _ in layer.named_parameters()} - reached
