"""Metrics of predictive uncertainty and calibration."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from bayes_rl.metrics.calibration import (
    check_not_negative,
    check_vectors,
    float64,
    game_weights,
    gaussian_intervals,
    interval_coverage,
)

LEVELS = tuple(k / 20 for k in range(1, 20))  # 0.05 to 0.95: the levels that `calibration_error` averages over


class ReturnCalibration(Metric):
    """Calibration of predicted returns, N(mean - bias, scale^2 (epistemic_std^2 + noise_std^2)).

    `compute` returns, over all ranks and in return units unless stated otherwise:

    * `coverage_50`, `coverage_90`: share of realised returns inside the central 50 and 90 % interval, 0 to 1;
    * `calibration_error`: mean of |coverage - level| over the levels 0.05, 0.10 to 0.95, 0 to 1. Kuleshov et al. (2018,
      arXiv:1807.00263) weight and sum (p_j - share of outcomes below the p_j-quantile)^2; here the difference is
      absolute, and of central intervals. Even perfect predictions leave about 0.3 / sqrt(n) of n independent returns;
    * `return_rmse`, `return_bias`: of mean - realised, whose average is the bias: above 0 the agent predicts
      too much. The bias of the intervals does not enter;
    * `return_correlation`: Pearson's, of mean and realised, in [-1, 1]; 0 if either is constant;
    * `epistemic_std_mean`, `interval_width_90`: width of the prediction; of two calibrated ones the narrow is better.

    With ids of games every average counts each game alike, else each step. Without data, or with a number that is
    not finite, all values are NaN.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Flat, float32, one state: a rank without data then adds an empty vector.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        mean: Tensor,
        epistemic_std: Tensor,
        noise_std: Tensor,
        realised: Tensor,
        game: Tensor | None = None,
        bias: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        """Add predicted and realised returns.

        Args:
            mean: predicted returns, `[M]`.
            epistemic_std: posterior std of the prediction, `[M]`.
            noise_std: std of returns about their mean, `[M]`.
            realised: realised returns, `[M]`.
            game: id of the game of each step, from 0 to 2^24, unique over updates and ranks, `[M]`; all steps without
                an id count as one game.
            bias: fitted on other games (`fit_returns`), in return units.
            scale: fitted on other games, without a unit.

        Raises:
            ValueError: if shapes do not agree, or a std is negative.
        """
        ids = torch.full_like(mean, -1) if game is None else game
        vectors = {"mean": mean, "epistemic_std": epistemic_std, "noise_std": noise_std, "realised": realised}
        check_vectors(**vectors, game=ids)
        fitted = {"bias": torch.full_like(mean, bias), "scale": torch.full_like(mean, scale)}
        check_not_negative(epistemic_std=epistemic_std, noise_std=noise_std, scale=fitted["scale"])
        self.rows.append(
            torch.stack([v.detach().float() for v in ({**vectors, **fitted}).values()] + [ids.float()], 1).flatten()
        )

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, device=self.device)
        rows = float64(flat)[0].view(-1, 7)
        valid = len(rows) > 0 and bool(rows.isfinite().all())
        mean, epistemic, noise, realised, bias, scale, game = (rows if valid else rows.new_zeros(1, 7)).unbind(1)
        weight, std = game_weights(game), scale * (epistemic.square() + noise.square()).sqrt()
        coverage = interval_coverage(mean - bias, std, realised, LEVELS, weight)
        lower, upper = gaussian_intervals(mean - bias, std, [0.9])
        error = mean - realised
        values = {
            "coverage_50": coverage[LEVELS.index(0.5)],
            "coverage_90": coverage[LEVELS.index(0.9)],
            "calibration_error": (coverage - torch.tensor(LEVELS, dtype=torch.float64)).abs().mean(),
            "return_rmse": (weight @ error.square()).sqrt(),
            "return_bias": weight @ error,
            "return_correlation": _correlation(mean, realised, weight),
            "epistemic_std_mean": weight @ epistemic,
            "interval_width_90": weight @ (upper - lower)[0],
        }
        return {key: value.to(flat) if valid else flat.new_tensor(math.nan) for key, value in values.items()}


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    if (
        a.min() == a.max() or b.min() == b.max()
    ):  # exact: the computed variance of equal numbers is rounding noise, not 0
        return a.new_zeros(())
    a, b = a - weight @ a, b - weight @ b
    return (weight @ (a * b) / (weight @ a.square() * (weight @ b.square())).sqrt()).clamp(-1, 1)


class PolicyUncertainty(Metric):
    """Uncertainty of the posterior about the greedy action, averaged over states and ranks; NaN without states.

    * `epistemic_std`: std over the draws of Q(s, a*), a* greedy for the mean over draws; return units;
    * `greedy_disagreement`: share of draws whose greedy action is not a*, 0 to 1;
    * `q_gap`: mean Q of a* minus that of the second best action, return units; 0 with one action.

    Where `epistemic_std` is far below `q_gap`, the posterior is certain of its action, which may be right or wrong.
    """

    full_state_update = False
    totals: Tensor
    states: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("states", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, q_draws: Tensor) -> None:
        """Add M states.

        Args:
            q_draws: Q(s, .) by D >= 2 draws of the weights, `[D, M, A]`.

        Raises:
            ValueError: if the shape is another; the spread of a single draw is unknown, not 0.
        """
        if q_draws.dim() != 3 or q_draws.shape[0] < 2 or q_draws.shape[2] < 1:
            raise ValueError(f"q_draws must be [draws >= 2, states, actions], got {tuple(q_draws.shape)}")
        if q_draws.shape[1] == 0:
            return  # `std` warns without numbers
        q_draws = q_draws.detach().float()
        mean = q_draws.mean(0)
        best, greedy = mean.topk(min(2, mean.shape[1])).values, mean.argmax(1)
        at_greedy = q_draws.gather(2, greedy.expand(len(q_draws), -1).unsqueeze(2)).squeeze(2)
        disagree = (q_draws.argmax(2) != greedy).float().mean(0)  # arg max on both sides breaks ties alike
        self.totals += torch.stack([at_greedy.std(0).sum(), disagree.sum(), (best[:, 0] - best[:, -1]).sum()])
        self.states += q_draws.shape[1]

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        epistemic_std, disagreement, gap = self.totals / self.states
        return {"epistemic_std": epistemic_std, "greedy_disagreement": disagreement, "q_gap": gap}
