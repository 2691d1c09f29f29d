"""The benchmark `snapshot`: what its hashes depend on, and how two checkouts are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import runner
from benchmarks.reliability import snapshot

CONTENT: dict[str, Any] = {"weight": torch.arange(4.0), "step": [1, 2.5, None], "name": "a"}


@pytest.fixture(autouse=True)
def _nothing_stored() -> Iterator[None]:
    """Forget the stored set of a test."""
    yield
    snapshot.STORED.clear()


def row(case: str, side: str, loss: float = 1.0, **hashes: str) -> dict[str, Any]:
    """Return a measurement."""
    values = {"train/loss": [[0, loss]], "val/return_mean": [[5, 2.0]]}
    return {"case": case, "side": side, "hashes": {"weights": "w", "logged": "l"} | hashes, "values": values}


@pytest.mark.parametrize(
    "other",
    [
        {"weight": torch.tensor([0.0, 1, 2, 3 + 1e-6])},
        {"weight": torch.arange(4.0).double()},
        {"weight": torch.arange(4.0).view(2, 2)},
        {"weight": torch.arange(4)},
        {"step": [1, 2.5, 0]},
        {"step": [2.5, 1, None]},
        {"name": "b"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_hash_depends_on_every_value_type_and_shape(other: dict[str, Any]) -> None:
    assert snapshot.short_hash(CONTENT) != snapshot.short_hash(CONTENT | other)


def test_a_hash_does_not_depend_on_the_order_of_keys_or_on_strides() -> None:
    turned = dict(reversed(CONTENT.items())) | {"weight": torch.stack([torch.arange(4.0)] * 2, 1)[:, 0]}
    assert not turned["weight"].is_contiguous()
    assert snapshot.short_hash(CONTENT) == snapshot.short_hash(turned)


def test_options_are_renamed_for_a_checkout_with_old_names() -> None:
    old, new = (snapshot.command_of("deep_sea", Path("folder"), old_names) for old_names in (True, False))
    assert old[old.index("--data.batch_size") + 1] == new[new.index("--data.replay.batch_size") + 1] == "64"
    assert old[1::2] == new[1::2] or [word for word in old if not word.startswith("--data")] == [
        word for word in new if not word.startswith("--data")
    ]
    assert "--data.replay.capacity" in new
    assert "--data.replay_capacity" in old


def test_options_of_a_case_come_before_those_of_all_cases() -> None:
    words = snapshot.command_of("seed", Path("folder"), False)
    assert words[words.index("--data.evaluation.games") + 1] == "1"
    assert words.count("--data.evaluation.games") == 1
    assert words[words.index("--trainer.enable_progress_bar") + 1] == "false"


def test_every_case_has_its_configuration() -> None:
    for config, _ in snapshot.CASES.values():
        assert (runner.ROOT / "configs" / f"{config}.yaml").is_file()


@pytest.mark.parametrize("change", [{"weights": "other"}, {"logged": "other"}], ids=str)
def test_a_difference_fails_and_is_named(change: dict[str, str]) -> None:
    rows = [row("cartpole", "checkout"), row("cartpole", "against"), row("minatar", "checkout")]
    assert snapshot.verdict(rows) == []
    rows += [row("minatar", "against", loss=3.0, **change)]
    (failure,) = snapshot.verdict(rows)
    assert failure == f"minatar differs in {next(iter(change))} (train/loss)"
    assert [line["different"] for line in snapshot.compared(rows)] == ["nothing", next(iter(change))]


def test_a_checkout_is_compared_with_a_stored_set(tmp_path: Path) -> None:
    measured = row("cartpole", "checkout")
    benchmark = runner.Benchmark(
        **{**vars(snapshot.BENCHMARK), "measure": lambda cell, options: {k: measured[k] for k in ("hashes", "values")}}
    )
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert runner.main(benchmark, "snapshot", ["--cases", "cartpole", f"--output={before}"]) == 0
    words = ["--cases", "cartpole", f"--against={before}", f"--output={after}"]
    assert runner.main(benchmark, "snapshot", words) == 0
    measured["hashes"]["weights"] = "other"
    assert runner.main(benchmark, "snapshot", words) == 1
    with pytest.raises(SystemExit, match="has no hashes of minatar"):
        runner.main(benchmark, "snapshot", ["--cases", "cartpole", "minatar", *words[2:]])
    with pytest.raises(SystemExit, match="there is no such file or checkout"):
        runner.main(benchmark, "snapshot", [f"--against={tmp_path / 'none'}", f"--output={after}"])
    assert [row["case"] for row in json.loads(before.read_text())["measurements"]] == ["cartpole"]


@pytest.mark.slow
def test_a_checkout_equals_itself_to_the_bit(tmp_path: Path) -> None:
    words = ["--cases", "cartpole", f"--against={runner.ROOT}", f"--output={tmp_path / 'snapshot.json'}"]
    assert runner.main(snapshot.BENCHMARK, "snapshot", words) == 0
    assert "| cartpole |" in (tmp_path / "snapshot.md").read_text()
