"""What a posterior over weights is: its settings, and draws that stay the same wherever they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bayes_rl.transfers import upload
from bayes_rl.types import check, check_choice

POSTERIORS = ("mean_field", "low_rank", "members")
PRIORS = ("gaussian", "log_uniform")


@dataclass(frozen=True)
class Variational:
    """What the distribution of a weight is, before and after learning.

    Args:
        posterior: family of q. `mean_field`: N(mu, s^2) for each weight. `low_rank`: w = mu + C z + s eps with z of
            `index_dim` standard normal numbers shared by all layers. `members`: a mixture of `index_dim` Gaussians of
            equal weight and common s, whose component is shared by all layers.
        index_dim: d, the length of z, or the number of members, >= 1.
        prior: `gaussian` N(0, 1 / prior_precision), or the improper `log_uniform` of variational dropout.
        prior_precision: 1 / variance of the Gaussian prior, > 0.
        init_log_var: mean of the initial log s^2 (natural logarithm), within +-log_var_limit.
        log_var_limit: log s^2 is clamped to +- this, in (0, 60].
        init_scale: standard deviation of the initial means, in units of 1 / sqrt(fan-in), > 0.
        sequential: keep a Gaussian prior of its own for every weight, which the posterior can become.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    posterior: str = "mean_field"
    index_dim: int = 8
    prior: str = "gaussian"
    prior_precision: float = 10.0
    init_log_var: float = -9.0
    log_var_limit: float = 11.0
    init_scale: float = 1.0
    sequential: bool = False

    def __post_init__(self) -> None:
        check_choice("model.posterior", self.posterior, POSTERIORS)
        check_choice("model.prior", self.prior, PRIORS)
        check(self.index_dim >= 1, "model.index_dim", self.index_dim, "must be at least 1")
        positive = {"prior_precision": self.prior_precision, "log_var_limit": self.log_var_limit}
        for key, value in (positive | {"init_scale": self.init_scale}).items():
            check(0 < value < math.inf, f"model.{key}", value, "must be positive and finite")
        rule = "must be at most 60, as sums of exponentials overflow beyond"
        check(self.log_var_limit <= 60, "model.log_var_limit", self.log_var_limit, rule)
        limit = f"must lie within +-{self.log_var_limit:g} (a natural logarithm of a variance)"
        check(abs(self.init_log_var) <= self.log_var_limit, "model.init_log_var", self.init_log_var, limit)
        low_rank_uniform = self.prior == "log_uniform" and self.posterior == "low_rank"
        rule = "has a closed form for single weights only: choose posterior mean_field or members, or prior gaussian"
        check(not low_rank_uniform, "model.prior", self.prior, rule)
        rule = "is learned from task to task: only posterior mean_field with prior gaussian can become a prior"
        single = self.posterior == "mean_field" and self.prior == "gaussian"
        check(single or not self.sequential, "model.consolidation", "vcl", rule)


@dataclass(frozen=True, eq=False)
class Draws:
    """D draws of all weights of a network, each the same wherever it is used.

    Attributes:
        index: `[D, d]` float32, shared by all layers: standard normal numbers (`low_rank`), rows of the identity
            (`members`), nothing `[D, 0]` (`mean_field`).
        noise: key of a layer to standard normal numbers `[D, *weight shape]`, the draw of its diagonal part; a layer
            without an entry has its mean there. None draws that part afresh for every output instead (local
            reparameterisation).
    """

    index: Tensor
    noise: dict[str, Tensor] | None = None

    @property
    def size(self) -> int:
        """D."""
        return self.index.shape[0]


Weights = Literal["mean", "sample"] | Draws
"""How a forward pass treats weight distributions: their `mean`, a fresh `sample` of every output, or fixed `Draws`."""


def draws_by_seed(settings: Variational, shapes: Mapping[str, tuple[int, ...]], seeds: list[int]) -> Draws:
    """Draws named by their seeds, on the CPU: the same seed is the same draw, whatever the others.

    Args:
        settings: of the posterior.
        shapes: key to weight shape of every Bayesian layer.
        seeds: D of them, one for each draw.
    """
    index, noise = (
        torch.zeros(len(seeds), index_size(settings)),
        {k: torch.empty(len(seeds), *s) for k, s in shapes.items()},
    )
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        if settings.posterior == "members":
            index[row, torch.randint(settings.index_dim, (), generator=generator)] = 1
        else:
            index[row].normal_(generator=generator)
        for values in noise.values():
            values[row].normal_(generator=generator)
    return Draws(index, noise)


def every_member(settings: Variational, device: torch.device) -> Draws:
    """Each member of a mixture once, at its mean weights."""
    return Draws(torch.eye(settings.index_dim, device=device), {})


def index_draws(settings: Variational, count: int, device: torch.device) -> Draws:
    """Draws for learning, their diagonal part local: `count` fresh ones, or every member once."""
    if settings.posterior == "members":
        return replace(every_member(settings, device), noise=None)
    return Draws(torch.randn(count, index_size(settings), device=device))


def index_size(settings: Variational) -> int:
    """Length of a draw's index."""
    return 0 if settings.posterior == "mean_field" else settings.index_dim


class EpisodeDraws:
    """One draw for each of E environments, made anew where its seed changes."""

    def __init__(self, settings: Variational, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._settings, self._shapes = settings, dict(shapes)
        self._seeds: list[int] = []
        self._draws = Draws(torch.zeros(0, 0))

    @torch.inference_mode(False)  # what evaluation made, training may change
    def __call__(self, seeds: list[int], device: torch.device) -> Draws:
        """The draws named by `seeds` `[E]`, on `device`."""
        if len(seeds) != len(self._seeds):
            self._draws = to_device(draws_by_seed(self._settings, self._shapes, seeds), device)
        else:
            self._draws = to_device(self._draws, device)
            changed = [row for row, (old, new) in enumerate(zip(self._seeds, seeds, strict=True)) if old != new]
            if changed:
                fresh = to_device(draws_by_seed(self._settings, self._shapes, [seeds[r] for r in changed]), device)
                rows = upload(torch.tensor(changed), device)
                self._draws.index.index_copy_(0, rows, fresh.index)
                for key, values in (fresh.noise or {}).items():
                    self._draws.noise[key].index_copy_(0, rows, values)  # type: ignore[index]
        self._seeds = list(seeds)
        return self._draws


def to_device(draws: Draws, device: torch.device) -> Draws:
    """The same draws on `device`."""
    noise = draws.noise
    there = None if noise is None else {k: upload(v, device) for k, v in noise.items()}
    return Draws(upload(draws.index, device), there)
