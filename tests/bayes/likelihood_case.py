"""Tests that every likelihood must pass, as a base class for the tests of one likelihood."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from bayes_rl.bayes import Likelihood, LikelihoodSettings, make_likelihood


class LikelihoodCase:
    """Tests of a likelihood; subclass it, and name the settings. Returns lie around 0, within +-3.

    Attributes:
        settings: of the likelihood.
    """

    settings: LikelihoodSettings

    def likelihood(self) -> Likelihood:
        return make_likelihood(self.settings)

    def raw(self, *leading: int) -> Tensor:
        """Return outputs of a critic's head for as many actions."""
        return torch.randn(*leading, self.likelihood().outputs)

    def test_shapes_are_those_of_the_actions(self) -> None:
        likelihood, raw, target = self.likelihood(), self.raw(5, 3), torch.randn(5, 3)
        for y in (likelihood.value(raw), likelihood.std(raw), likelihood.nll(raw, target)):
            assert y.shape == (5, 3)
            assert y.dtype == torch.float32
            assert torch.isfinite(y).all()
        assert (likelihood.std(raw) > 0).all()
        assert likelihood.quantiles(raw, torch.tensor([0.1, 0.9])).shape == (5, 3, 2)
        assert likelihood.fisher_score(raw, torch.rand(5, 3)).shape == (5, 3)

    @torch.no_grad()
    def test_quantiles_have_the_mean_and_standard_deviation(self) -> None:
        likelihood, raw, count = self.likelihood(), self.raw(7), 20_000
        levels = (torch.arange(count) + 0.5) / count
        quantiles = likelihood.quantiles(raw, levels)
        assert (quantiles.diff(dim=-1) >= -1e-5).all()
        std = likelihood.std(raw)
        torch.testing.assert_close(quantiles.mean(-1), likelihood.value(raw), rtol=0.01, atol=float(0.01 * std.max()))
        torch.testing.assert_close(quantiles.std(-1), std, rtol=0.01, atol=0.0)

    def test_descent_on_the_nll_brings_the_value_to_the_target(self) -> None:
        likelihood, raw, target = self.likelihood(), self.raw(4).requires_grad_(), torch.tensor([-1.0, 0.0, 0.3, 1.5])
        optimizer = torch.optim.Adam([raw], lr=0.05)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
        for _ in range(1500):
            optimizer.zero_grad()
            likelihood.nll(raw, target).sum().backward()
            optimizer.step()
            decay.step()
        torch.testing.assert_close(likelihood.value(raw.detach()), target, rtol=0.0, atol=0.02)

    def test_no_gradient_flows_through_the_target(self) -> None:
        likelihood, raw = self.likelihood(), self.raw(4).requires_grad_()
        target = torch.randn(4, requires_grad=True)
        likelihood.nll(raw, target).sum().backward()
        assert target.grad is None
        assert raw.grad is not None
        assert (raw.grad != 0).any()

    def test_the_score_can_be_differentiated_for_each_sample(self) -> None:
        likelihood, raw, u = self.likelihood(), self.raw(6), torch.rand(6)
        gradients = vmap(grad(likelihood.fisher_score))(raw, u)
        assert gradients.shape == raw.shape
        for gradient, sample, number in zip(gradients, raw, u, strict=True):
            torch.testing.assert_close(gradient, grad(likelihood.fisher_score)(sample, number))

    def test_shapes_that_would_broadcast_are_refused(self) -> None:
        likelihood, raw = self.likelihood(), self.raw(4)
        with pytest.raises(ValueError, match="shapes must be equal"):
            likelihood.nll(raw, torch.randn(4, 1))
        with pytest.raises(ValueError, match="last axis"):
            likelihood.value(self.raw(4)[..., None].expand(4, likelihood.outputs, likelihood.outputs + 1))
