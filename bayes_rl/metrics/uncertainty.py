"""torchmetrics of doubt: does the agent know what it does not know?"""

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
    """Are returns as far from their prediction as the agent says? Judges
    N(mean - bias, scale^2 (epistemic_std^2 + noise_std^2)).

    `compute` gives, in return units unless said otherwise, over all ranks:

    * `coverage_50`, `coverage_90`: share of realised returns inside the central 50 and 90 % interval, 0 to 1;
    * `calibration_error`: mean of |coverage - level| over the levels 0.05, 0.10 to 0.95, 0 to 1. Kuleshov et al. (2018,
      arXiv:1807.00263) weigh and sum (p_j - share of outcomes below the p_j-quantile)^2; here the difference is
      absolute, and of central intervals. Even perfect predictions leave about 0.3 / sqrt(n) of n independent returns;
    * `return_rmse`, `return_bias`: of mean - realised, whose average is the bias: above 0 the agent hopes too much
      (whatever bias the intervals allow for);
    * `return_correlation`: Pearson's, of mean and realised; 0 if either is constant;
    * `epistemic_std_mean`, `interval_width_90`: how sure it says it is; calibrated and narrow is better than wide.

    With ids of games every average counts each game alike, else each step. Without data, or with any that is not
    finite, all of them are NaN.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # Flat, float32, one state: a rank without data is then an empty vector that joins the others.
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
        """Add predictions and what came of them, all `[M]`: `noise_std` of returns about their mean, with `bias` and
        `scale` fitted on other games (`fit_returns`), `game` an id from 0 to 2^24, unique over updates and ranks;
        steps without one together count as one game. ValueError if shapes do not agree or a std is negative.
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
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, device=self.device)
        rows = float64(flat)[0].view(-1, 7)
        judged = len(rows) > 0 and bool(rows.isfinite().all())
        mean, epistemic, noise, realised, bias, scale, game = (rows if judged else rows.new_zeros(1, 7)).unbind(1)
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
        return {key: value.to(flat) if judged else flat.new_tensor(math.nan) for key, value in values.items()}


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    if a.min() == a.max() or b.min() == b.max():  # exactly: a variance of equal numbers is rounding noise, not 0
        return a.new_zeros(())
    a, b = a - weight @ a, b - weight @ b
    return (weight @ (a * b) / (weight @ a.square() * (weight @ b.square())).sqrt()).clamp(-1, 1)


class PolicyUncertainty(Metric):
    """How much the posterior doubts its own action, averaged over states and ranks; NaN without any.

    * `epistemic_std`: std over the draws of Q(s, a*), a* greedy for the mean over draws; return units;
    * `greedy_disagreement`: share of draws whose greedy action is another than a*, 0 to 1;
    * `q_gap`: mean Q of a* less that of the second best action, return units; 0 if there is but one.

    Where `epistemic_std` is far below `q_gap`, the posterior is sure of its action, right or wrong.
    """

    full_state_update = False
    totals: Tensor
    states: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("states", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, q_draws: Tensor) -> None:
        """Add M states: `q_draws` `[D, M, A]`, Q(s, .) by D >= 2 draws of the weights. ValueError if it is shaped
        otherwise: the spread of a single draw is unknown, not 0.
        """
        if q_draws.dim() != 3 or q_draws.shape[0] < 2 or q_draws.shape[2] < 1:
            raise ValueError(f"q_draws must be [draws >= 2, states, actions], got {tuple(q_draws.shape)}")
        if q_draws.shape[1] == 0:
            return  # the std of nothing warns
        q_draws = q_draws.detach().float()
        mean = q_draws.mean(0)
        best, greedy = mean.topk(min(2, mean.shape[1])).values, mean.argmax(1)
        at_greedy = q_draws.gather(2, greedy.expand(len(q_draws), -1).unsqueeze(2)).squeeze(2)
        disagree = (q_draws.argmax(2) != greedy).float().mean(0)  # arg max on both sides breaks ties alike
        self.totals += torch.stack([at_greedy.std(0).sum(), disagree.sum(), (best[:, 0] - best[:, -1]).sum()])
        self.states += q_draws.shape[1]

    def compute(self) -> dict[str, Tensor]:
        epistemic_std, disagreement, gap = self.totals / self.states
        return {"epistemic_std": epistemic_std, "greedy_disagreement": disagreement, "q_gap": gap}
