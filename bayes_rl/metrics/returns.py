"""Metrics of the scores of whole games."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def interquartile_mean(values: Tensor) -> Tensor:
    """Return the mean of the middle half of `values` `[M]`, a scalar.

    This is the IQM of Agarwal et al. (2021, arXiv:2108.13264): floor(M / 4) values are cut from either
    end, as `scipy.stats.trim_mean(values, 0.25)` does.
    """
    cut = len(values) // 4
    return values.sort().values[cut : len(values) - cut].mean()


class EpisodeReturns(Metric):
    """Raw returns of whole games over all ranks.

    `compute` returns `games`, `games_cut`, `games_truncated`, `return_mean`, `return_counted`, `return_median`,
    `return_iqm`, `return_min`, `return_max`, `length_mean` (frames), `points_won` and `points_lost`.
    """

    full_state_update = False
    returns: list[Tensor]
    lengths: list[Tensor]
    counted: list[Tensor]
    totals: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("returns", [], dist_reduce_fx="cat")
        self.add_state("lengths", [], dist_reduce_fx="cat")
        self.add_state("counted", [], dist_reduce_fx="cat")
        self.add_state("totals", torch.zeros(3), dist_reduce_fx="sum")  # games cut, games truncated, points lost

    def update(
        self,
        returns: Tensor,
        lengths: Tensor,
        cut: Tensor | None = None,
        truncated: Tensor | None = None,
        counted: Tensor | None = None,
        points_lost: Tensor | None = None,
    ) -> None:
        """Add games.

        Args:
            returns: raw, `[M]`.
            lengths: in environment frames, `[M]`.
            cut: 1 for a game that was stopped because no reward came, else 0, `[M]`; None if no game was.
            truncated: 1 for a game that reached its limit of frames, else 0, `[M]`; None if no game did.
            counted: returns that count where a game was stopped, `[M]`; None counts the raw ones.
            points_lost: size of the sum of the negative rewards of each game, `[M]`; None if there were none.
        """
        nothing = torch.zeros_like(returns)
        columns = (cut, truncated, points_lost)
        self.returns.append(returns)
        self.lengths.append(lengths)
        self.counted.append(returns if counted is None else counted)
        self.totals += torch.stack([(nothing if column is None else column).sum() for column in columns])

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        returns, lengths, counted = map(dim_zero_cat, (self.returns, self.lengths, self.counted))
        cut, truncated, lost = self.totals.clone()
        mean = returns.mean()
        return {
            "games": torch.tensor(float(len(returns))),
            "games_cut": cut,
            "games_truncated": truncated,
            "return_mean": mean,
            "return_counted": counted.mean(),
            "return_median": returns.quantile(0.5),
            "return_iqm": interquartile_mean(returns),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "length_mean": lengths.mean(),
            "points_won": mean + lost / len(returns),
            "points_lost": lost / len(returns),
        }
