"""The order of tasks, and task switches of the stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bayes_rl.data.curriculum import Curriculum, CurriculumSettings, make_curriculum
from bayes_rl.data.exploration import DrawSchedule, EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.base import EnvSettings, VectorEnvs
from bayes_rl.errors import ConfigError
from bayes_rl.types import Batch
from tests.helpers.scripted_envs import ScriptedEnvs, through_a_file

# ------------------------------------------------------------------ the order of tasks


@pytest.mark.parametrize(("tasks", "epochs", "cycles"), [(1, 1, 1), (3, 1, 1), (2, 4, 1), (3, 2, 2), (2, 3, 3)])
def test_the_curriculum_is_the_plan_written_out(tasks: int, epochs: int, cycles: int) -> None:
    settings = tuple(EnvSettings(name) for name in ("breakout", "tennis", "pong")[:tasks])
    curriculum = Curriculum(settings, epochs, cycles)
    written = [(visit, visit % tasks) for visit in range(tasks * cycles) for _ in range(epochs)]
    assert curriculum.visits == tasks * cycles
    for epoch, (visit, task) in enumerate(written):
        assert (curriculum.visit(epoch), curriculum.task(visit)) == (visit, task)
        last = epoch + 1 == len(written) or written[epoch + 1][0] != visit
        assert curriculum.ends(epoch) == last
    assert curriculum.visit(len(written) + 5) == tasks * cycles - 1
    assert not curriculum.ends(len(written) + epochs - 1)


def test_a_single_game_is_a_visit_without_an_end() -> None:
    curriculum = make_curriculum(EnvSettings("breakout"), None, CurriculumSettings(frames_per_task=7), 100)
    assert (curriculum.visits, curriculum.visit(10**9), curriculum.ends(10**9)) == (1, 0, False)
    assert curriculum.names == ["breakout"]


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("data.curriculum.frames_per_task", (150, 100, 1)),
        ("data.curriculum.frames_per_task", (0, 100, 1)),
        ("data.curriculum.cycles", (200, 100, 0)),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(key: str, arguments: tuple[int, int, int]) -> None:
    def make(frames_per_task: int, frames_per_epoch: int, cycles: int) -> Curriculum:
        visits = CurriculumSettings(frames_per_task, cycles)
        return make_curriculum(EnvSettings("?"), ["breakout", "tennis"], visits, frames_per_epoch)

    with pytest.raises(ConfigError) as error:
        make(*arguments)
    assert error.value.key == key


# ------------------------------------------------------------------ the stream


def scripted(first: int, envs: int = 3, directory: Path | None = None) -> tuple[VectorEnvs, ReplayBuffer]:
    """Games whose screens say `first` + environment, and an empty replay."""

    class Other(ScriptedEnvs):
        def _screens(self) -> NDArray[np.uint8]:
            return (super()._screens() + np.array([first, 0, 0])).astype(np.uint8)

    return Other(envs), ReplayBuffer(
        600, envs, (3,), np.dtype(np.uint8), frame_stack=1, n_step=1, slack=100, directory=directory
    )


def stream_of(keep: bool = False, restart: bool = True, directory: Path | None = None, **options: Any) -> ReplayStream:
    return ReplayStream(
        *scripted(0, directory=directory),
        lambda observations: torch.zeros(len(observations), dtype=torch.int64),
        EpsilonSchedule(1.0, 0.0, 60),
        batch_size=8,
        updates_per_step=1 / 3,
        batches_per_epoch=10,
        replay_min_size=30,
        frame_skip=1,
        seed=4,
        draw_policy=lambda observations, seeds: torch.zeros(len(observations), dtype=torch.int64),
        draws=DrawSchedule(1.0, 0.0, 60),
        keep_replays=keep,
        restart_schedules=restart,
        **options,
    )


def seen(batches: list[Batch]) -> set[int]:
    """First numbers of the screens: which task's games they come from, in tens."""
    return {int(x) // 10 for batch in batches for x in batch.transition.observation[:, 0]}


def test_a_switch_leaves_the_old_games_and_fills_the_new_replay_at_random_first() -> None:
    stream = stream_of()
    old = stream.envs
    assert seen(list(stream)) == {0}
    frames, episodes = stream.frames, stream.episodes.copy()
    assert stream.epsilon == stream.draw_share == pytest.approx(0.5)  # 10 of 20 vector steps
    stream.switch(1, *scripted(10))
    assert old.pending is None  # type: ignore[attr-defined]
    assert len(stream.replay) == 0
    assert stream.epsilon == stream.draw_share == 1.0
    assert (stream.episodes == episodes).all()  # so that no seed is used twice
    batches = list(stream)
    assert seen(batches) == {1}
    assert {batch.task for batch in batches} == {1}
    assert 30 > batches[0].num_data >= 20  # 30 slots, of which some are last screens, and three hold no whole return
    assert batches[-1].frames - batches[0].frames == 27  # ten updates, one for three steps of three environments
    assert batches[0].frames - frames >= 27  # the prefill
    assert stream.updates == 20
    assert stream.epsilon == stream.draw_share == pytest.approx(0.5)


def test_epsilon_and_draws_can_go_on_where_they_were() -> None:
    stream = stream_of(restart=False)
    list(stream)
    stream.switch(1, *scripted(10))
    assert stream.epsilon == 1.0  # the prefill
    assert stream.draw_share == pytest.approx(0.5)
    list(stream)
    assert stream.epsilon == stream.draw_share == pytest.approx(0.0)


def test_kept_replays_are_rehearsed_in_equal_shares_and_counted_as_data() -> None:
    stream = stream_of(keep=True)
    list(stream)
    for task in (1, 2):
        stream.switch(task, *scripted(10 * task))
        batches = [batch for _ in range(30) for batch in stream]
    assert seen(batches) == {0, 1, 2}
    for task in range(3):
        mine = [batch for batch in batches if batch.task == task]
        assert seen(mine) == {task}
        # 300 draws of probability 1/3: 4 standard errors are 4 x sqrt(300 x 2 / 9) = 33
        assert abs(len(mine) - 100) < 33
    assert [task for task, _ in stream.finished] == [0, 1]
    held = [len(replay) for replay in (stream.finished[0][1], stream.finished[1][1], stream.replay)]
    assert batches[-1].num_data == sum(held)


def test_nothing_is_new_in_the_replay_of_a_finished_task() -> None:
    stream = stream_of(keep=True, newest_share=0.5, newest=30)
    first = list(stream)
    assert {batch.num_newest for batch in first} == {4}
    stream.switch(1, *scripted(10))
    batches = [batch for _ in range(5) for batch in stream]
    assert {(batch.task, batch.num_newest) for batch in batches} == {(0, 0), (1, 4)}


def test_a_run_that_was_refilled_once_resumes_with_the_replays_that_it_has(tmp_path: Path) -> None:
    """The refill leaves out the replay of task 0; the replay of task 1, which ended later, is there."""

    def at_task(task: int, folder: Path, **options: Any) -> ReplayStream:
        stream = stream_of(True, directory=folder / "0", **options)
        for number in range(1, task + 1):
            stream.switch(number, *scripted(10 * number, directory=folder / str(number)))
        return stream

    first = at_task(0, tmp_path / "before")
    list(first)
    first.switch(1, *scripted(10, directory=tmp_path / "before" / "1"))
    list(first)
    refilled = at_task(1, tmp_path, refill_replay=True)
    refilled.load_state_dict(through_a_file(first.state_dict()))
    list(refilled)
    assert not refilled.finished
    refilled.switch(2, *scripted(20, directory=tmp_path / "2"))
    list(refilled)
    state = through_a_file(refilled.state_dict())
    resumed = at_task(2, tmp_path)
    resumed.envs.repeatable = False  # its games begin anew
    resumed.load_state_dict(state)
    assert [task for task, _ in resumed.finished] == [1]
    assert len(resumed.finished[0][1]) == len(refilled.finished[0][1]) > 0
    assert seen([batch for _ in range(3) for batch in resumed]) == {1, 2}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("task_conditioning", "head", "none, gains, heads; nearest: 'heads'"),
        ("epsilon_at_switch", "reset", "restart, continue"),
        ("cycles", 0, "at least 1"),
        ("frames_per_task", 0, "positive"),
    ],
)
def test_curriculum_settings_that_cannot_work_are_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        CurriculumSettings(**{name: value})  # type: ignore[arg-type]
    assert error.value.key == f"data.curriculum.{name}"
    assert words in str(error.value)
