"""The shared case of all likelihoods, and of one from outside the package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace

from bayes_rl.bayes import LIKELIHOODS, Likelihood, LikelihoodSettings, register_likelihood
from tests.bayes.likelihood_case import LikelihoodCase

RANGE = (-4.0, 4.0)


class TestGaussian(LikelihoodCase):
    settings = LikelihoodSettings("gaussian", 0.5)


class TestLearnedGaussian(LikelihoodCase):
    settings = LikelihoodSettings("learned_gaussian", 0.5)


class TestReturnGaussian(LikelihoodCase):
    settings = LikelihoodSettings("return_gaussian", noise_std=0.7)


class TestHLGauss(LikelihoodCase):
    settings = LikelihoodSettings("hl_gauss", value_range=RANGE, num_bins=41)


class TestTwoHot(LikelihoodCase):
    settings = LikelihoodSettings("two_hot", value_range=RANGE, num_bins=41)


class TestOwnLikelihood(LikelihoodCase):
    """A Laplace distribution, registered by its user."""

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        with mock.patch.dict(LIKELIHOODS._entries), mock.patch.dict(LIKELIHOODS._places):
            register_likelihood("laplace")(LaplaceLikelihood)
            yield

    @property
    def settings(self) -> LikelihoodSettings:  # type: ignore[override]
        return LikelihoodSettings("laplace", 0.5)


class LaplaceLikelihood(Likelihood):
    outputs = 1

    def __init__(self, noise_std: float) -> None:
        super().__init__()
        self.scale = noise_std / math.sqrt(2)

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> Likelihood:
        return cls(settings.noise_std)

    def value(self, raw: Tensor) -> Tensor:
        return self._read(raw)[..., 0]

    def std(self, raw: Tensor) -> Tensor:
        return torch.full_like(self.value(raw), math.sqrt(2) * self.scale)

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        raw, target = self._read_pair(raw, target)
        return -Laplace(raw[..., 0], self.scale).log_prob(target)

    def fisher_score(self, raw: Tensor, u: Tensor) -> Tensor:
        return self._read_pair(raw, u)[0][..., 0] / self.scale

    def quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        raw, levels = self._read_levels(raw, levels)
        return raw + Laplace(0.0, self.scale).icdf(levels)
