"""Intervals over runs: their coverage in simulations, and Student's interval as a special case."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scipy.stats import ttest_ind
from torch import Tensor

from bayes_rl.metrics.intervals import jackknife_interval, leave_one_out, student_quantile
from bayes_rl.metrics.returns import interquartile_mean


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def middle(numbers: int) -> int:
    return numbers - 2 * (numbers // 4)


@pytest.mark.parametrize("freedom", [1.0, 1.5, 2.0, 4.0, 7.3, 30.0, 200.0])
def test_quantiles_are_those_of_scipy(freedom: float) -> None:
    for probability in (0.6, 0.95, 0.975, 0.995):
        assert student_quantile(probability, freedom) == pytest.approx(student.ppf(probability, freedom), rel=1e-6)


@pytest.mark.parametrize("runs", [2, 5, 12])
def test_the_interval_of_a_mean_is_student_s(runs: int) -> None:
    values = normal(runs, 1)
    low, high = jackknife_interval(values.mean().item(), [leave_one_out(values, torch.mean)], runs)
    std = values.std().item() / math.sqrt(runs)
    assert (low, high) == pytest.approx(student.interval(0.95, runs - 1, values.mean().item(), std), rel=1e-6)


def test_the_interval_of_a_difference_to_references_is_welch_s() -> None:
    """The references' own spread belongs to the interval."""
    runs, references = normal(6, 1), 3 * normal(9, 1, seed=1)
    difference = runs.mean() - references.mean()
    without = [
        leave_one_out(runs, lambda v: v.mean() - references.mean()),
        leave_one_out(references, lambda v: runs.mean() - v.mean()),
    ]
    ours = jackknife_interval(difference.item(), without, 6)
    welch = ttest_ind(runs.flatten(), references.flatten(), equal_var=False).confidence_interval(0.95)
    assert ours == pytest.approx((welch.low, welch.high), rel=1e-5)


def test_tasks_of_a_run_may_depend_on_each_other() -> None:
    """Runs that are good or bad in all tasks: more tasks tell nothing more, and the interval stays as wide."""
    one = normal(6, 1)
    low, high = jackknife_interval(one.mean().item(), [leave_one_out(one, torch.mean)], 6)
    many = one.expand(6, 8)
    assert jackknife_interval(one.mean().item(), [leave_one_out(many, torch.mean)], 48) == pytest.approx((low, high))


def test_equal_runs_have_an_interval_of_no_width() -> None:
    values = torch.full((5, 2), 0.3, dtype=torch.float64)
    assert jackknife_interval(0.3, [leave_one_out(values, torch.mean)], 10) == (0.3, 0.3)


@pytest.mark.parametrize("runs", [5, 8, 10])
@pytest.mark.parametrize(("tasks", "correlation"), [(1, 0.0), (3, 0.0), (3, 0.5)])
@pytest.mark.parametrize("statistic", [torch.mean, interquartile_mean], ids=["mean", "IQM"])
def test_95_percent_intervals_cover_the_truth_in_92_to_98_percent(
    runs: int, tasks: int, correlation: float, statistic: Callable[[Tensor], Tensor]
) -> None:
    """2000 samples of normal runs, whose truth is 0: a share of 0.95 scatters by 0.005."""
    samples, numbers = 2000, runs * tasks
    of_runs, of_tasks = normal(samples, runs, 1, seed=100 + runs), normal(samples, runs, tasks, seed=runs)
    values = math.sqrt(correlation) * of_runs + math.sqrt(1 - correlation) * of_tasks
    averaged = numbers if statistic is torch.mean else middle(numbers)
    rows = torch.arange(runs)
    others = torch.stack([rows[rows != left_out] for left_out in range(runs)])
    statistics = torch.vmap(statistic)
    whole = statistics(values.flatten(1))
    without = torch.stack([statistics(values[:, kept].flatten(1)) for kept in others], 1)
    torch.testing.assert_close(without[0], leave_one_out(values[0], statistic))
    quantile = jackknife_interval(0.0, [torch.tensor([0.0, 1.0] + [0.5] * (runs - 2))], averaged)[1]
    scale = quantile / math.sqrt((runs - 1) / runs * 0.5)  # t, by an interval of known variance
    deviations = without - without.mean(1, keepdim=True)
    std = ((runs - 1) / runs * deviations.square().sum(1)).sqrt()
    low, high = jackknife_interval(whole[7].item(), [without[7]], averaged)
    assert high - low == pytest.approx(2 * scale * std[7].item(), rel=1e-6)
    covered = (whole.abs() <= scale * std).double().mean().item()
    assert 0.92 <= covered <= 0.98
