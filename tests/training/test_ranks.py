"""Several processes that train one agent are one process with a larger batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy

from bayes_rl.agent.module import UPDATES_PER_OBSERVATION
from bayes_rl.training.callbacks.graceful_stop import MOST_UPDATES
from bayes_rl.training.rank_strategy import RankStrategy
from tests.helpers.agents import equal
from tests.helpers.big_batch import CASES, OfRank, rows, train_all, trained
from tests.helpers.rank_process import call_on_ranks
from tests.helpers.slow_cases import slow_but


def name_of(case: tuple[str, bool]) -> str:
    agent, double = case
    return f"{agent}-{'float64' if double else 'float32'}"


QUICK = [
    *("mean_field-float64", "mean_field-float32", "process-float64", "natural-float64", "ewc-float64"),
    *("shared_random_pairs-float64", "by_ddp-float64", "accumulated-float64"),
]
"""One case of each way in which an update is exchanged."""


@pytest.fixture(scope="module")
def of_two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[OfRank]:
    """Return what two processes have trained: the agents of the tests that were selected."""
    function = f"{train_all.__module__}:{train_all.__name__}"
    selected = {item.callspec.params["case"] for item in request.session.items if _has_case(item)}
    return call_on_ranks(2, function, tmp_path_factory.mktemp("ranks"), [case for case in CASES if case in selected])


def _has_case(item: Any) -> bool:
    return item.originalname == test_two_ranks_are_one_big_batch.__name__ and item.path == Path(__file__)


@pytest.mark.parametrize("case", slow_but(CASES, *QUICK, id=name_of))
def test_two_ranks_are_one_big_batch(case: tuple[str, bool], of_two_ranks: list[OfRank]) -> None:
    """The same samples with the same noise, 16 on each rank and 32 in one process: 50 updates."""
    agent, double = case
    alone = trained(agent, double)
    first, second = (rank.trained[case] for rank in of_two_ranks)
    assert equal(first, second)
    for name, expected in alone.items():
        if expected.is_floating_point() and not name.endswith(".return_fit"):  # no games were played
            assert expected.dtype == (torch.float64 if double else torch.float32)
            error = (first[name] - expected).norm()
            assert error <= (1e-9 if double else 1e-4 * expected.norm()), (name, float(error))


def test_all_ranks_skip_what_one_of_them_must_skip(of_two_ranks: list[OfRank]) -> None:
    first, second = (rank.faults for rank in of_two_ranks)
    assert first["skipped"] == second["skipped"] == 2
    assert equal(first["state"], second["state"])
    assert all(value.isfinite().all() for value in first["state"].values())


def test_a_signal_to_one_rank_stops_all_after_the_same_update(of_two_ranks: list[OfRank]) -> None:
    """The signal comes in update 10. The ranks tell each other of signals after every eighth update."""
    assert [rank.until_signal[0] for rank in of_two_ranks] == [16, 16]


def test_an_update_exchanges_little_beside_gradients(of_two_ranks: list[OfRank]) -> None:
    """One tensor each of signals, of values to log, and of what the Gaussian process observes; the stream is a list."""
    expected = [
        1  # the gradients
        + (number % MOST_UPDATES == 0)
        + (number % 5 == 0)
        + ((number - 1) % UPDATES_PER_OBSERVATION == 0)
        for number in range(1, 17)
    ]
    for rank in of_two_ranks:
        assert rank.until_signal[1][1:] == expected[1:]  # the process begins in the first update


def test_averages_over_ranks_are_those_of_each_number(of_two_ranks: list[OfRank]) -> None:
    for rank in of_two_ranks:
        found = {name: value.tolist() for name, value in rank.averages.items()}
        assert found == {"whole": 0.5, "tensor": 1.5, "matrix": [[0.5] * 3] * 2, "vector": [0.0, 0.5, 1.0, 1.5]}


def test_the_variance_over_ranks_is_that_of_all_rows(of_two_ranks: list[OfRank]) -> None:
    for rank in of_two_ranks:
        torch.testing.assert_close(rank.variance, rows().var(0))
        assert rank.variance[2] == 0  # exactly, because rounding must not become a feature


def test_ranks_of_one_machine_share_memory_if_they_can_unless_ddp_has_options(of_two_ranks: list[OfRank]) -> None:
    for rank in of_two_ranks:
        assert rank.wrapped == {"as usual": False, "with options": True, "without memory": True}


@pytest.mark.parametrize(("device", "expected"), [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", None)])
def test_ranks_on_gpus_exchange_tensors_of_the_processors_too(
    device: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters are on the processor, and NCCL exchanges tensors of GPUs alone."""
    monkeypatch.setattr(RankStrategy, "root_device", torch.device(device))
    monkeypatch.setattr(DDPStrategy, "setup_distributed", lambda self: None)
    strategy = RankStrategy()
    strategy.setup_distributed()
    assert strategy.process_group_backend == expected
