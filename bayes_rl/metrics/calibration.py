"""Calibration of predicted returns: intervals, fits of their bias and width, and the metric `ReturnCalibration`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

LEVELS = tuple(k / 20 for k in range(1, 20))
"""0.05 to 0.95: the levels that `calibration_error` averages over."""


def check_vectors(**tensors: Tensor) -> None:
    """Raise `ValueError` unless all tensors are vectors of one length."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected vectors of one length, got {shapes}")


def check_not_negative(**stds: Tensor) -> None:
    """Raise `ValueError` if any number is negative."""
    for name, std in stds.items():
        if (std < 0).any():
            raise ValueError(f"{name} must not be negative, got {std.min().item()}")


def _check_inside_0_and_1(name: str, numbers: Sequence[float]) -> None:
    if not all(0 < number < 1 for number in numbers):
        raise ValueError(f"{name} must lie inside (0, 1), got {list(numbers)}")


def float64(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in float64 for exact sums, on the CPU: not every accelerator has float64."""
    return [tensor.detach().cpu().double() for tensor in tensors]


def realised_returns(rewards: Tensor, discounts: Tensor, gamma: float, bootstrap: float = 0.0) -> Tensor:
    """Return the realised returns of a game: G_t = r_t + gamma d_t G_{t+1}, with G_T = `bootstrap`.

    The bootstrap is itself a prediction. In a truncated game it makes up more than 1 % of the returns of the last
    log(0.01) / log(gamma) steps (458 steps at gamma 0.99): leave these steps out of a comparison, or read it with care.

    Args:
        rewards: r_t `[T]` as the learner reads them: clipped, and with its penalty for a lost life.
        discounts: d_t `[T]`, 0 where the learner's return ends (termination, or a lost life if that ends it), else 1.
        gamma: discount per agent step, in [0, 1].
        bootstrap: value predicted at the last screen of a truncated game, in return units; 0 otherwise.

    Returns:
        `[T]` float32, summed in float64.

    Raises:
        ValueError: if shapes do not agree, or a discount is neither 0 nor 1.
    """
    check_vectors(rewards=rewards, discounts=discounts)
    if not ((discounts == 0) | (discounts == 1)).all():
        raise ValueError("discounts must be 0 or 1: gamma is applied here")
    value, returns = float(bootstrap), []
    for reward, discount in zip(reversed(rewards.tolist()), reversed(discounts.tolist()), strict=True):
        # No multiplication by 0: a value beyond an end may be infinite or NaN, and must not reach this step.
        value = reward + gamma * value if discount else reward
        returns.append(value)
    return torch.tensor(returns[::-1], dtype=torch.float32, device=rewards.device)


def gaussian_quantiles(mean: Tensor, std: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Return quantiles `[L, ...]` of N(mean, std^2), two `[...]`, at `probabilities` `[L]`, each inside (0, 1)."""
    if mean.shape != std.shape:  # unequal shapes would broadcast silently
        raise ValueError(f"shapes must be equal, got mean {tuple(mean.shape)}, std {tuple(std.shape)}")
    _check_inside_0_and_1("probabilities", probabilities)
    z = torch.special.ndtri(torch.tensor(probabilities, dtype=torch.float64)).to(mean)
    return mean + z.view(-1, *[1] * mean.dim()) * std


def gaussian_intervals(mean: Tensor, std: Tensor, levels: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return lower and upper ends `[L, ...]` of central intervals of N(mean, std^2).

    `mean` and `std` are `[...]`; `levels` `[L]`, each inside (0, 1), are the masses of the intervals.
    """
    _check_inside_0_and_1("levels", levels)
    lower = gaussian_quantiles(mean, std, [(1 - level) / 2 for level in levels])
    return lower, gaussian_quantiles(mean, std, [(1 + level) / 2 for level in levels])


def interval_coverage(
    mean: Tensor, std: Tensor, realised: Tensor, levels: Sequence[float], weight: Tensor | None = None
) -> Tensor:
    """Return the share of realised returns inside the central intervals (ends included) of N(mean, std^2).

    Args:
        mean: predicted returns, `[M]`.
        std: of the prediction, `[M]`.
        realised: realised returns, `[M]`.
        levels: mass of each interval, `[L]`, each inside (0, 1).
        weight: of each return, `[M]`, with sum 1; None weighs all alike.

    Returns:
        `[L]` float64.
    """
    check_vectors(mean=mean, std=std, realised=realised)
    lower, upper = gaussian_intervals(mean, std, levels)
    inside = ((lower <= realised) & (realised <= upper)).double()
    return inside.mean(1) if weight is None else inside @ weight


def gaussian_crps(mean: Tensor, std: Tensor, realised: Tensor) -> Tensor:
    """Return the continuous ranked probability score of N(mean, std^2) for realised returns, all `[M]`.

    The score is the integral over y of (P(Y <= y) - 1[realised <= y])^2, in return units, >= 0, the lower the better.
    Its closed form is that of Gneiting et al. (2005), std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with
    z = (realised - mean) / std. Without a spread it is |realised - mean|.
    """
    check_vectors(mean=mean, std=std, realised=realised)
    error = realised - mean
    z = error / std
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    crps = std * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    return torch.where(std == 0, error.abs(), crps)


def gaussian_log_score(mean: Tensor, std: Tensor, realised: Tensor) -> Tensor:
    """Return the logarithmic score of N(mean, std^2): the log density of realised returns, all `[M]`.

    The score is in nats, the higher the better (Gneiting and Raftery 2007). Without a spread it is infinite:
    positive where the prediction is exact, else negative.
    """
    check_vectors(mean=mean, std=std, realised=realised)
    error = realised - mean
    score = -0.5 * (error / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(std == 0, torch.where(error == 0, math.inf, -math.inf), score)


def game_weights(game: Tensor) -> Tensor:
    """Return weights `[M]` float64 that count each game of the ids `game` `[M]` alike: 1 / (games x its length).

    The weights sum to 1. The residuals of one game are correlated, so a game of twice the length does not carry twice
    the information.
    """
    _, index, length = game.unique(return_inverse=True, return_counts=True)
    return 1 / (len(length) * length.double())[index]


def fit_return_noise(mean: Tensor, epistemic_std: Tensor, realised: Tensor, game: Tensor | None = None) -> float:
    """Return the noise std >= 0 that makes `realised` most likely under N(mean, epistemic_std^2 + noise^2).

    Q is a mean: returns scatter about it at random (sticky actions, the policy's draws) even where it is known
    exactly. The noise std is that scatter, one number for all states. It serves for intervals on games *other* than
    those that it was fitted on; on the fitted games the coverage is too high. The fit assumes residuals that are
    Gaussian, of one scale and unbiased: a biased mean counts as noise. Dependence within a game does not bias the
    fit, but makes it as uncertain as a fit to few games is.

    With equal epistemic variances v the noise variance is max(0, mean squared residual - v). Otherwise the likelihood
    may have several peaks: the peaks that a grid of 12 decades separates are bisected in float64, and the highest
    one is returned.

    Args:
        mean: predicted returns, `[M]`.
        epistemic_std: posterior std of the prediction, `[M]`.
        realised: realised returns, `[M]`.
        game: ids of games `[M]`, each game counting alike; None counts each step alike.

    Returns:
        The noise std in return units; 0 if the posterior std alone explains the residuals; NaN if an input is not
        finite.

    Raises:
        ValueError: if there is nothing to fit, shapes do not agree, or a std is negative.
    """
    check_vectors(mean=mean, epistemic_std=epistemic_std, realised=realised)
    check_not_negative(epistemic_std=epistemic_std)
    if len(mean) == 0:
        raise ValueError("no residuals to fit the noise to")
    ids = torch.zeros_like(mean) if game is None else game
    check_vectors(mean=mean, game=ids)
    mean, epistemic_std, realised, ids = float64(mean, epistemic_std, realised, ids)
    weight, variance, squares = game_weights(ids), epistemic_std.square(), (realised - mean).square()
    # Beyond the greatest excess every term of the likelihood decreases, so no peak lies there.
    highest = (squares - variance).max().item()
    if not (squares + variance).isfinite().all():
        return math.nan
    if highest <= 0:
        return 0.0

    def log_likelihood(noise: float) -> float:
        total = variance + noise
        return -(weight * (total.log() + squares / total)).sum().item()

    def rises(noise: float) -> bool:
        total = variance + noise
        return (weight * (squares - total) / total.square()).sum().item() > 0

    grid = [highest * 10 ** (12 * (k / 127 - 1)) for k in range(128)]  # its first point stands for 0
    rising = [*map(rises, grid[:-1]), False]
    peaks = [_top(rises, low, high) for k, (low, high) in enumerate(pairwise(grid)) if rising[k] and not rising[k + 1]]
    best = max(peaks if rising[0] else [grid[0], *peaks], key=log_likelihood)
    return 0.0 if best == grid[0] else math.sqrt(best)


def _top(rises: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return (low + high) / 2


def conformal_scale(mean: Tensor, std: Tensor, realised: Tensor, level: float, game: Tensor | None = None) -> float:
    """Return the factor c for which mean +- c std contains a return of a new game with probability >= `level`.

    The method is split conformal prediction with the score |realised - mean| / std, on games that neither trained the
    agent nor are the games of the intervals (Lei et al. 2018, arXiv:1604.04173). Steps of one game are dependent, and
    a long game has more of them. So the unit is the game: each of G games and the unknown new game has the weight
    1 / (G + 1), divided equally among the game's steps, and c is the least score at which the weights of all scores up
    to c reach `level` (Lee, Barber and Willett 2023, arXiv:2306.06342). It assumes no distribution, only games that
    are exchangeable. The probability is that of a step drawn uniformly from a new game.

    Args:
        mean: predicted returns, `[M]`.
        std: predictive std, `[M]`.
        realised: realised returns, `[M]`.
        level: wanted coverage, inside (0, 1).
        game: ids of games `[M]`; None makes each step a game.

    Returns:
        c, which is 1.645 for a Gaussian at level 0.9; infinite if G < level / (1 - level), because no finite interval
        has this coverage then; NaN if a score is NaN.

    Raises:
        ValueError: if shapes do not agree, a std is negative, or `level` is outside (0, 1).
    """
    ids = torch.arange(len(mean)) if game is None else game
    check_vectors(mean=mean, std=std, realised=realised, game=ids)
    check_not_negative(std=std)
    _check_inside_0_and_1("level", [level])
    mean, std, realised = float64(mean, std, realised)
    distance = (realised - mean).abs()
    scores = torch.where(distance == 0, distance, distance / std)  # exact and certain: 0, not 0 / 0
    if scores.isnan().any():
        return math.nan
    games, (ordered, order) = len(ids.unique()), scores.sort()
    weights = game_weights(ids.cpu())[order] * games / (games + 1)
    # Rounded, because 55 weights of 1 / 100 must reach 0.55.
    number = int((weights.cumsum(0).round(decimals=9) < round(level, 9)).sum())
    return ordered[number].item() if number < len(ordered) else math.inf


class ReturnFit(NamedTuple):
    """Correction of predictions, fitted on the realised returns of other games.

    A corrected prediction is N(mean - bias, scale^2 (std^2 + noise_std^2)).

    Attributes:
        bias: mean of prediction - return, each game counting alike; above 0 the agent predicts too much.
        noise_std: of returns about their unbiased prediction, beyond the posterior's own std (`fit_return_noise`).
        scale: factor of the std with which the interval at `FITTED_LEVEL` has its coverage (`conformal_scale`).
    """

    bias: float
    noise_std: float
    scale: float


FITTED_LEVEL = 0.9


def fit_returns(mean: Tensor, epistemic_std: Tensor, realised: Tensor, game: Tensor | None = None) -> ReturnFit:
    """Fit bias, noise and scale, in this order.

    Values whose order alone matters for acting keep a constant error for long, and noise cannot narrow a posterior
    that is wider than the errors. Bias and scale correct both in intervals of other games. The scale is 1 if there
    are too few games (at most 8) to fit one.

    Args:
        mean: predicted returns, `[M]`.
        epistemic_std: posterior std of the prediction, `[M]`.
        realised: realised returns, `[M]`.
        game: ids of games `[M]`, each game counting alike; None counts each step alike, as a game.

    Returns:
        Bias and noise std in return units, and the scale; all NaN if an input is not finite.

    Raises:
        ValueError: if there is nothing to fit, shapes do not agree, or a std is negative.
    """
    ids = torch.zeros_like(mean) if game is None else game
    check_vectors(mean=mean, epistemic_std=epistemic_std, realised=realised, game=ids)
    mean, epistemic_std, realised, ids = float64(mean, epistemic_std, realised, ids)
    bias = (game_weights(ids) @ (mean - realised)).item() if len(mean) else 0.0
    noise = fit_return_noise(mean - bias, epistemic_std, realised, ids)
    if math.isnan(noise):
        return ReturnFit(math.nan, math.nan, math.nan)
    std = (epistemic_std.square() + noise**2).sqrt()
    half_width = conformal_scale(mean - bias, std, realised, FITTED_LEVEL, game)
    scale = half_width / torch.special.ndtri(torch.tensor((1 + FITTED_LEVEL) / 2, dtype=torch.float64)).item()
    return ReturnFit(bias, noise, scale if math.isfinite(scale) else 1.0)


class ReturnCalibration(Metric):
    """Calibration of predicted returns, N(mean - bias, scale^2 (epistemic_std^2 + noise_std^2)).

    `compute` returns, over all ranks and in return units unless stated otherwise:

    * `coverage_50`, `coverage_90`: share of realised returns inside the central 50 and 90 % interval, 0 to 1;
    * `calibration_error`: mean of |coverage - level| over the levels 0.05, 0.10 to 0.95, 0 to 1. Kuleshov et al. (2018,
      arXiv:1807.00263) weight and sum (p_j - share of outcomes below the p_j-quantile)^2; this metric takes absolute
      differences, and central intervals. With n independent returns, perfect predictions have an error of about
      0.3 / sqrt(n);
    * `crps`: continuous ranked probability score of the prediction, the lower the better;
    * `log_score`: log density of the realised returns under the prediction, in nats, the higher the better;
    * `return_rmse`, `return_bias`: root mean square and mean of the errors, mean - realised, without the fitted bias.
      If `return_bias` is above 0, the agent predicts too much;
    * `return_correlation`: Pearson's correlation of mean and realised, in [-1, 1]; 0 if either is constant;
    * `epistemic_std_mean`, `interval_width_90`: mean of `epistemic_std`, and mean width of the central 90 % interval.
      Of two calibrated agents, the agent with the narrower intervals predicts better.

    With ids of games, every average gives each game the weight 1; without ids, each step. Without data, or with a
    number that is not finite, all values are NaN.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # One flat float32 vector for each update, so that a rank without data adds an empty vector.
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
        columns = [*vectors.values(), *fitted.values(), ids]
        self.rows.append(torch.stack([column.detach().float() for column in columns], 1).flatten())

    def coverage(self) -> Tensor:
        """Return the share of returns inside the central intervals at `LEVELS`, `[L]` float64; NaN without data."""
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, device=self.device)
        rows = float64(flat)[0].view(-1, 7)
        if not len(rows) or not rows.isfinite().all():
            return torch.full((len(LEVELS),), math.nan, dtype=torch.float64)
        mean, epistemic, noise, realised, bias, scale, game = rows.unbind(1)
        std = scale * (epistemic.square() + noise.square()).sqrt()
        return interval_coverage(mean - bias, std, realised, LEVELS, game_weights(game))

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics by name."""
        flat = dim_zero_cat(self.rows) if len(self.rows) else torch.empty(0, device=self.device)
        rows = float64(flat)[0].view(-1, 7)
        valid = len(rows) > 0 and bool(rows.isfinite().all())
        mean, epistemic, noise, realised, bias, scale, game = (rows if valid else rows.new_zeros(1, 7)).unbind(1)
        weight, std = game_weights(game), scale * (epistemic.square() + noise.square()).sqrt()
        coverage = self.coverage()
        lower, upper = gaussian_intervals(mean - bias, std, [0.9])
        error = mean - realised
        values = {
            "coverage_50": coverage[LEVELS.index(0.5)],
            "coverage_90": coverage[LEVELS.index(0.9)],
            "calibration_error": (coverage - torch.tensor(LEVELS, dtype=torch.float64)).abs().mean(),
            "crps": weight @ gaussian_crps(mean - bias, std, realised),
            "log_score": weight @ gaussian_log_score(mean - bias, std, realised),
            "return_rmse": (weight @ error.square()).sqrt(),
            "return_bias": weight @ error,
            "return_correlation": _correlation(mean, realised, weight),
            "epistemic_std_mean": weight @ epistemic,
            "interval_width_90": weight @ (upper - lower)[0],
        }
        return {key: value.to(flat) if valid else flat.new_tensor(math.nan) for key, value in values.items()}


def _correlation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted correlation of two vectors; 0 if a vector is constant."""
    # Exact, unlike a test of the variance: the computed variance of equal numbers is rounding noise, not 0.
    if x.min() == x.max() or y.min() == y.max():
        return x.new_zeros(())
    x, y = x - weight @ x, y - weight @ y
    return (weight @ (x * y) / (weight @ x.square() * (weight @ y.square())).sqrt()).clamp(-1, 1)
