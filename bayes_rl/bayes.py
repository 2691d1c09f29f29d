"""Variational Bayesian layers: mean-field Gaussian weights, local reparameterisation, closed-form KL."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.types import check

Weights = Literal["mean", "sample"]
"""How a forward pass treats weight distributions: their `mean`, or a fresh `sample` of every output."""

VARIANCE_FLOOR = 1e-8
LOG_VAR_LIMIT = 11.0


class BayesLinear(nn.Module):
    """Linear layer y = x W^T + b with W_ij ~ N(weight_mu_ij, exp(weight_log_var_ij)) and a deterministic bias.

    The prior is N(0, 1 / prior_precision) for each weight. `sample` uses the local reparameterisation of
    Kingma, Salimans and Welling (2015, arXiv:1506.02557): each output is drawn from
    N(x weight_mu^T + b, x^2 exp(weight_log_var)^T), one draw per row, instead of drawing weights.

    Args:
        in_features: inputs, at least 1.
        out_features: outputs, at least 1.
        prior_precision: 1 / variance of the prior, > 0.
        init_log_var: mean of the initial log-variances (natural logarithm), within +-11.

    Raises:
        ConfigError: if `prior_precision` is not positive or `init_log_var` is outside +-11.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_precision: float = 10.0,
        init_log_var: float = -9.0,
    ) -> None:
        super().__init__()
        check(prior_precision > 0, "model.prior_precision", prior_precision, "must be positive (it is 1 / variance)")
        check(
            abs(init_log_var) <= LOG_VAR_LIMIT,
            "model.init_log_var",
            init_log_var,
            f"must lie within +-{LOG_VAR_LIMIT:g} (a natural logarithm of a variance)",
        )
        self.prior_precision = prior_precision
        self.weight_mu = nn.Parameter(torch.randn(out_features, in_features) / math.sqrt(in_features))
        self.weight_log_var = nn.Parameter(init_log_var + 1e-3 * torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def log_var(self) -> Tensor:
        """Log-variances in use, `[out, in]`, clamped to +-11 so that neither exp nor its inverse overflows."""
        return self.weight_log_var.clamp(-LOG_VAR_LIMIT, LOG_VAR_LIMIT)

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        """Map `[B, in]` to `[B, out]`, by the mean weights or by a fresh draw of each output."""
        mean = F.linear(x, self.weight_mu, self.bias)
        if weights == "mean":
            return mean
        variance = F.linear(x.square(), self.log_var().exp())
        return mean + variance.clamp_min(VARIANCE_FLOOR).sqrt() * torch.randn_like(mean)

    def kl_divergence(self) -> Tensor:
        """KL(q || prior), a scalar in nats: the sum over weights, in float32 whatever the autocast.

        Per weight: (precision (mu^2 + var) - 1 - log var - log precision) / 2.
        """
        with torch.autocast(self.weight_mu.device.type, enabled=False):
            log_var = self.log_var()
            quadratic = self.prior_precision * (self.weight_mu.square() + log_var.exp())
            return 0.5 * (quadratic - log_var - (1.0 + math.log(self.prior_precision))).sum()

    def extra_repr(self) -> str:
        rows, columns = self.weight_mu.shape
        return f"in_features={columns}, out_features={rows}, prior_precision={self.prior_precision:g}"


def bayesian_layers(module: nn.Module) -> list[BayesLinear]:
    """All variational layers in the tree below `module`, in registration order."""
    return [layer for layer in module.modules() if isinstance(layer, BayesLinear)]


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q || prior) of a whole tree: a scalar in nats, the sum over layers (0 without any)."""
    parts = [layer.kl_divergence() for layer in bayesian_layers(module)]
    return torch.stack(parts).sum() if parts else torch.zeros(())
