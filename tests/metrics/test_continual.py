"""Metrics of continual learning: matrices computed by hand, loops that follow the definitions, and identities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from bayes_rl.metrics.continual import (
    AveragePerformance,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    IsolatedForgetting,
    ScoreMatrix,
    ZeroShotTransfer,
    area_under_curve,
    backward_transfer,
    forgetting,
    forward_transfer,
    isolated_forgetting,
    normalise,
    own_scores,
    visits_since_own,
    zero_shot_transfer,
)

NAN = float("nan")
PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)

# Three tasks, one visit each. Rows: before training, after visit 0, 1, 2.
ONCE = torch.tensor([[0.0, 0.1, 0.0], [0.8, 0.3, 0.1], [0.5, 0.9, 0.0], [0.2, 0.6, 0.7]], dtype=torch.float64)
# Two tasks, two cycles.
TWICE = torch.tensor([[0.0, 0.0], [0.6, 0.1], [0.2, 0.5], [0.9, 0.4], [0.7, 0.8]], dtype=torch.float64)
CYCLES = [0, 1, 0, 1]


def close(actual: Tensor, expected: object) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6, equal_nan=True)


@st.composite
def sequences(draw: st.DrawFn, permuted: bool = True) -> tuple[Tensor, list[int]]:
    """A matrix of scores and its visits: 1 to 5 tasks, 1 to 3 cycles, each in an order of its own."""
    tasks, cycles = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    orders = [draw(st.permutations(range(tasks))) if permuted else range(tasks) for _ in range(cycles)]
    visits = [task for order in orders for task in order]
    score = st.integers(-100, 100).map(lambda n: n / 64)  # dyadic: sums and differences are exact
    row, count = st.lists(score, min_size=tasks, max_size=tasks), len(visits) + 1
    rows = draw(st.lists(row, min_size=count, max_size=count))
    return torch.tensor(rows, dtype=torch.float64), visits


def fill(metric: ScoreMatrix, scores: Tensor) -> ScoreMatrix:
    for row, values in enumerate(scores):
        metric.update(row, values)
    return metric


# By hand


def test_whole_numbers_have_an_area_that_is_none() -> None:
    area = area_under_curve(torch.tensor([0, 10]), torch.tensor([0, 1]), 0, 10)
    assert area == 0.5
    assert area.is_floating_point()


def test_one_visit_each_by_hand() -> None:
    visits = [0, 1, 2]
    close(own_scores(ONCE, visits), [0.8, 0.9, 0.7])
    close(forgetting(ONCE, visits), [0.6, 0.3, 0.0])
    close(backward_transfer(ONCE, visits), [-0.6, -0.3])
    close(fill(AveragePerformance(visits), ONCE).compute(), 0.5)
    close(fill(Forgetting(visits), ONCE).compute(), 0.3)
    close(fill(BackwardTransfer(visits), ONCE).compute(), -0.45)


def test_two_cycles_by_hand() -> None:
    close(own_scores(TWICE, CYCLES), [0.9, 0.8])
    close(own_scores(TWICE, CYCLES, first=True), [0.6, 0.5])
    close(forgetting(TWICE, CYCLES), [0.2, 0.0])
    close(backward_transfer(TWICE, CYCLES), [-0.2])
    close(fill(AveragePerformance(CYCLES), TWICE).compute(), 0.75)
    close(fill(Forgetting(CYCLES), TWICE).compute(), 0.1)


def test_order_of_the_tasks_is_that_of_the_visits() -> None:
    visits = [2, 0, 1]
    close(own_scores(ONCE, visits), [0.5, 0.6, 0.1])
    close(forgetting(ONCE, visits), [0.3, 0.0, -0.6])
    close(backward_transfer(ONCE, visits), [-0.3, 0.6])  # tasks 0 and 2: task 1 is trained last
    close(visits_since_own(visits), [[-1, 0, 1], [-2, -1, 0], [0, 1, 2]])


def test_isolated_forgetting_and_zero_shot_transfer_by_hand() -> None:
    returns = torch.tensor([[1.0, -4.0, 0.0], [10.0, -2.0, 0.0], [5.0, -8.0, 0.0], [6.0, -8.0, 0.0]])
    visits = [0, 1, 2]
    close(isolated_forgetting(returns, visits), [[NAN, 0.5, -0.1], [NAN, NAN, 0.0], [NAN, NAN, NAN]])
    close(zero_shot_transfer(returns, visits), [[NAN, NAN, NAN], [0.25, NAN, NAN], [0.0, 0.0, NAN]])
    forgotten = fill(IsolatedForgetting(visits), returns).compute()
    close(forgotten["matrix"], isolated_forgetting(returns, visits))
    close(forgotten["mean"], 0.4 / 3)
    transferred = fill(ZeroShotTransfer(visits), returns).compute()
    close(transferred["matrix"], zero_shot_transfer(returns, visits))
    close(transferred["mean"], 0.25 / 3)


def test_isolated_forgetting_reads_the_first_cycle_only() -> None:
    changed = TWICE.clone()
    changed[3:] = torch.tensor([[0.1, 0.2], [0.3, 0.1]])
    scale = torch.ones(2, dtype=torch.float64)
    for measure in (isolated_forgetting, zero_shot_transfer):
        close(measure(changed, CYCLES, scale), measure(TWICE, CYCLES, scale))
    close(isolated_forgetting(TWICE, CYCLES, scale), [[NAN, 0.4], [NAN, NAN]])
    close(isolated_forgetting(TWICE, CYCLES), [[NAN, 0.4 / 0.9], [NAN, NAN]])  # the scale is that of all rows


def test_forward_transfer_by_hand() -> None:
    close(forward_transfer(torch.tensor([0.75, 0.2, 0.5]), torch.tensor([0.5, 0.6, 0.5])), [0.5, -1.0, 0.0])
    close(forward_transfer(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.2])), [NAN, NAN])
    metric = ForwardTransfer()
    frames, alone = torch.tensor([200.0, 300.0, 400.0]), torch.tensor([0.0, 100.0, 200.0, 900.0])
    # Areas (0.5 + 2 * 1 + 1) / 4 = 0.875 and (0 + 2 * 0.5 + 1) / 4 = 0.5: what the reference learns later is cut.
    metric.update(frames, torch.tensor([0.5, 1.0, 1.0]), alone, torch.tensor([0.0, 0.5, 1.0, 1.0]))
    close(metric.compute(), 0.75)
    metric.update(frames, torch.tensor([0.0, 0.5, 1.0]), alone, torch.tensor([0.0, 0.5, 1.0, 5.0]))
    close(metric.compute(), 0.375)


def test_area_under_curve_by_hand() -> None:
    frames, scores = torch.tensor([100.0, 200.0, 600.0]), torch.tensor([0.0, 1.0, 0.0])
    close(area_under_curve(frames, scores, 100, 600), 0.5)
    close(area_under_curve(frames, scores, 200, 400), 0.75)  # from 1 to the 0.5 between two points
    close(area_under_curve(frames, scores, 0, 200), 0.25)  # constant before the first point
    close(area_under_curve(frames, scores, 500, 700), 0.0625)  # and after the last
    close(area_under_curve(torch.tensor([5.0]), torch.tensor([0.3]), 0, 9), 0.3)


# Against the definitions


@PROPERTY
@given(sequences())
def test_measures_equal_loops_over_their_definitions(sequence: tuple[Tensor, list[int]]) -> None:
    scores, visits = sequence
    rows, tasks = scores.tolist(), scores.shape[1]
    last = [max(v for v, task in enumerate(visits) if task == i) for i in range(tasks)]
    first = [min(v for v, task in enumerate(visits) if task == i) for i in range(tasks)]
    close(own_scores(scores, visits), [rows[last[i] + 1][i] for i in range(tasks)])
    close(own_scores(scores, visits, first=True), [rows[first[i] + 1][i] for i in range(tasks)])
    close(forgetting(scores, visits), [rows[last[i] + 1][i] - rows[-1][i] for i in range(tasks)])
    gains = [rows[-1][i] - rows[last[i] + 1][i] for i in range(tasks) if i != visits[-1]]
    close(backward_transfer(scores, visits), gains)
    lost = torch.full((tasks, tasks), NAN, dtype=torch.float64)
    given = lost.clone()
    for i in range(tasks):
        scale = max(abs(row[i]) for row in rows) or 1.0
        for j in range(tasks):
            if j > first[i]:
                lost[i, j] = (rows[j][i] - rows[j + 1][i]) / scale
            if j < first[i]:
                given[i, j] = (rows[j + 1][i] - rows[j][i]) / scale
    close(isolated_forgetting(scores, visits), lost)
    close(zero_shot_transfer(scores, visits), given)


@PROPERTY
@given(sequences())
def test_classes_are_means_of_the_functions(sequence: tuple[Tensor, list[int]]) -> None:
    scores, visits = sequence
    close(fill(AveragePerformance(visits), scores).compute(), scores[-1].mean())
    close(fill(Forgetting(visits), scores).compute(), forgetting(scores, visits).mean())
    close(fill(BackwardTransfer(visits), scores).compute(), backward_transfer(scores, visits).mean())
    for metric, measure in ((IsolatedForgetting, isolated_forgetting), (ZeroShotTransfer, zero_shot_transfer)):
        result, matrix = fill(metric(visits), scores).compute(), measure(scores, visits)
        close(result["matrix"].reshape(matrix.shape), matrix)  # torchmetrics makes [1, 1] a scalar
        close(result["mean"], matrix.nanmean())


@PROPERTY
@given(sequences())
def test_backward_transfer_is_minus_forgetting_over_one_task_fewer(sequence: tuple[Tensor, list[int]]) -> None:
    scores, visits = sequence
    tasks = scores.shape[1]
    if tasks > 1:
        close(backward_transfer(scores, visits).mean(), -tasks / (tasks - 1) * forgetting(scores, visits).mean())


@PROPERTY
@given(sequences(permuted=False))
def test_isolated_changes_add_up_to_the_whole(sequence: tuple[Tensor, list[int]]) -> None:
    """Over one cycle, isolated forgettings of a task sum to its forgetting, transfers to what it gained untrained."""
    scores, visits = sequence
    tasks = scores.shape[1]
    once, cycle, scale = scores[: tasks + 1], visits[:tasks], torch.ones(tasks, dtype=torch.float64)
    close(isolated_forgetting(once, cycle, scale).nansum(1), forgetting(once, cycle))
    gained = [once[i, i] - once[0, i] for i in range(tasks)]
    close(zero_shot_transfer(once, cycle, scale).nansum(1), torch.stack(gained))


@PROPERTY
@given(sequences(), st.integers(1, 40))
def test_scaled_returns_change_nothing_in_isolation(sequence: tuple[Tensor, list[int]], factor: int) -> None:
    scores, visits = sequence
    for measure in (isolated_forgetting, zero_shot_transfer):
        matrix = measure(scores, visits)
        close(measure(scores * factor, visits), matrix)
        assert (matrix.nan_to_num().abs() <= 2).all()


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-5, 5)), min_size=1, max_size=8),
    st.floats(-20, 420),
    st.floats(0.5, 100),
)
def test_area_equals_numerical_integration(steps: list[tuple[int, float]], start: float, length: float) -> None:
    frames, scores = np.cumsum([step for step, _ in steps]).astype(float), np.array([score for _, score in steps])
    end = start + length
    breaks = [x for x in frames if start < x < end]
    exact, _ = quad(lambda x: np.interp(x, frames, scores), start, end, points=breaks or None, limit=200)
    area = area_under_curve(torch.from_numpy(frames), torch.from_numpy(scores), start, end)
    assert area.dtype == torch.float64
    assert area.item() == pytest.approx(exact / length, abs=1e-6)  # quad stops at an error of 1.5e-8


@PROPERTY
@given(st.floats(-2, 3), st.floats(-2, 0.9))
def test_forward_transfer_is_undone_by_its_definition(area: float, reference: float) -> None:
    transfer = forward_transfer(*torch.tensor([area, reference], dtype=torch.float64)).item()
    assert reference + transfer * (1 - reference) == pytest.approx(area, abs=1e-9)


def test_a_curve_transfers_nothing_to_itself_and_all_from_a_perfect_start() -> None:
    frames, curve = torch.tensor([0.0, 10.0, 30.0]), torch.tensor([0.0, 0.4, 0.8])
    for scores, expected in ((curve, 0.0), (torch.ones(3), 1.0)):
        metric = ForwardTransfer()
        metric.update(frames + 1000, scores, frames, curve)
        close(metric.compute(), expected)


def test_normalise() -> None:
    close(normalise(torch.tensor([1.0, 3.0, 5.0]), 1, 5), [0.0, 0.5, 1.0])
    scores = torch.tensor([[-20.0, 2.0], [-10.0, 4.0]])
    close(normalise(scores, torch.tensor([-20.0, 0.0]), torch.tensor([0.0, 4.0])), [[0.0, 0.5], [0.5, 1.0]])
    for high in (1.0, 0.5, NAN):
        with pytest.raises(ValueError, match="high must be above low"):
            normalise(scores, 1.0, high)


# Degenerate and bad input


def test_a_single_task_has_nothing_to_transfer() -> None:
    scores = torch.tensor([[0.1], [0.7]])
    close(fill(AveragePerformance([0]), scores).compute(), 0.7)
    close(fill(Forgetting([0]), scores).compute(), 0.0)
    close(fill(BackwardTransfer([0]), scores).compute(), NAN)
    result = fill(IsolatedForgetting([0]), scores).compute()
    close(result["mean"], NAN)


def test_a_task_that_only_returned_zero_changed_by_zero() -> None:
    close(isolated_forgetting(torch.zeros(3, 2), [0, 1]), [[NAN, 0.0], [NAN, NAN]])


def test_a_missing_row_is_nan_only_where_it_is_read() -> None:
    metric: ScoreMatrix = AveragePerformance([0, 1, 2])
    metric.update(3, ONCE[3])
    close(metric.compute(), 0.5)
    missing = ((Forgetting, 1), (BackwardTransfer, 2), (IsolatedForgetting, 2), (ZeroShotTransfer, 0))
    kind: type[ScoreMatrix]
    for kind, row in missing:
        metric = kind([0, 1, 2])
        for other in {0, 1, 2, 3} - {row}:
            metric.update(other, ONCE[other])
        result = metric.compute()
        assert (result["mean"] if isinstance(result, dict) else result).isnan(), kind


@pytest.mark.parametrize("visits", [[], [0, 2], [1], [-1, 0]])
def test_visits_that_skip_a_task_are_refused(visits: list[int]) -> None:
    with pytest.raises(ValueError, match="visits must name the tasks"):
        Forgetting(visits)


@pytest.mark.parametrize(
    "call",
    [
        lambda: forgetting(ONCE[1:], [0, 1, 2]),
        lambda: own_scores(ONCE[:, :2], [0, 1, 2]),
        lambda: isolated_forgetting(ONCE.T, [0, 1, 2]),
        lambda: zero_shot_transfer(ONCE, [0, 1, 2], torch.ones(1)),
        lambda: visits_since_own([0, 0, 1]),
        lambda: forward_transfer(torch.ones(2), torch.ones(2, 1)),
        lambda: Forgetting([0, 1]).update(3, torch.ones(2)),
        lambda: Forgetting([0, 1]).update(-1, torch.ones(2)),
        lambda: Forgetting([0, 1]).update(0, torch.ones(1)),
        lambda: area_under_curve(torch.ones(2), torch.ones(2), 0, 1),
        lambda: area_under_curve(torch.arange(2), torch.ones(1), 0, 1),
        lambda: area_under_curve(torch.arange(0), torch.ones(0), 0, 1),
        lambda: area_under_curve(torch.arange(2), torch.ones(2), 1, 1),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must|expected"):
        call()


# As torchmetrics


def test_rows_come_in_any_order_and_are_averaged_until_reset() -> None:
    metric = ScoreMatrix([0, 1, 2])
    for row in (2, 0, 3, 1):
        metric.update(row, ONCE[row] - 1)
    for row in (1, 3, 0, 2):
        metric.update(row, ONCE[row] + 1)
    matrix = metric.compute()
    close(matrix, ONCE.float())
    metric.reset()
    metric.update(0, ONCE[0])
    close(metric.matrix()[:2], [ONCE[0].tolist(), [NAN] * 3])


def test_two_ranks_average_their_rows_and_pool_their_curves() -> None:
    """Simulated: the gathering function hands each state of both ranks, in the order in which torchmetrics asks."""
    ranks = [fill(Forgetting([0, 1, 2]), ONCE + shift) for shift in (torch.zeros(3), torch.tensor([[-0.3, 0.3, 0.6]]))]
    other = iter([ranks[1].totals, ranks[1].counts])
    ranks[0].dist_sync_fn = lambda state, group: [state, next(other)]
    ranks[0].distributed_available_fn = lambda: True
    close(ranks[0].compute(), 0.3)  # a shift of a task's whole column is no forgetting
    half = [fill(AveragePerformance([0]), torch.tensor([[0.0], [score]])) for score in (0.2, 0.6)]
    other = iter([half[1].totals, half[1].counts])
    half[0].dist_sync_fn = lambda state, group: [state, next(other)]
    half[0].distributed_available_fn = lambda: True
    close(half[0].compute(), 0.4)
    curves = [ForwardTransfer(), ForwardTransfer()]
    frames = torch.tensor([0.0, 10.0])
    for metric, level in ((curves[0], 0.5), (curves[1], 1.0), (curves[1], 0.0)):
        metric.update(frames, torch.full((2,), level), frames, torch.tensor([0.5, 0.5]))
    other = iter([torch.cat(curves[1].transfers)])
    curves[0].dist_sync_fn = lambda state, group: [state, next(other)]
    curves[0].distributed_available_fn = lambda: True
    close(curves[0].compute(), 0.0)  # 0, 1 and -1


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_process_group_of_one_changes_nothing() -> None:
    close(fill(Forgetting([0, 1, 2]), ONCE).compute(), 0.3)
    metric = ForwardTransfer()
    for level in (1.0, 0.0):
        metric.update(torch.arange(2), torch.full((2,), level), torch.arange(2), torch.tensor([0.5, 0.5]))
    close(metric.compute(), 0.0)
