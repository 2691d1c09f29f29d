"""Metrics of continual learning: forgetting and transfer, from one matrix of scores.

A *visit* is one stretch of training on one task; `visits` `[V]` names the task of each, by its number 0 to T - 1. The
matrix `scores` is `[V + 1, T]`: row 0 before any training, row v + 1 after visit v, one column per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def normalise(score: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return (score - low) / (high - low), in the shape that the three broadcast to.

    Args:
        score: raw, `[...]`.
        low: score that becomes 0 (random play).
        high: score that becomes 1 (a reference).

    Raises:
        ValueError: unless `high` is above `low` everywhere.
    """
    span = torch.as_tensor(high - low)
    if not (span > 0).all():
        raise ValueError(f"high must be above low, got low {low}, high {high}")
    return (score - low) / span


def own_scores(scores: Tensor, visits: Sequence[int], first: bool = False) -> Tensor:
    """Return each task's score right after its last visit, or after its first visit.

    Args:
        scores: `[V + 1, T]`, raw or normalised.
        visits: task of each visit, `[V]`.
        first: take the score after the first visit of a task instead of the last one.

    Returns:
        `[T]`, in the unit of `scores`.

    Raises:
        ValueError: if the shape does not fit `visits`, or a task has no visit.
    """
    tasks = _check(scores, visits)
    numbered = list(enumerate(visits, start=1))
    row = {
        task: after for after, task in (reversed(numbered) if first else numbered)
    }  # a later entry replaces an earlier one
    return scores[[row[task] for task in range(tasks)], list(range(tasks))]


def forgetting(scores: Tensor, visits: Sequence[int]) -> Tensor:
    """Return the loss of each task since its last training, `[T]`: F_i = p_i(end of task i) - p_i(end of all).

    Wolczyk et al. (2021, arXiv:2105.10919); positive is loss, and the task trained last has 0. The end of a task with
    several visits is the end of its last visit. Deviation: Continual World counts each visit of its
    repeated sequence (CW20) as a task of its own.

    Args:
        scores: normalised, `[V + 1, T]`.
        visits: task of each visit, `[V]`.
    """
    return own_scores(scores, visits) - scores[-1]


def backward_transfer(scores: Tensor, visits: Sequence[int]) -> Tensor:
    """Return the gain of each task by later training, R_(T,i) - R_(i,i), without the task trained last, `[T - 1]`.

    Lopez-Paz and Ranzato (2017, arXiv:1706.08840); negative is loss. R_(T,i) is the score at the end, R_(i,i) the
    score after the task's own, last visit. With one visit per task the mean is -T / (T - 1) times that of `forgetting`.

    Args:
        scores: normalised, `[V + 1, T]`.
        visits: task of each visit, `[V]`.
    """
    gain = scores[-1] - own_scores(scores, visits)
    return gain[[task for task in range(len(gain)) if task != visits[-1]]]


def area_under_curve(frames: Tensor, scores: Tensor, start: float, end: float) -> Tensor:
    """Return the average score of a curve from `start` to `end`: 1 / (end - start) x its integral.

    The curve is linear between its points and constant beyond them, so that unevenly spaced validations have the
    right weight.

    Args:
        frames: environment frames of the validations, increasing, `[P]`.
        scores: scores there, `[P]`.
        start: begin of the interval, in frames.
        end: end of the interval, in frames.

    Returns:
        A scalar in the unit of `scores`, summed in float64.

    Raises:
        ValueError: if frames do not increase, lengths differ, or the interval is empty.
    """
    x, y = (tensor.detach().cpu().double().numpy() for tensor in (frames, scores))
    if x.ndim != 1 or x.shape != y.shape or len(x) == 0 or not (np.diff(x) > 0).all():
        raise ValueError(f"expected increasing frames and as many scores, got {frames.tolist()}, {scores.tolist()}")
    if not start < end:
        raise ValueError(f"the stretch must not be empty, got start {start}, end {end}")
    grid = np.concatenate([[start], x[(start < x) & (x < end)], [end]])
    line = torch.from_numpy(np.interp(grid, x, y))
    area = torch.trapezoid(line, torch.from_numpy(grid)) / (end - start)
    return area.to(scores.device, scores.dtype if scores.is_floating_point() else torch.get_default_dtype())


def forward_transfer(area: Tensor, reference: Tensor) -> Tensor:
    """Return how much sooner a task was learned than alone, `[...]`: (AUC_i - AUC_i^ref) / (1 - AUC_i^ref).

    Wolczyk et al. (2021, arXiv:2105.10919). 1 is a perfect score from the first frame, 0 is as fast as the reference,
    negative is slower. NaN where the reference's area reaches 1, the largest area of the definition.

    Args:
        area: normalised area under the curve of the task in the sequence, `[...]`.
        reference: area of an agent that learned the task alone in as many frames, `[...]`.
    """
    if area.shape != reference.shape:  # unequal shapes would broadcast silently
        raise ValueError(f"shapes must be equal, got area {tuple(area.shape)}, reference {tuple(reference.shape)}")
    return torch.where(reference < 1, (area - reference) / (1 - reference), torch.nan)


def visits_since_own(visits: Sequence[int]) -> Tensor:
    """Return how many visits visit j comes after that of task i (negative: before), in the first cycle, `[T, T]` int64.

    Raises:
        ValueError: unless the first T visits train each task once.
    """
    tasks = _check_visits(visits)
    cycle = list(visits[:tasks])
    if sorted(cycle) != list(range(tasks)):
        raise ValueError(f"the first {tasks} visits must train each task once, got {cycle}")
    own = torch.tensor([cycle.index(task) for task in range(tasks)])
    return torch.arange(tasks) - own.unsqueeze(1)


def isolated_forgetting(returns: Tensor, visits: Sequence[int], scale: Tensor | None = None) -> Tensor:
    """Return the loss of task i by visit j alone, for j after task i: F_ij = r_(i,j-1) - r_(i,j).

    Powers et al. (2021, CORA, arXiv:2110.10067): r_(i,j) is task i's return after visit j, divided by the greatest
    |return| of the task. As in their tables only the first cycle counts, and the summary is the mean over all cells.

    Args:
        returns: `[V + 1, T]`, raw (a shifted or normalised score has another scale).
        visits: task of each visit, `[V]`; the first T train each task once.
        scale: divisor of each task, `[T]`, positive; None takes the greatest |return| in the task's column.

    Returns:
        `[T, T]`, task by visit of the first cycle, in [-2, 2]; positive is loss; NaN where j is not after task i.
    """
    return torch.where(visits_since_own(visits).to(returns.device) > 0, -_changes(returns, visits, scale), torch.nan)


def zero_shot_transfer(returns: Tensor, visits: Sequence[int], scale: Tensor | None = None) -> Tensor:
    """Return the gain of task i by visit j alone, for j before task i: Z_ij = r_(i,j) - r_(i,j-1).

    Powers et al. (2021, CORA, arXiv:2110.10067). r is defined as in `isolated_forgetting`; before the first visit it
    is row 0's.

    Args:
        returns: `[V + 1, T]`, raw (a shifted or normalised score has another scale).
        visits: task of each visit, `[V]`; the first T train each task once.
        scale: divisor of each task, `[T]`, positive; None takes the greatest |return| in the task's column.

    Returns:
        `[T, T]`, task by visit of the first cycle, in [-2, 2]; positive is gain; NaN where j is not before task i.
    """
    return torch.where(visits_since_own(visits).to(returns.device) < 0, _changes(returns, visits, scale), torch.nan)


def _changes(returns: Tensor, visits: Sequence[int], scale: Tensor | None) -> Tensor:
    tasks = _check(returns, visits)
    scale = returns.abs().amax(0) if scale is None else scale
    if scale.shape != (tasks,):
        raise ValueError(f"scale must be [{tasks}], got {tuple(scale.shape)}")
    scaled = returns / torch.where(scale == 0, 1, scale)  # 0 / 0 for a task whose returns are all 0 would be NaN
    return scaled[: tasks + 1].diff(dim=0).T


def _check_visits(visits: Sequence[int]) -> int:
    tasks = len(set(visits))
    if tasks == 0 or set(visits) != set(range(tasks)):
        raise ValueError(f"visits must name the tasks 0 to T - 1, each at least once, got {list(visits)}")
    return tasks


def _check(scores: Tensor, visits: Sequence[int]) -> int:
    tasks = _check_visits(visits)
    if scores.shape != (len(visits) + 1, tasks):
        raise ValueError(f"scores must be [{len(visits) + 1}, {tasks}], got {tuple(scores.shape)}")
    return tasks


class ScoreMatrix(Metric):
    """Matrix of scores that the metrics below read, filled row by row; a row without an update is NaN.

    Several updates of a row (by ranks, or seeds) are averaged.

    Args:
        visits: task of each visit, `[V]`, numbers 0 to T - 1, each at least once.
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, visits: Sequence[int]) -> None:
        super().__init__()
        self.visits = list(visits)
        tasks = _check_visits(self.visits)
        self.add_state("totals", torch.zeros(len(self.visits) + 1, tasks), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.visits) + 1, 1), dist_reduce_fx="sum")

    def update(self, row: int, scores: Tensor) -> None:
        """Add the scores of all tasks.

        Args:
            row: 0 before any training, v + 1 after visit v.
            scores: `[T]`.

        Raises:
            ValueError: if there is no such row, or `scores` is not `[T]`.
        """
        rows, tasks = self.totals.shape
        if not 0 <= row < rows or scores.shape != (tasks,):
            raise ValueError(
                f"expected a row of 0 to {rows - 1} and scores [{tasks}], got {row}, {tuple(scores.shape)}"
            )
        self.totals[row] += scores.detach().to(self.totals)
        self.counts[row] += 1

    def compute(self) -> Any:
        """Return the matrix `[V + 1, T]`."""
        return self.matrix()

    def matrix(self) -> Tensor:
        """Return the matrix `[V + 1, T]`: of all ranks inside `compute`, of this rank alone outside."""
        return self.totals / self.counts


class AveragePerformance(ScoreMatrix):
    """Average performance: P = mean over tasks of p_i(end), the normalised score at the end.

    Wolczyk et al. (2021, arXiv:2105.10919).
    """

    def compute(self) -> Tensor:
        """Return a scalar."""
        return self.matrix()[-1].mean()


class Forgetting(ScoreMatrix):
    """Forgetting: F = mean of `forgetting` over all T tasks, with the last task's 0.

    Wolczyk et al. (2021, arXiv:2105.10919).
    """

    def compute(self) -> Tensor:
        """Return a scalar."""
        return forgetting(self.matrix(), self.visits).mean()


class BackwardTransfer(ScoreMatrix):
    """Backward transfer: BWT = 1 / (T - 1) x sum of `backward_transfer`; NaN if T is 1.

    Lopez-Paz and Ranzato (2017, arXiv:1706.08840).
    """

    def compute(self) -> Tensor:
        """Return a scalar."""
        return backward_transfer(self.matrix(), self.visits).mean()


class IsolatedForgetting(ScoreMatrix):
    """Matrix `[T, T]` of `isolated_forgetting`, and the mean over its cells (Powers et al. 2021, arXiv:2110.10067).

    Rows are raw returns. The mean is NaN for a single task.
    """

    def compute(self) -> dict[str, Tensor]:
        """Return `matrix` `[T, T]` and the scalar `mean`."""
        matrix = isolated_forgetting(self.matrix(), self.visits)
        return {"matrix": matrix, "mean": matrix[visits_since_own(self.visits) > 0].mean()}


class ZeroShotTransfer(ScoreMatrix):
    """Matrix `[T, T]` of `zero_shot_transfer`, and the mean over its cells (Powers et al. 2021, arXiv:2110.10067).

    Rows are raw returns. The mean is NaN for a single task.
    """

    def compute(self) -> dict[str, Tensor]:
        """Return `matrix` `[T, T]` and the scalar `mean`."""
        matrix = zero_shot_transfer(self.matrix(), self.visits)
        return {"matrix": matrix, "mean": matrix[visits_since_own(self.visits) < 0].mean()}


class ForwardTransfer(Metric):
    """Forward transfer: FT = mean over tasks of `forward_transfer` (Wolczyk et al. 2021, arXiv:2105.10919).

    An update adds the learning curves of one task. The area of a curve is its average normalised score over the
    frames of the task's visit; the reference's area is taken over as many frames from its first point on.
    """

    full_state_update = False
    transfers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("transfers", [], dist_reduce_fx="cat")

    def update(self, frames: Tensor, scores: Tensor, reference_frames: Tensor, reference_scores: Tensor) -> None:
        """Add a task.

        Args:
            frames: increasing environment frames from the start to the end of the task's visit, `[P]`.
            scores: normalised, at these frames, `[P]`.
            reference_frames: increasing frames of an agent that learned the task alone, `[Q]`.
            reference_scores: normalised scores of that agent, `[Q]`.

        Raises:
            ValueError: if frames do not increase, or the lengths of a curve differ.
        """
        start, end = float(frames[0]), float(frames[-1])
        alone = float(reference_frames[0])
        area = area_under_curve(frames, scores, start, end)
        reference = area_under_curve(reference_frames, reference_scores, alone, alone + end - start)
        self.transfers.append(forward_transfer(area, reference).reshape(1))

    def compute(self) -> Tensor:
        """Return a scalar."""
        return dim_zero_cat(self.transfers).mean()
