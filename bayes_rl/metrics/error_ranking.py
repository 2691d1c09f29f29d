"""Metric of how well uncertainty ranks states by the error of their predicted return."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bayes_rl.metrics.calibration import check_not_negative, check_vectors, float64

RESAMPLES = 400
"""Resamples of the games behind a bootstrap interval."""


def spearman(x: Tensor, y: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return Spearman's rank correlation of x and y: Pearson's correlation of their ranks, ties with their mean rank.

    Args:
        x: `[M]`.
        y: `[M]`.
        counts: how often each pair occurs in each of B samples, `[B, M]`, >= 0; None is one sample with each pair once.

    Returns:
        `[B]` float64 (a scalar without `counts`), in [-1, 1]; 0 where x or y is constant.
    """
    check_vectors(x=x, y=y)
    weight = torch.ones(1, len(x), dtype=torch.float64) if counts is None else counts.double().cpu()
    a, b = _centred_ranks(x.cpu(), weight), _centred_ranks(y.cpu(), weight)
    covariance = (weight * a * b).sum(1)
    scale = ((weight * a.square()).sum(1) * (weight * b.square()).sum(1)).sqrt()
    # Ranks are multiples of 1/2, so that a variance which is not 0 is far above the error of rounding.
    correlation = torch.where(scale > 1e-9, covariance / scale, 0.0).clamp(-1, 1)
    return correlation[0] if counts is None else correlation


def _centred_ranks(x: Tensor, counts: Tensor) -> Tensor:
    """Return the ranks of x `[M]` in samples that hold each number as often as `counts` `[B, M]` says, mean 0."""
    distinct, group = x.unique(return_inverse=True)
    occurrences = counts.new_zeros(len(counts), len(distinct)).index_add_(1, group, counts)
    ranks = (occurrences.cumsum(1) - occurrences / 2)[:, group]
    return ranks - (counts * ranks).sum(1, keepdim=True) / counts.sum(1, keepdim=True)


def game_resamples(game: Tensor, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Return how often each state occurs in bootstrap samples of whole games, `[resamples, M]` float64.

    A sample draws as many games as there are, with replacement. States of one game depend on each other, so that a
    sample of states would give intervals that are too narrow.

    Args:
        game: id of the game of each state, `[M]`.
        seed: of the draws.
        resamples: number of samples.
    """
    ids, index = game.cpu().unique(return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), resamples)
    return torch.from_numpy(counts).double()[:, index]


def risk_coverage(std: Tensor, error: Tensor) -> Tensor:
    """Return the risk-coverage curve: entry k - 1 is the mean error of the k states with the least `std`.

    States with equal `std` are in random order; the curve is the mean over all their orders.

    Args:
        std: standard deviation of the prediction in each state, `[M]`.
        error: absolute error of the prediction in each state, `[M]`.

    Returns:
        `[M]` float64, in the unit of the errors. Its last entry is the mean error of all states.
    """
    check_vectors(std=std, error=error)
    std, error = float64(std, error)
    distinct, group = std.unique(return_inverse=True)
    size = torch.zeros(len(distinct), dtype=torch.float64).index_add_(0, group, torch.ones_like(error))
    mean = torch.zeros_like(size).index_add_(0, group, error) / size
    expected = mean[group.sort().values]
    return expected.cumsum(0) / torch.arange(1, len(error) + 1)


def relative_risk_area(std: Tensor, error: Tensor) -> Tensor:
    """Return by how much `std` lowers the area under the risk-coverage curve, relative to the errors' own order.

    The area is (random - a) / (random - oracle), with a the mean of the curve (`risk_coverage`), `oracle` that of the
    curve by the errors themselves, and `random` the mean error: 1 if states are ordered as by their errors, 0 as by
    chance, below 0 worse.

    Args:
        std: standard deviation of the prediction in each state, `[M]`.
        error: absolute error of the prediction in each state, `[M]`.

    Returns:
        A scalar float64, at most 1; NaN if all errors are equal, because no order is better than another one.
    """
    random, oracle = error.double().cpu().mean(), risk_coverage(error, error).mean()
    if error.min() == error.max():
        return torch.tensor(math.nan, dtype=torch.float64)
    return (random - risk_coverage(std, error).mean()) / (random - oracle)


class ErrorRanking(Metric):
    """Ranking of states by the standard deviation of Q, compared with the ranking by the error |Q - realised return|.

    `compute` returns

    * `error_correlation`: Spearman's rank correlation of the standard deviation and the error (`spearman`);
    * `error_correlation_low`, `error_correlation_high`: ends of its 95 % percentile bootstrap interval over games
      (`game_resamples`). With fewer than some ten games the interval is too narrow; with one game it has no width;
    * `risk_coverage_area`: `relative_risk_area`.

    Each state has the same weight. Without states, or with a number that is not finite, all values are NaN.

    Args:
        seed: of the bootstrap's draws, which are the same at each `compute`.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        # One flat vector for each update, so that a rank without data adds an empty vector.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, std: Tensor, error: Tensor, game: Tensor) -> None:
        """Add states.

        Args:
            std: standard deviation of Q in each state, `[M]`, in return units.
            error: |Q - realised return| in each state, `[M]`, in return units.
            game: id of the game of each state, from 0 to 2^24, unique over updates and ranks, `[M]`.

        Raises:
            ValueError: if shapes do not agree, or a number of `std` or `error` is negative.
        """
        check_vectors(std=std, error=error, game=game)
        check_not_negative(std=std, error=error)
        self.rows.append(torch.stack([column.detach().float() for column in (std, error, game)], 1).flatten())

    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return standard deviations, errors and ids of games of all states, each `[M]`."""
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, device=self.device)
        std, error, game = flat.view(-1, 3).unbind(1)
        return std, error, game

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        std, error, game = self.states()
        names = ("error_correlation", "error_correlation_low", "error_correlation_high", "risk_coverage_area")
        if not len(std) or not (std.isfinite() & error.isfinite()).all():
            return {name: std.new_tensor(math.nan) for name in names}
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = spearman(std, error, game_resamples(game, self.seed)).quantile(ends)
        values = (spearman(std, error), low, high, relative_risk_area(std, error))
        return {name: value.to(std) for name, value in zip(names, values, strict=True)}
