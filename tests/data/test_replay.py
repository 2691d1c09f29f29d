"""The replay against a brute-force oracle, its sampling, its memory and its settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from bayes_rl.data.curriculum import CurriculumSettings
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer, ReplaySettings, num_newest
from bayes_rl.errors import ConfigError
from tests.helpers.replay_oracle import Recorder, Rules
from tests.helpers.replays import (
    SHAPE,
    UINT8,
    EveryIndex,
    add,
    assert_agrees,
    every_slot,
    play,
    replay_of,
    same_transitions,
    screen,
)


def test_stacks_are_zero_before_the_start_of_an_episode() -> None:
    replay = replay_of(Rules(n_step=1, frame_stack=3), 1, 20)
    for t in range(4):
        add([replay], [(t, 0, 0.0, "T" if t == 1 else "")], [t + 1 if t != 1 else 90])
    numbers = np.array([0, 1, 3, 4])  # number 2 is the last screen of the first episode
    blank = [[0, 0], [0, 0]]

    def stacks(*identities: list[int | None]) -> list[Any]:
        return [[blank if i is None else screen(i)[0].tolist() for i in row] for row in identities]

    got = replay.transitions(np.zeros(4, np.int64), numbers)
    assert got.observation.tolist() == stacks([None, None, 0], [None, 0, 1], [None, None, 2], [None, 2, 3])
    assert got.next_observation[:3].tolist() == stacks([None, 0, 1], [0, 1, 90], [None, 2, 3])


# ------------------------------------------------------------------------------------- random, against the oracle


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    num_envs=st.integers(1, 3),
    rules=st.builds(
        Rules,
        n_step=st.integers(1, 5),
        gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
        life_loss=st.sampled_from(["none", "discount", "penalty"]),
        reward_clip=st.sampled_from([None, 1.0, 0.5]),
        frame_stack=st.integers(1, 4),
    ),
    spare=st.integers(1, 12),
    slack=st.integers(0, 7),
    steps=st.integers(1, 70),
    p_end=st.sampled_from([0.0, 0.05, 0.3, 0.8]),
    p_life=st.sampled_from([0.0, 0.3]),
)
def test_every_sampleable_slot_agrees_with_the_oracle(
    seed: int, num_envs: int, rules: Rules, spare: int, slack: int, steps: int, p_end: float, p_life: float
) -> None:
    """Random episodes, small rings overwritten several times: all that can be sampled, and nothing else, is right."""
    ring = rules.n_step + rules.frame_stack + spare
    replay, recorder = replay_of(rules, num_envs, ring, slack), Recorder(num_envs)
    play([replay, recorder], steps, seed, num_envs, p_end, p_life)
    wanted = {(e, m) for e in range(num_envs) for m in recorder.chosen(e, ring, rules)}
    assert replay.stored == sum(min(ring, len(s)) for s in recorder.slots)
    assert len(replay) == len(wanted), "N is the number of transitions that can be drawn"
    if not wanted:
        with pytest.raises(RuntimeError, match="nothing to sample"):
            replay.sample(1, np.random.default_rng(0))
        return
    slots, got = every_slot(replay)
    assert set(slots) == wanted
    for env, number in wanted:
        oldest = len(recorder.slots[env]) - ring
        assert min(recorder.needed(env, number, rules)) >= oldest, "reaches over what is overwritten"
        assert max(recorder.needed(env, number, rules)) < len(recorder.slots[env]), "reaches beyond what is written"
    assert_agrees(recorder, rules, slots, got)


def test_long_stacks_and_long_episodes_agree_with_the_oracle() -> None:
    """Ages saturate at 255 in their byte: an episode of more steps still has whole stacks."""
    rules = Rules(n_step=2, frame_stack=255)
    replay, recorder = replay_of(rules, 1, 700), Recorder(1)
    play([replay, recorder], 600, 1, 1, p_end=0.0)
    play([replay, recorder], 60, 2, 1, p_end=0.1, start=2000)
    slots, got = every_slot(replay)
    keep = list(range(0, len(slots), 7))
    picked = got.map(lambda x: x[keep])
    assert_agrees(recorder, rules, [slots[i] for i in keep], picked)


def test_vectors_and_pictures_of_several_planes_are_stacked_along_the_first_axis() -> None:
    for shape, dtype in (((3,), np.float32), ((2, 5, 4), np.uint8)):
        rng = np.random.default_rng(0)
        replay = ReplayBuffer(40, 1, shape, np.dtype(dtype), frame_stack=3, n_step=1)
        screens = (rng.random((8, 1, *shape)) * 255).astype(dtype)
        no = np.zeros(1, bool)
        for t in range(7):
            replay.add(screens[t], np.zeros(1, np.int64), np.zeros(1, np.float32), no, no, no, screens[t + 1])
        got = replay.transitions(np.array([0]), np.array([4]))
        assert got.observation.shape == (1, 3 * shape[0], *shape[1:])
        assert got.observation.numpy().dtype == dtype
        np.testing.assert_array_equal(got.observation[0].numpy(), np.concatenate(screens[2:5, 0]))


def test_n_step_and_gamma_may_change_between_samples() -> None:
    replay, recorder = replay_of(Rules(n_step=1), 2, 30), Recorder(2)
    play([replay, recorder], 80, 3, 2)
    for n_step, gamma in ((1, 0.99), (5, 0.99), (3, 0.5), (7, 0.9), (1, 0.99)):
        rules = Rules(n_step=n_step, gamma=gamma)
        replay.n_step, replay.gamma = n_step, gamma
        slots, got = every_slot(replay)
        assert set(slots) == {(e, m) for e in range(2) for m in recorder.chosen(e, 30, rules)}
        assert len(set(slots)) == len(replay)
        # Realised returns have the discount of the time when their episode ended.
        assert_agrees(recorder, rules, slots, got._replace(realised_return=None))


def test_types_of_a_minibatch() -> None:
    replay = replay_of(Rules(frame_stack=2), 2, 30)
    play([replay], 40, 0, 2)
    got = replay.sample(8, np.random.default_rng(0))
    assert got.observation.shape == got.next_observation.shape == (8, 2, 2, 2)
    assert got.observation.dtype == got.next_observation.dtype == torch.uint8
    assert (got.action.dtype, got.reward.dtype, got.discount.dtype) == (torch.int64, torch.float32, torch.float32)
    assert got.realised_return is not None
    assert got.realised_return.dtype == torch.float32
    assert got.action.shape == got.reward.shape == got.discount.shape == got.realised_return.shape == (8,)


# -------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("steps", [14, 200])
def test_sampling_is_uniform_over_all_slots_of_all_environments(steps: int) -> None:
    """Pearson's statistic stays below the quantile of chi-square that a right sampler exceeds once in a million."""
    rules = Rules(n_step=3, frame_stack=2)
    replay, recorder = replay_of(rules, 3, 30), Recorder(3)
    play([replay, recorder], steps, 5, 3, p_end=(0.0, 0.2, 1.0))
    wanted = [(e, m) for e in range(3) for m in recorder.chosen(e, 30, rules)]
    draws = 400 * len(wanted)
    replay.sample(draws, np.random.default_rng(11))
    env, number = replay.asked
    counts = dict.fromkeys(wanted, 0)
    for slot in zip(env.tolist(), number.tolist(), strict=True):
        assert slot in counts, "a last screen, or a slot outside the window"
        counts[slot] += 1
    statistic = sum((c - 400) ** 2 / 400 for c in counts.values())
    assert statistic < chi2.isf(1e-6, len(wanted) - 1)


@pytest.mark.parametrize(("newest", "share"), [(1, 2), (40, 20), (41, 21), (10**6, 10**6)])
@pytest.mark.parametrize("steps", [50, 300])
def test_a_sample_of_the_newest_part_holds_all_of_it_and_nothing_older(steps: int, newest: int, share: int) -> None:
    """Two rings, each with half of the newest windows, at least two of them; no final screen among them."""
    rules, ring = Rules(n_step=3, frame_stack=2), 100
    replay, recorder = replay_of(rules, 2, ring), Recorder(2)
    play([replay, recorder], steps, 5, 2, p_end=0.2)
    replay.sample(2 * ring, EveryIndex(), newest)  # type: ignore[arg-type]
    env, number = replay.asked
    for e in range(2):
        end = int(replay.written[e]) - rules.n_step
        wanted = [m for m in recorder.chosen(e, ring, rules) if m >= end - share]
        assert sorted(set(number[env == e].tolist())) == sorted(wanted)


@pytest.mark.parametrize(("asked", "from_newest"), [(0, 0), (500, 500), (None, 2000)])
def test_a_share_of_a_sample_comes_from_the_newest_part(asked: int | None, from_newest: int) -> None:
    rules, ring, newest = Rules(n_step=3, frame_stack=2), 100, 20
    replay, recorder = replay_of(rules, 2, ring), Recorder(2)
    play([replay, recorder], 300, 5, 2, p_end=0.2)
    replay.sample(2000, np.random.default_rng(11), newest, asked)
    env, number = replay.asked
    is_new = number >= replay.written[env] - rules.n_step - newest // 2
    rest = 2000 - from_newest
    assert is_new[rest:].all()
    # The rest is uniform over all windows, of which a tenth is new: six standard deviations.
    assert abs(is_new[:rest].sum() - 0.1 * rest) <= 6 * (0.09 * rest) ** 0.5


@pytest.mark.parametrize(
    ("batch_size", "newest_share", "expected"),
    [(256, 0.5, 128), (32, 0.01, 1), (8, 0.05, 1), (8, 0.99, 7), (100, 0.07, 7), (1, 0.5, 0), (8, 0.0, 0)],
)
def test_the_newest_are_rounded_up_and_never_the_whole_minibatch(
    batch_size: int, newest_share: float, expected: int
) -> None:
    assert num_newest(batch_size, newest_share) == expected


def test_without_a_share_of_the_newest_a_sample_is_the_uniform_one() -> None:
    replay = replay_of(Rules(), 2, 30)
    play([replay], 100, 0, 2)
    uniform, share = (replay.sample(32, np.random.default_rng(1), *more) for more in ((), (5, 0)))
    assert same_transitions(uniform, share)


def test_a_sample_is_a_function_of_the_generator() -> None:
    replay = replay_of(Rules(), 2, 30)
    play([replay], 100, 0, 2)
    first, same, other = (replay.sample(32, np.random.default_rng(s)) for s in (1, 1, 2))
    assert same_transitions(first, same)
    assert not torch.equal(first.observation, other.observation)


@pytest.mark.parametrize("n_step", [1, 2, 3])
@pytest.mark.parametrize("frame_stack", [1, 2, 4])
def test_the_smallest_ring_allowed_always_has_something_to_sample(n_step: int, frame_stack: int) -> None:
    """Episodes of one step make every other slot a last screen; drawing must end all the same."""
    rules = Rules(n_step=n_step, frame_stack=frame_stack)
    ring = 1
    while True:
        try:
            replay = replay_of(rules, 1, ring)
            break
        except ConfigError:
            ring += 1
    for t in range(40):
        add([replay], [(2 * t, 0, 0.0, "T")], [2 * t + 1])
        if len(replay):
            replay.sample(4, EveryIndex(1000))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- memory


def test_each_screen_is_stored_once() -> None:
    """With a stack of 4, a slot of 84 x 84 pixels costs one screen and a few bytes, not eight screens."""
    replay = ReplayBuffer(1000, 8, (1, 84, 84), UINT8, frame_stack=4)
    assert replay.nbytes / 1000 < 84 * 84 + 16


def test_a_million_frames_take_at_most_7_3_gib() -> None:
    """A hundredth of it: 10,000 transitions and the slack of an epoch of 2,500 frames (250,000 in the large)."""
    data = ReplayDataModule("breakout", num_envs=8, replay={"capacity": 10_000}, frames_per_epoch=2_500)
    from bayes_rl.envs.kinds import make_envs

    envs = make_envs(data.settings, 8)
    replay = data._replay(envs, 8)
    envs.close()
    assert replay.capacity == 10_000
    assert replay.slots * 8 >= 10_000 + 2_500 / 4
    assert 100 * replay.nbytes <= 7.3 * 2**30


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": -1}, ["--data.replay.capacity", "-1", "positive"]),
        ({"capacity": 0}, ["--data.replay.capacity", "0"]),
        ({"n_step": 0}, ["--data.replay.n_step", "0", "at least 1"]),
        ({"n_step": 200}, ["--data.replay.n_step", "200", "50"]),
        ({"frame_stack": 0}, ["--data.frame_stack", "0"]),
        ({"frame_stack": 256}, ["--data.frame_stack", "256"]),
        ({"gamma": 1.01}, ["--data.replay.gamma", "1.01", "[0, 1]"]),
        ({"gamma": -0.1}, ["--data.replay.gamma", "-0.1"]),
        ({"gamma": float("nan")}, ["--data.replay.gamma", "nan"]),
        ({"life_loss": "discoun"}, ["--data.replay.life_loss", "'discoun'", "nearest: 'discount'"]),
        ({"life_loss": "penality"}, ["--data.replay.life_loss", "nearest: 'penalty'"]),
        ({"reward_clip": 0.0}, ["--data.replay.reward_clip", "0.0"]),
        ({"reward_clip": -1.0}, ["--data.replay.reward_clip", "-1.0"]),
    ],
)
def test_a_setting_that_cannot_work_is_named(change: dict[str, Any], words: list[str]) -> None:
    arguments: dict[str, Any] = {"capacity": 100} | change
    with pytest.raises(ConfigError) as error:
        ReplayBuffer(arguments.pop("capacity"), 2, SHAPE, UINT8, **arguments)
    assert all(w in str(error.value) for w in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"capacity": 0}, "capacity"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 200}, "batch_size"),
        ({"min_size": 0}, "min_size"),
        ({"min_size": 101}, "min_size"),
        ({"device": "gpu"}, "device"),
        ({"n_step": 0}, "n_step"),
        ({"gamma": 1.5}, "gamma"),
        ({"life_loss": "discoun"}, "life_loss"),
        ({"reward_clip": 0.0}, "reward_clip"),
    ],
)
def test_replay_settings_that_cannot_work_are_named(change: dict[str, Any], key: str) -> None:
    working: dict[str, Any] = {"capacity": 100, "min_size": 100, "batch_size": 100}
    assert ReplaySettings(**working).life_loss == "discount"
    with pytest.raises(ConfigError, match=f"^--data.replay.{key}: ") as error:
        ReplaySettings(**working | change)
    assert error.value.key == f"data.replay.{key}"


def test_the_settings_of_the_data_module_are_those_of_its_groups() -> None:
    """Defaults stand in two places until options are grouped."""
    data = ReplayDataModule("CartPole-v1")
    assert data.replay_settings == ReplaySettings()
    assert data.curriculum_settings == CurriculumSettings()
    assert data.epsilon == EpsilonSchedule()
