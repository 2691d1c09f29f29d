"""Area under the ROC curve of novel against known states, by counting pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_rl.metrics.novelty import NoveltyAUROC, novelty_auroc

PROPERTY = settings(deadline=None, derandomize=True, database=None, max_examples=100)
# Few distinct numbers, so that ties are frequent, some of them far above 1 and nearly equal.
STDS = st.lists(st.sampled_from([0.0, 1e-6, 0.25, 0.5, 1.0, 3.0, 50.0, 50.5, 1e6]), min_size=1, max_size=30)


def pair_count(known: list[float], novel: list[float]) -> float:
    """Share of pairs in which the novel state has the greater standard deviation, ties half."""
    return sum((n > k) + (n == k) / 2 for k in known for n in novel) / (len(known) * len(novel))


@PROPERTY
@given(STDS, STDS)
def test_the_area_is_the_share_of_pairs_in_the_right_order(known: list[float], novel: list[float]) -> None:
    area = novelty_auroc(torch.tensor(known), torch.tensor(novel))
    assert float(area) == pytest.approx(pair_count(known, novel), abs=1e-6)


def test_the_area_has_a_direction() -> None:
    low, high = torch.rand(20), 1 + torch.rand(30)
    assert float(novelty_auroc(low, high)) == 1
    assert float(novelty_auroc(high, low)) == 0
    assert float(novelty_auroc(torch.zeros(5), torch.zeros(7))) == 0.5  # a std of 0 everywhere tells nothing


@pytest.mark.parametrize(
    ("known", "novel"),
    [([], [1.0]), ([1.0], []), ([1.0, math.nan], [2.0]), ([1.0], [math.inf])],
)
def test_without_states_or_with_numbers_that_are_not_finite_the_area_is_nan(
    known: list[float], novel: list[float]
) -> None:
    assert novelty_auroc(torch.tensor(known), torch.tensor(novel)).isnan()


def test_a_kind_that_was_updated_without_states_has_no_area_until_the_next_reset() -> None:
    """Also if the states are tensors, as they are once several ranks have joined theirs."""
    metric = NoveltyAUROC("noise", "unvisited")
    metric.update("known", torch.rand(3))
    metric.update("unvisited", torch.empty(0))
    metric.unvisited = torch.cat(metric.unvisited)  # type: ignore[assignment, arg-type]
    assert {name: area.isnan().item() for name, area in metric.compute().items()} == {"novelty_auroc_unvisited": True}
    metric.unvisited = [metric.unvisited]  # type: ignore[assignment, list-item]
    metric.reset()
    metric.update("known", torch.rand(3))
    assert metric.compute() == {}


def test_the_metric_joins_updates_and_keeps_the_kinds_apart() -> None:
    torch.manual_seed(0)
    parts: dict[str, list[Tensor]] = {
        "known": [torch.rand(5), torch.rand(8)],
        "noise": [0.5 + torch.rand(6), torch.rand(2)],
        "shuffled": [torch.rand(9)],
    }
    metric = NoveltyAUROC("noise", "shuffled", "unvisited")
    for kind, vectors in parts.items():
        for std in vectors:
            metric.update(kind, std)
    values = metric.compute()
    whole = {kind: torch.cat(vectors).tolist() for kind, vectors in parts.items()}
    for kind in ("noise", "shuffled"):
        wanted = pair_count(whole["known"], whole[kind])
        assert float(values[f"novelty_auroc_{kind}"]) == pytest.approx(wanted, abs=1e-6)
    assert "novelty_auroc_unvisited" not in values
    assert {kind: std.tolist() for kind, std in metric.deviations().items()} == whole
    metric.update("unvisited", torch.empty(0))
    assert metric.compute()["novelty_auroc_unvisited"].isnan()
    metric.reset()
    assert metric.deviations() == {}


@pytest.mark.parametrize(
    ("kind", "std", "message"),
    [
        ("nois", torch.ones(2), "kind must be"),
        ("noise", torch.ones(2, 1), "vectors"),
        ("noise", -torch.ones(2), "negative"),
    ],
)
def test_wrong_input_is_refused(kind: str, std: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoveltyAUROC("noise").update(kind, std)
