"""Metric of the posterior's uncertainty about the greedy action."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class PolicyUncertainty(Metric):
    """Uncertainty of the posterior about the greedy action, averaged over states and ranks.

    a* is the greedy action of the mean of Q over the draws. `compute` returns

    * `epistemic_std`: standard deviation over the draws of Q(s, a*), in return units;
    * `greedy_disagreement`: share of draws whose greedy action is not a*, 0 to 1;
    * `q_gap`: mean Q of a* minus mean Q of the second best action, in return units; 0 with one action.

    Where `epistemic_std` is far below `q_gap`, all draws choose the same action, which may be right or wrong. Without
    states, all values are NaN.
    """

    full_state_update = False
    totals: Tensor
    states: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("states", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, q_draws: Tensor, correction: int = 1) -> None:
        """Add M states.

        Args:
            q_draws: Q(s, .) by D >= 2 draws of the weights, `[D, M, A]`.
            correction: 1 if the draws are a random sample, whose variance divides by D - 1; 0 if they are all there
                are.

        Raises:
            ValueError: if the shape is not `[D, M, A]` with D >= 2 and A >= 1. One draw has no standard deviation.
        """
        if q_draws.dim() != 3 or q_draws.shape[0] < 2 or q_draws.shape[2] < 1:
            raise ValueError(f"q_draws must be [draws >= 2, states, actions], got {tuple(q_draws.shape)}")
        if q_draws.shape[1] == 0:
            return  # `std` of no numbers would warn
        q_draws = q_draws.detach().float()
        mean = q_draws.mean(0)
        best, greedy = mean.topk(min(2, mean.shape[1])).values, mean.argmax(1)
        at_greedy = q_draws.gather(2, greedy.expand(len(q_draws), -1).unsqueeze(2)).squeeze(2)
        # `argmax` on both sides, which takes the first of equal values: ties are no disagreement.
        disagree = (q_draws.argmax(2) != greedy).float().mean(0)
        std = at_greedy.std(0, correction=correction)
        self.totals += torch.stack([std.sum(), disagree.sum(), (best[:, 0] - best[:, -1]).sum()])
        self.states += q_draws.shape[1]

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        epistemic_std, disagreement, gap = self.totals / self.states
        return {"epistemic_std": epistemic_std, "greedy_disagreement": disagreement, "q_gap": gap}
