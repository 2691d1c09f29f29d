"""Deep exploration: what posterior draws find and random actions do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of `benchmarks/` as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thompson_sampling_solves_deep_sea_of_size_20(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dithering would need about 2^20 episodes."""
    result = benchmark("deep_sea", monkeypatch).run(20, "thompson", seed=1, limit=2_000)
    assert result["solved_after_episodes"] is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_actions_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks with epsilon-greedy exploration, in as many episodes."""
    result = benchmark("deep_sea", monkeypatch).run(20, "epsilon", seed=1, limit=2_000)
    assert result["episodes"] >= 2_000
    assert result["solved_after_episodes"] is None


def test_a_small_sea_is_solved_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cells deep, the whole way through the benchmark's own counting."""
    result = benchmark("deep_sea", monkeypatch).run(4, "thompson", seed=1, limit=400)
    assert result["solved_after_episodes"] is not None
    assert result["first_good_episode"] <= result["solved_after_episodes"] <= result["episodes"] <= 400
    share = result["good_episodes"] / result["episodes"]
    assert share > 0.05
