"""The log of training episodes, and the numbers that are read from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.learning.episodes import EpisodeLog, area_under_curve, curve_at, first_above, first_solved
from benchmarks.learning.silent_run import prepare_run, silence_lightning
from benchmarks.runner import ROOT

BUDGET = 60

episodes = st.lists(st.tuples(st.integers(1, 80), st.floats(-3, 3)), max_size=12).map(
    lambda pairs: ([frame for frame, _ in sorted(pairs)], [score for _, score in sorted(pairs)])
)


def height(frame: float, frames: Sequence[int], scores: Sequence[float], window: int) -> float:
    """Return the curve at one frame, by its definition."""
    ended = [score for end, score in zip(frames, scores, strict=True) if end <= frame][-window:]
    return sum(ended) / len(ended) if ended else 0.0


@given(episodes, st.integers(1, 5))
def test_the_area_is_the_mean_of_the_curve_over_all_frames(log: tuple[list[int], list[float]], window: int) -> None:
    by_frame = [height(frame, *log, window) for frame in range(BUDGET)]
    assert area_under_curve(*log, window, BUDGET) == pytest.approx(sum(by_frame) / BUDGET, abs=1e-9)
    assert curve_at(range(BUDGET), *log, window) == pytest.approx(by_frame, abs=1e-9)


def test_the_area_of_success_from_a_moment_on_is_the_share_of_frames_after_it() -> None:
    assert area_under_curve([15, 30, 45, 60, 75], [1, 1, 1, 1, 1], 2, BUDGET) == pytest.approx(0.75)
    assert area_under_curve([], [], 2, BUDGET) == 0


@given(episodes, st.integers(1, 5), st.floats(-2, 2))
def test_the_first_success_and_the_solution_are_the_first_by_their_definition(
    log: tuple[list[int], list[float]], window: int, bound: float
) -> None:
    _, scores = log
    assert first_above(scores, bound) == min((i for i, score in enumerate(scores) if score > bound), default=None)
    means = {end: sum(scores[end - window : end]) / window for end in range(window, len(scores) + 1)}
    solved = min((end - 1 for end, mean in means.items() if mean >= bound), default=None)
    if all(abs(mean - bound) > 1e-6 for mean in means.values()):
        assert first_solved(scores, window, bound) == solved


def test_a_window_that_is_not_full_solves_nothing() -> None:
    assert first_solved([1, 1, 1], 4, 0.9) is None
    assert first_solved([0, 1, 1, 1, 1], 4, 1) == 4


@pytest.mark.filterwarnings("ignore")
def test_every_episode_is_logged_with_the_frame_of_its_end() -> None:
    """All ten games of DeepSea of size 4 end at every fourth step. The prefill alone has 150 episodes."""
    silence_lightning()
    config = yaml.safe_load((ROOT / "configs" / "deep_sea.yaml").read_text())
    config["data"] |= {"env_kwargs": {"size": 4, "one_hot": False}}
    config["data"]["replay"] |= {"min_size": 600, "batch_size": 8}
    log = EpisodeLog(lambda log: log.now >= 800, lambda log: "")
    data, agent, trainer = prepare_run(config, 1, max_epochs=1, limit_val_batches=0, callbacks=[log])
    trainer.fit(agent, datamodule=data)
    steps = len(log.returns) // 10
    assert steps >= 19
    assert log.frames == [40 * (i + 1) for i in range(steps) for _ in range(10)]
    assert log.returns[-100:] == list(data.stream.recent_returns)
    assert len(log.returns) == data.stream.finished_episodes
    assert set(map(bool, (score > 0.5 for score in log.returns))) == {True, False}
