"""An encoder from outside the package: the worked example of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_rl.bayes import PosteriorSettings, bayesian_layers
from bayes_rl.errors import ConfigError
from bayes_rl.networks import ENCODERS, LayerFactory, build_encoder
from tests.helpers.command_line import TINY, run, weights
from tests.helpers.examples import example
from tests.networks.encoder_case import EncoderCase


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with example("my_encoder"):
        yield


class TestTwoLayers(EncoderCase):
    encoder, shape = "two_layers", (4,)


def test_its_layers_are_bayesian_as_asked() -> None:
    for bayesian, count in (("none", 0), ("heads", 0), ("trunk", 2), ("all", 2)):
        encoder = build_encoder("two_layers", (4,), 8, LayerFactory(PosteriorSettings(), bayesian))
        assert len(bayesian_layers(encoder)) == count
        assert encoder(torch.randn(5, 4), "mean").shape == (5, encoder.out_features) == (5, 8)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: 'two_layers'"):
        build_encoder("two_layer", (4,), 8, LayerFactory(PosteriorSettings()))
    assert not ENCODERS["two_layers"].mostly_products


def test_an_own_encoder_of_images_says_how_it_would_read_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`needs_images` is true by default."""
    monkeypatch.setitem(ENCODERS._entries, "of_images", replace(ENCODERS["two_layers"], needs_images=True))
    with pytest.raises(ConfigError, match=r"nearest: '\w+', or register the encoder with needs_images=False"):
        build_encoder("of_images", (4,), 8, LayerFactory(PosteriorSettings()))
    with pytest.raises(ConfigError, match=r"nearest: '\w+'$"):
        build_encoder("nature", (4,), 8, LayerFactory(PosteriorSettings()))


def test_it_learns_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(
        monkeypatch,
        "fit",
        *TINY,
        "--model.network.encoder=two_layers",
        "--model.network.bayesian=all",
        "--trainer.max_epochs=1",
        "--data.frames_per_epoch=160",
    )
    state = weights(next(tmp_path.rglob("last.ckpt")))
    assert state["twin.trunks.0.layers.1.weight_mu"].shape == (8, 4)
