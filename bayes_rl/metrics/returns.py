"""Metrics of the scores of whole games."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def interquartile_mean(values: Tensor) -> Tensor:
    """Return the mean of the middle half of `values` `[M]`, a scalar.

    This is the IQM of Agarwal et al. (2021, arXiv:2108.13264): floor(M / 4) values are cut from either
    end, as `scipy.stats.trim_mean(values, 0.25)` does.
    """
    cut = len(values) // 4
    return values.sort().values[cut : len(values) - cut].mean()


class EpisodeReturns(Metric):
    """Raw returns of whole games over all ranks.

    `compute` returns `games`, `games_cut`, `return_mean`, `return_median`, `return_iqm`, `return_min`, `return_max`
    and `length_mean` (frames).
    """

    full_state_update = False
    returns: list[Tensor]
    lengths: list[Tensor]
    cut: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("returns", [], dist_reduce_fx="cat")
        self.add_state("lengths", [], dist_reduce_fx="cat")
        self.add_state("cut", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, returns: Tensor, lengths: Tensor, cut: Tensor | None = None) -> None:
        """Add games.

        Args:
            returns: raw, `[M]`.
            lengths: in environment frames, `[M]`.
            cut: 1 for a game that was stopped early, else 0, `[M]`; None if no game was.
        """
        self.returns.append(returns)
        self.lengths.append(lengths)
        self.cut += 0 if cut is None else cut.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        returns = torch.cat(list(self.returns)) if isinstance(self.returns, list) else self.returns
        lengths = torch.cat(list(self.lengths)) if isinstance(self.lengths, list) else self.lengths
        return {
            "games": torch.tensor(float(len(returns))),
            "games_cut": self.cut.clone(),
            "return_mean": returns.mean(),
            "return_median": returns.quantile(0.5),
            "return_iqm": interquartile_mean(returns),
            "return_min": returns.min(),
            "return_max": returns.max(),
            "length_mean": lengths.mean(),
        }
