"""Deep exploration by posterior draws, which random actions do not reach."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.learning import deep_sea


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thompson_sampling_solves_deep_sea_of_size_20() -> None:
    """Dithering would need about 2^20 episodes."""
    result = deep_sea.run(20, "thompson", seed=1, limit=2_000)
    assert result["solved_after_episodes"] is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_random_actions_do_not() -> None:
    """The same networks with epsilon-greedy exploration, in as many episodes."""
    result = deep_sea.run(20, "epsilon", seed=1, limit=2_000)
    assert result["episodes"] >= 2_000
    assert result["solved_after_episodes"] is None


def test_a_small_sea_is_solved_soon() -> None:
    """Four cells deep, the whole way through the benchmark's own counting."""
    result = deep_sea.run(4, "thompson", seed=1, limit=400)
    assert result["solved_after_episodes"] is not None
    assert result["first_good_episode"] <= result["solved_after_episodes"] <= result["episodes"] <= 400
    share = result["good_episodes"] / result["episodes"]
    assert share > 0.05


@given(st.lists(st.sampled_from([-0.01, 0.0, 0.99]), max_size=40))
@example([0.0] * 9 + [0.99])  # nine tenths are not below nine tenths
def test_a_sea_is_solved_when_the_share_of_bad_episodes_falls_below_nine_tenths(returns: list[float]) -> None:
    good = [sum(score == 0.99 for score in returns[:played]) for played in range(len(returns) + 1)]
    solved = [played for played in range(1, len(returns) + 1) if 10 * (played - good[played]) < 9 * played]
    assert deep_sea.solved_after(returns) == min(solved, default=None)
