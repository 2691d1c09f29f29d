"""The arithmetic of the benchmarks `libraries`, `update_rate` and `scaling`, and that their arms learn one network."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import Any

import pytest
import torch
import yaml

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from benchmarks.runner import ROOT
from benchmarks.speed import contenders, libraries, scaling, update_rate
from benchmarks.speed.contenders import Setting

ENCODER = 32 * (4 * 8 * 8 + 1) + 64 * (32 * 4 * 4 + 1) + 64 * (64 * 3 * 3 + 1) + 512 * (64 * 7 * 7 + 1)


def row(setting: Setting, round: int, frames: float) -> dict[str, Any]:
    """Return a measurement."""
    known = {"frames_per_second": frames, "updates_per_second": frames / 16, "peak_mib": 1.0, "replay_mib": 1.0}
    return {**asdict(setting), **known, "round": round}


def measure_all(frames: dict[str, float]) -> list[tuple[Setting, int]]:
    """Return all cells in the order of their measurement, where each follows from the rows before."""
    options = argparse.Namespace(parts=libraries.PARTS, arms=list(contenders.NEEDS), rounds=2)
    rows: list[dict[str, Any]] = []
    order: list[tuple[Setting, int]] = []
    while len(order) < len(cells := libraries.cells(options, rows)):
        setting, round = contenders.setting_of(cells[len(order)]), cells[len(order)]["round"]
        assert (setting, round) not in order
        order.append((setting, round))
        rows.append(row(setting, round, frames[setting.arm] + setting.num_envs))
    return order


def test_the_clock_counts_what_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock, begin = contenders.Clock(10), contenders.PREFILL + contenders.WARM_UP
    assert not clock.tick(begin - 1, 5)  # still warming up
    now = 100.0
    assert not clock.tick(begin, 6)
    now = 109.0
    assert not clock.tick(begin + 360, 96)
    now = 112.0
    assert clock.tick(begin + 480, 126)
    result = {"frames_per_second": 4 * 480 / 12, "updates_per_second": 10, "agent_steps": 480, "seconds": 12}
    assert clock.result() == result


def test_an_arm_that_learns_less_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begin = contenders.Clock(0), contenders.PREFILL + contenders.WARM_UP
    clock.tick(begin, 0)
    assert clock.tick(begin + 400, 90)
    with pytest.raises(RuntimeError, match="90 updates in 400 agent steps"):
        clock.result()


def test_fewer_updates_are_only_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begin = contenders.Clock(0, steps_per_update=16), contenders.PREFILL + contenders.WARM_UP
    clock.tick(begin, 0)
    assert clock.tick(begin + 400, 25)
    assert clock.result()["agent_steps"] == 400
    clock.tick(begin + 400, 100)
    with pytest.raises(RuntimeError, match="100 updates in 400 agent steps"):
        clock.result()


def test_arms_take_turns_and_the_best_of_each_is_measured_again() -> None:
    order = measure_all({"sb3": 1, "torchrl": 2, "bayes_rl": 3, "bayes_rl_plain": 4})
    first = [(cell.arm, cell.num_envs, round) for cell, round in order[:9]]
    turn = [(arm, num_envs, 0) for num_envs in (1, 8) for arm in contenders.NEEDS]
    assert first == [*turn, ("sb3", 1, 1)]
    searched = [cell for cell, _ in order if cell.part == "search"]
    assert searched == libraries.grid()
    assert len(set(map(repr, searched))) == len(searched)
    last = [(cell.arm, cell.num_envs, round) for cell, round in order if cell.part == "best"]
    most = {arm: max(cell.num_envs for cell in searched if cell.arm == arm) for arm in ("sb3", "torchrl", "bayes_rl")}
    assert last == [(arm, num_envs, round) for round in (0, 1) for arm, num_envs in most.items()]


def test_ratios_are_taken_within_a_round() -> None:
    theirs, ours = Setting("sb3", 8), Setting("bayes_rl", 8)
    pairs = [(100, 200), (50, 150), (200, 200)]
    rows = [row(cell, i, pair[j]) for i, pair in enumerate(pairs) for j, cell in enumerate((theirs, ours))]
    base, line = libraries.summarize(rows)
    assert base["ratio_to_sb3"] == [1, 1, 1]
    assert line["ratio_to_sb3"] == [1.5, 2, 2.5]
    assert line["frames_per_second"] == [175, 200, 200]
    assert "| matched | bayes_rl | 8 envs, 2 threads | 3 | **200** (175 to 200) | 12.5 |" in libraries.table(rows)


def test_our_encoder_is_the_one_that_is_compared() -> None:
    config = yaml.safe_load((ROOT / "configs/breakout.yaml").read_text())
    agent = VariationalActorCritic(**config["model"])
    assert len(agent.twin.trunks) == 1
    assert contenders.encoder_size(agent.twin.trunks[0]) == ENCODER
    assert config["data"]["rules"]["frame_skip"] == contenders.SKIP
    assert config["data"]["frame_stack"] == contenders.STACK


def test_stable_baselines_has_the_same_encoder() -> None:
    layers = pytest.importorskip("stable_baselines3.common.torch_layers")
    gym = pytest.importorskip("gymnasium")
    space = gym.spaces.Box(0, 255, (4, 84, 84), "uint8")
    assert contenders.encoder_size(layers.NatureCNN(space, 512)) == ENCODER


def test_torchrl_has_the_same_encoder() -> None:
    modules = pytest.importorskip("torchrl.modules")
    assert contenders.encoder_size(contenders.torchrl_network(modules, torch.zeros(4, 84, 84), 4)) == ENCODER


def test_one_thing_grows_at_a_time() -> None:
    options = argparse.Namespace(axes=list(scaling.AXES), threads=1, precision="32-true")
    cells = scaling.cells(options, [])
    assert len(cells) == sum(map(len, scaling.AXES.values()))
    for cell in cells:
        assert (cell["threads"], cell["options"]["trainer.precision"]) == (1, "32-true")
        point = {"num_envs": cell["num_envs"]} | {
            key: cell["options"].get(f"data.{key}") for key in scaling.FROM if key != "num_envs"
        }
        assert point == scaling.FROM | {cell["axis"]: cell["value"]}


def test_rates_are_compared_at_as_many_updates_and_within_a_round() -> None:
    frames = {
        (4, "sb3"): (100, 50),
        (4, "bayes_rl"): (200, 150),
        (64, "sb3"): (1000, 800),
        (64, "bayes_rl"): (2000, 2400),
    }
    rows = [
        row(cell, round, frames[every, cell.arm][round])
        for every in (64, 4)
        for round in range(2)
        for cell in update_rate.fastest_settings(every)
        if cell.arm != "torchrl"
    ]
    lines = {(line["steps_per_update"], line["arm"]): line for line in update_rate.summarize(rows)}
    assert list(lines) == [(4, "sb3"), (4, "bayes_rl"), (64, "sb3"), (64, "bayes_rl")]
    assert lines[4, "bayes_rl"]["ratio_to_sb3"] == [2.25, 2.5, 2.75]
    assert lines[64, "bayes_rl"]["ratio_to_sb3"] == [2.25, 2.5, 2.75]
    assert lines[64, "bayes_rl"]["frames_per_second"] == [2100, 2200, 2300]
    assert "| 64 | bayes_rl | 2 | **2200** (2100 to 2300) | **2.50** (2.25 to 2.75) |" in update_rate.table(rows)


@pytest.mark.parametrize("num_envs", [1, 4, 8, 16])
@pytest.mark.parametrize("every", [1, 4, 16, 64])
def test_stable_baselines_learns_as_often_as_asked_for(every: int, num_envs: int) -> None:
    schedule = contenders.sb3_schedule(every, num_envs)
    (vector_steps, unit), updates = schedule["train_freq"], schedule["gradient_steps"]
    assert (unit, vector_steps * num_envs) == ("step", every * updates)
    assert min(vector_steps, updates) == 1


@pytest.mark.parametrize("every", [-4, 0, 3, 6, 20, 40])
def test_stable_baselines_is_not_asked_to_learn_at_a_rate_that_it_cannot_have(every: int) -> None:
    with pytest.raises(ValueError, match=f"{every} agent steps per update and 16"):
        contenders.sb3_schedule(every, 16)


def test_updates_are_asked_of_us_as_often_as_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[list[str]] = []
    monkeypatch.setattr(cli, "run", lambda: typed.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["before"])
    for every in (4, 16):
        cell = Setting("bayes_rl", 8, steps_per_update=every)
        with pytest.raises(RuntimeError, match="ended before"):
            contenders.run_bayes_rl(cell, contenders.Clock(1), "folder")
        assert f"--data.updates_per_step={1 / every}" in typed[-1]
