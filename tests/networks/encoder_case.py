"""Tests that every encoder must pass, as a base class for the tests of one encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bayes_rl.bayes import POSTERIORS, Draws, PosteriorSettings, bayesian_layers, draws_by_seed
from bayes_rl.networks import Encoder, LayerFactory, build_encoder

HIDDEN, BATCH, DRAWS, TASKS = 12, 4, 3, 2

each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


class EncoderCase:
    """Tests of an encoder; subclass it, and name the encoder. Seed torch before each test.

    ```python
    class TestMyEncoder(EncoderCase):
        encoder, shape = "my_encoder", (4,)
    ```

    Attributes:
        encoder: name of the encoder.
        shape: of one observation, channels first for images; small observations make fast tests.
    """

    encoder: str
    shape: tuple[int, ...]

    def build(self, bayesian: str = "all", posterior: str = "mean_field", conditioning: str = "none") -> Encoder:
        """Return an encoder with a wide posterior, so that a lost draw shows."""
        settings = PosteriorSettings(posterior, size=2, init_log_var=-4.0)
        layers = LayerFactory(settings, bayesian, num_tasks=TASKS, conditioning=conditioning)
        encoder = build_encoder(self.encoder, self.shape, HIDDEN, layers)
        for key, layer in bayesian_layers(encoder).items():
            layer.key = key
        return encoder

    def observations(self, *leading: int) -> Tensor:
        """Return observations `[*leading, *shape]`."""
        return torch.rand(*leading, *self.shape)

    def draws(self, encoder: Encoder) -> Draws:
        """Return draws of seeds 0, 1, ... of all layers."""
        layers = bayesian_layers(encoder)
        family = next(iter(layers.values())).family
        return draws_by_seed(family, {key: layer.shape for key, layer in layers.items()}, [*range(DRAWS)])

    @pytest.mark.parametrize("bayesian", ["none", "heads", "trunk", "all"])
    def test_features_have_the_stated_shape_in_every_mode(self, bayesian: str) -> None:
        encoder = self.build(bayesian)
        for weights in ("mean", "sample"):
            features = encoder(self.observations(BATCH), weights)
            assert features.shape == (BATCH, encoder.out_features)
            assert features.dtype == torch.float32
            assert torch.isfinite(features).all()

    def test_all_layers_come_from_the_factory(self) -> None:
        """Only layers of the factory are Bayesian where the user asks for them."""
        plain = [name for name, m in self.build("all").named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert plain == []
        assert not bayesian_layers(self.build("none"))
        parts = [set(bayesian_layers(self.build(bayesian))) for bayesian in ("heads", "trunk")]
        assert set.union(*parts) == set(bayesian_layers(self.build("all")))
        assert not set.intersection(*parts)

    @torch.no_grad()
    def test_an_observation_has_its_features_whatever_the_others(self) -> None:
        encoder, x = self.build("none"), self.observations(BATCH)
        together = encoder(x)
        for row in range(BATCH):
            torch.testing.assert_close(together[row], encoder(x[row][None])[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together[0], together[1])

    @torch.no_grad()
    def test_samples_differ_and_means_do_not(self) -> None:
        encoder, x = self.build(), self.observations(BATCH)
        assert torch.equal(encoder(x, "mean"), encoder(x, "mean"))
        assert not torch.allclose(encoder(x, "sample"), encoder(x, "sample"))

    @each_posterior
    @torch.no_grad()
    def test_draws_in_one_batch_are_the_draws_alone(self, posterior: str) -> None:
        encoder = self.build(posterior=posterior)
        draws, x = self.draws(encoder), self.observations(DRAWS, BATCH)
        features = encoder(x, draws)
        assert features.shape == (DRAWS, BATCH, encoder.out_features)
        assert draws.noise is not None
        for row in range(DRAWS):
            noise = {key: values[row : row + 1] for key, values in draws.noise.items()}
            alone = encoder(x[row : row + 1], Draws(draws.index[row : row + 1], noise))
            torch.testing.assert_close(features[row], alone[0], rtol=1e-4, atol=2e-5)
        shared = encoder(x[:1], draws)
        assert not torch.allclose(shared[0], shared[1], atol=1e-3)

    @each_posterior
    def test_gradients_reach_every_parameter(self, posterior: str) -> None:
        encoder = self.build(posterior=posterior)
        features = encoder(self.observations(1, 64), self.draws(encoder))
        (features * torch.randn_like(features)).sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name

    @torch.no_grad()
    def test_gains_are_those_of_the_task(self) -> None:
        """The factory gives each layer of the trunk gains for each task."""
        encoder, x = self.build("none", conditioning="gains"), self.observations(BATCH)
        gains = {name: gain for name, gain in encoder.named_parameters() if ".gain." in name}
        assert gains
        before = encoder(x)
        for name, gain in gains.items():
            if name.endswith(".1"):
                gain.uniform_(0.5, 2.0)
        assert torch.equal(encoder(x), before)
        for module in encoder.modules():
            if hasattr(module, "gain"):
                module.task = 1
        assert not torch.allclose(encoder(x), before)
