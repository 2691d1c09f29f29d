"""The arithmetic of `benchmarks/end_to_end.py`, `update_rate.py` and `scaling.py`, and that their arms learn the same
network.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bayes_rl.agent.module import VariationalActorCritic

ROOT = Path(__file__).parents[2]
ENCODER = 32 * (4 * 8 * 8 + 1) + 64 * (32 * 4 * 4 + 1) + 64 * (64 * 3 * 3 + 1) + 512 * (64 * 7 * 7 + 1)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/end_to_end.py` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("end_to_end")


@pytest.fixture
def arms(bench: Any) -> Any:
    """`benchmarks/arms.py` as a module."""
    return importlib.import_module("arms")


def row(bench: Any, cell: Any, round: int, frames: float) -> dict[str, Any]:
    """A measurement."""
    known = {"frames_per_second": frames, "updates_per_second": frames / 16, "peak_mib": 1.0, "replay_mib": 1.0}
    return {**bench.asdict(cell), **known, "round": round}


def measure_all(bench: Any, frames: dict[str, float], **options: Any) -> list[Any]:
    """What is measured if nothing fails, in order."""
    asked = argparse.Namespace(parts=bench.PARTS, arms=list(bench.NEEDS), rounds=2, **options)
    rows: list[dict[str, Any]] = []
    order = []
    while todo := bench.next_cell(asked, rows, []):
        cell, round = todo
        order.append(todo)
        rows.append(row(bench, cell, round, frames[cell.arm] + cell.num_envs))
    return order


def test_the_clock_counts_what_lies_between(arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock, begin = arms.Clock(10), arms.PREFILL + arms.WARM_UP
    assert not clock.tick(begin - 1, 5)  # still warming up
    now = 100.0
    assert not clock.tick(begin, 6)
    now = 109.0
    assert not clock.tick(begin + 360, 96)
    now = 112.0
    assert clock.tick(begin + 480, 126)
    result = {"frames_per_second": 4 * 480 / 12, "updates_per_second": 10, "agent_steps": 480, "seconds": 12}
    assert clock.result() == result


def test_an_arm_that_learns_less_than_asked_for_is_refused(arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begin = arms.Clock(0), arms.PREFILL + arms.WARM_UP
    clock.tick(begin, 0)
    assert clock.tick(begin + 400, 90)
    with pytest.raises(RuntimeError, match="90 updates in 400 agent steps"):
        clock.result()


def test_fewer_updates_are_only_as_many_as_asked_for(arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begin = arms.Clock(0, steps_per_update=16), arms.PREFILL + arms.WARM_UP
    clock.tick(begin, 0)
    assert clock.tick(begin + 400, 25)
    assert clock.result()["agent_steps"] == 400
    clock.tick(begin + 400, 100)
    with pytest.raises(RuntimeError, match="100 updates in 400 agent steps"):
        clock.result()


def test_arms_take_turns_and_the_best_of_each_is_measured_again(bench: Any) -> None:
    order = measure_all(bench, {"sb3": 1, "torchrl": 2, "bayes_rl": 3, "bayes_rl_plain": 4})
    first = [(cell.arm, cell.num_envs, round) for cell, round in order[:9]]
    turn = [(arm, num_envs, 0) for num_envs in (1, 8) for arm in bench.NEEDS]
    assert first == [*turn, ("sb3", 1, 1)]
    searched = [cell for cell, _ in order if cell.part == "search"]
    assert searched == bench.grid()
    assert len(set(map(repr, searched))) == len(searched)
    last = [(cell.arm, cell.num_envs, round) for cell, round in order if cell.part == "best"]
    most = {arm: max(cell.num_envs for cell in searched if cell.arm == arm) for arm in ("sb3", "torchrl", "bayes_rl")}
    assert last == [(arm, num_envs, round) for round in (0, 1) for arm, num_envs in most.items()]


def test_ratios_are_taken_within_a_round(bench: Any) -> None:
    theirs, ours = bench.Cell("sb3", 8), bench.Cell("bayes_rl", 8)
    pairs = [(100, 200), (50, 150), (200, 200)]
    rows = [row(bench, cell, i, pair[j]) for i, pair in enumerate(pairs) for j, cell in enumerate((theirs, ours))]
    base, line = bench.summary(rows)
    assert base["ratio_to_sb3"] == [1, 1, 1]
    assert line["ratio_to_sb3"] == [1.5, 2, 2.5]
    assert line["frames_per_second"] == [175, 200, 200]
    assert "| matched | bayes_rl | 8 envs, 2 threads | 3 | **200** (175 to 200) | 12.5 |" in bench.table([line], rows)


def test_our_encoder_is_the_one_that_is_compared(arms: Any) -> None:
    config = yaml.safe_load((ROOT / "configs/breakout.yaml").read_text())
    agent = VariationalActorCritic(**config["model"])
    assert len(agent.twin.trunks) == 1
    assert arms.encoder_size(agent.twin.trunks[0]) == ENCODER
    assert config["data"]["frame_skip"] == arms.SKIP
    assert config["data"]["frame_stack"] == arms.STACK


def test_stable_baselines_has_the_same_encoder(arms: Any) -> None:
    layers = pytest.importorskip("stable_baselines3.common.torch_layers")
    gym = pytest.importorskip("gymnasium")
    space = gym.spaces.Box(0, 255, (4, 84, 84), "uint8")
    assert arms.encoder_size(layers.NatureCNN(space, 512)) == ENCODER


def test_torchrl_has_the_same_encoder(arms: Any) -> None:
    modules = pytest.importorskip("torchrl.modules")
    assert arms.encoder_size(arms.torchrl_network(modules, torch.zeros(4, 84, 84), 4)) == ENCODER


def test_one_thing_grows_at_a_time(bench: Any) -> None:
    scaling = importlib.import_module("scaling")
    for axis, value, cell in scaling.cells(list(scaling.AXES), 1, "32-true"):
        point = {"num_envs": cell.num_envs} | {
            key: cell.options.get(f"data.{key}") for key in scaling.FROM if key != "num_envs"
        }
        assert point == scaling.FROM | {axis: value}


def test_rates_are_compared_at_as_many_updates_and_within_a_round(bench: Any) -> None:
    update_rate = importlib.import_module("update_rate")
    frames = {
        (4, "sb3"): (100, 50),
        (4, "bayes_rl"): (200, 150),
        (64, "sb3"): (1000, 800),
        (64, "bayes_rl"): (2000, 2400),
    }
    rows = [
        row(bench, cell, round, frames[every, cell.arm][round])
        for every in (64, 4)
        for round in range(2)
        for cell in update_rate.cells(every)
        if cell.arm != "torchrl"
    ]
    lines = {(line["steps_per_update"], line["arm"]): line for line in update_rate.summary(rows)}
    assert list(lines) == [(4, "sb3"), (4, "bayes_rl"), (64, "sb3"), (64, "bayes_rl")]
    assert lines[4, "bayes_rl"]["ratio_to_sb3"] == [2.25, 2.5, 2.75]
    assert lines[64, "bayes_rl"]["ratio_to_sb3"] == [2.25, 2.5, 2.75]
    assert lines[64, "bayes_rl"]["frames_per_second"] == [2100, 2200, 2300]
    assert "| 64 | bayes_rl | 2 | **2200** (2100 to 2300) | **2.50** (2.25 to 2.75) |" in update_rate.table(
        list(lines.values())
    )


@pytest.mark.parametrize("num_envs", [1, 4, 8, 16])
@pytest.mark.parametrize("every", [1, 4, 16, 64])
def test_stable_baselines_learns_as_often_as_asked_for(arms: Any, every: int, num_envs: int) -> None:
    schedule = arms.sb3_schedule(every, num_envs)
    (vector_steps, unit), updates = schedule["train_freq"], schedule["gradient_steps"]
    assert (unit, vector_steps * num_envs) == ("step", every * updates)
    assert min(vector_steps, updates) == 1


@pytest.mark.parametrize("every", [-4, 0, 3, 6, 20, 40])
def test_stable_baselines_is_not_asked_to_learn_at_a_rate_that_it_cannot_have(arms: Any, every: int) -> None:
    with pytest.raises(ValueError, match=f"{every} agent steps per update and 16"):
        arms.sb3_schedule(every, 16)


def test_updates_are_asked_of_us_as_often_as_of_the_others(arms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[list[str]] = []
    cli = importlib.import_module("bayes_rl.cli.app")
    monkeypatch.setattr(cli, "run", lambda: typed.append(list(arms.sys.argv)))
    monkeypatch.setattr(arms.sys, "argv", ["before"])
    for every in (4, 16):
        cell = arms.Cell("bayes_rl", 8, steps_per_update=every)
        with pytest.raises(RuntimeError, match="ended before"):
            arms.run_bayes_rl(cell, arms.Clock(1), "folder")
        assert f"--data.updates_per_step={1 / every}" in typed[-1]
