"""Intervals of a statistic over runs, by Student's t with the variance of the jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FEWEST_RUNS = 5
"""Runs below which a range from the least to the greatest is given in place of an interval."""

Statistic = Callable[[Tensor], Tensor]
"""A vector to a scalar."""


def leave_one_out(values: Tensor, statistic: Statistic) -> Tensor:
    """Return the statistic without each run in turn, `[N]`.

    Args:
        values: of N runs on M tasks, `[N, M]`.
        statistic: a vector `[(N - 1) * M]` to a scalar.
    """
    return torch.stack([statistic(torch.cat([values[:i], values[i + 1 :]]).flatten()) for i in range(len(values))])


def jackknife_interval(
    estimate: float, without: Sequence[Tensor], averaged: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval estimate +- t s of a statistic of independent groups of runs.

    s^2 is the sum over groups of (N - 1) / N x the sum of squared deviations of the estimates without one run (Efron
    and Stein 1981), and t the quantile of Student's distribution with the degrees of freedom of Welch and
    Satterthwaite. For the mean over the runs of one group the interval is Student's own. The values of a run may
    depend on each other, because runs are left out as a whole.

    Args:
        estimate: the statistic of all runs.
        without: of each group, the statistic without each of its N runs in turn, `[N]`. The first group holds the runs
            of the method, others hold runs of references.
        averaged: number of values of the first group that the statistic averages; an interquartile mean averages the
            middle half of the values. It limits the degrees of freedom.
        level: wanted coverage, inside (0, 1).

    Returns:
        The lower and the upper end, in the unit of the statistic.
    """
    variances, degrees = [], []
    for number, estimates in enumerate(without):
        runs = len(estimates)
        deviations = estimates.double() - estimates.double().mean()
        variances.append((runs - 1) / runs * deviations.square().sum().item())
        degrees.append(runs - 1 if number else min(runs, averaged) - 1)
    variance = sum(variances)
    if variance == 0:
        return estimate, estimate
    freedom = variance**2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    half_width = student_quantile((1 + level) / 2, freedom) * math.sqrt(variance)
    return estimate - half_width, estimate + half_width


def student_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution.

    Args:
        probability: of a smaller value, inside (0.5, 1).
        freedom: degrees of freedom, > 0, not necessarily whole.
    """
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_probability(t: float, freedom: float) -> float:
    """Return P(T <= t) for t >= 0 by Simpson's rule over the angle arctan(t / sqrt(freedom)).

    In the angle x the density is proportional to cos(x)^(freedom - 1), which has no tail.
    """
    nodes = 2000
    x = torch.linspace(0, math.atan(t / math.sqrt(freedom)), nodes + 1, dtype=torch.float64)
    weights = torch.full((nodes + 1,), 2.0, dtype=torch.float64)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    integral = (weights * x.cos() ** (freedom - 1)).sum().item() * x[-1].item() / (3 * nodes)
    log_constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    return 0.5 + math.exp(log_constant) * integral
