"""The replay against a brute-force oracle, and against tables that read as the definition of n-step returns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.errors import ConfigError
from bayes_rl.types import Transition
from tests.helpers.replay_oracle import Recorder, Rules

UINT8 = np.dtype(np.uint8)
SHAPE = (1, 2, 2)
# Returns are summed in float64 and rounded once to float32 (relative error 2^-24).
RTOL, ATOL = 2.0**-22, 2.0**-40


class Seen(ReplayBuffer):
    """A replay that remembers which slots it was asked for last."""

    asked: tuple[NDArray[np.int64], NDArray[np.int64]]

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        self.asked = (env.copy(), number.copy())
        return super().transitions(env, number)


class EveryIndex:
    """Stands in for a generator: draws 0, 1, 2, ... in turn, so that a large enough sample holds every slot."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.next = 0
        self.limit = limit

    def integers(self, low: int, high: int, size: int) -> NDArray[np.int64]:
        self.next += size
        if self.next > self.limit:
            raise AssertionError("sampling never ends: there is no slot that a step was taken from")
        return low + np.arange(self.next - size, self.next) % (high - low)


def every_slot(replay: Seen) -> tuple[list[tuple[int, int]], Transition]:
    """All slots that `sample` can return, each at least once, and their transitions."""
    transition = replay.sample(replay.sampleable, EveryIndex())  # type: ignore[arg-type]
    env, number = replay.asked
    return list(zip(env.tolist(), number.tolist(), strict=True)), transition


def screen(identity: int) -> NDArray[np.uint8]:
    """A screen unlike any other and unlike the zeros before a start: its own number in base 256."""
    return np.frombuffer((identity + 1).to_bytes(4, "little"), np.uint8).reshape(SHAPE)


def screens_of(identities: list[int]) -> NDArray[np.uint8]:
    return np.stack([screen(i) for i in identities])


def add(sinks: list[Any], rows: list[tuple[int, int, float, str]], after: list[int]) -> None:
    """One step of every environment: (screen, action, reward, events among `T`, `U`, `L`) and the screen after."""
    ids, actions, rewards, events = zip(*rows, strict=True)
    flag = {c: np.array([c in e for e in events]) for c in "TUL"}
    for sink in sinks:
        sink.add(
            screens_of(list(ids)),
            np.array(actions, np.int64),
            np.array(rewards, np.float32),
            flag["T"],
            flag["U"],
            flag["L"],
            screens_of(after),
        )


def play(
    sinks: list[Any],
    steps: int,
    seed: int,
    num_envs: int,
    p_end: float | tuple[float, ...] = 0.1,
    p_life: float = 0.1,
    start: int = 0,
) -> int:
    """Random episodes into every sink; returns the number of screens made, for the next call's `start`."""
    rng = np.random.default_rng(seed)
    ends = np.broadcast_to(p_end, num_envs)
    fresh = start
    now = list(range(fresh, fresh + num_envs))
    fresh += num_envs
    for _ in range(steps):
        rows, after = [], []
        for e in range(num_envs):
            ended = rng.random() < ends[e]
            events = str(rng.choice(["T", "U", "TU"])) if ended else ""
            events += "L" if rng.random() < p_life else ""
            rows.append((now[e], int(rng.integers(0, 18)), float(rng.choice([-3, -1, -0.5, 0, 0.25, 1, 2.5])), events))
            after.append(fresh)
            now[e] = fresh + 1 if ended else fresh  # a new episode begins with a screen of its own
            fresh += 2
        add(sinks, rows, after)
    return fresh


def replay_of(rules: Rules, num_envs: int, ring: int, slack: int = 0, directory: Path | None = None) -> Seen:
    return Seen(
        ring * num_envs,
        num_envs,
        SHAPE,
        UINT8,
        frame_stack=rules.frame_stack,
        n_step=rules.n_step,
        gamma=rules.gamma,
        life_loss=rules.life_loss,
        reward_clip=rules.reward_clip,
        slack=slack,
        directory=directory,
    )


def assert_agrees(recorder: Recorder, rules: Rules, slots: list[tuple[int, int]], got: Transition) -> None:
    """Every transition of a sample is the one that the definition gives for its slot."""
    wanted = [recorder.expected(e, m, rules) for e, m in slots]
    np.testing.assert_array_equal(got.observation.numpy(), np.stack([w.observation for w in wanted]))
    np.testing.assert_array_equal(got.next_observation.numpy(), np.stack([w.next_observation for w in wanted]))
    np.testing.assert_array_equal(got.action.numpy(), [w.action for w in wanted])
    np.testing.assert_allclose(got.reward.numpy(), [w.reward for w in wanted], RTOL, ATOL)
    np.testing.assert_allclose(got.discount.numpy(), [w.discount for w in wanted], RTOL, ATOL)
    np.testing.assert_array_equal(got.discount.numpy() == 0, [w.discount == 0 for w in wanted])


# ---------------------------------------------------------------------------------------------- truth tables

# Rewards of an episode's steps, events of its steps; then for n = 3 and gamma = 1/2, per step: return, discount,
# index of the screen bootstrapped from. T terminated, U truncated, L life lost. Letters stand at their step.
#   r^(n)_t = sum_{i < k} gamma^i r_{t+i}; discount = gamma^k; k = 3 or less where the episode ends.
EPISODES = {
    # name: (life_loss, rewards, events, [(return, discount, next screen), ...])
    "running": ("none", [1, 2, 4, 8, 16], ["", "", "", "", ""], [(3, 1 / 8, 3), (6, 1 / 8, 4)]),
    "terminated": (
        "none",
        [1, 2, 4, 8],
        ["", "", "", "T"],
        [(3, 1 / 8, 3), (6, 0, 4), (8, 0, 4), (8, 0, 4)],
    ),
    "truncated": (
        "none",
        [1, 2, 4, 8],
        ["", "", "", "U"],
        [(3, 1 / 8, 3), (6, 1 / 8, 4), (8, 1 / 4, 4), (8, 1 / 2, 4)],
    ),
    "terminated at the limit": ("none", [1, 2], ["", "TU"], [(2, 0, 2), (2, 0, 2)]),
    "one step, terminated": ("none", [5], ["T"], [(5, 0, 1)]),
    "one step, truncated": ("none", [5], ["U"], [(5, 1 / 2, 1)]),
    "life lost, ignored": (
        "none",
        [1, 2, 4, 8, 16],
        ["", "L", "", "", ""],
        [(3, 1 / 8, 3), (6, 1 / 8, 4)],
    ),
    "life lost, discount": (
        "discount",
        [1, 2, 4, 8, 16, 32],
        ["", "L", "", "", "", ""],
        [(2, 0, 2), (2, 0, 2), (12, 1 / 8, 5)],
    ),
    "life lost at truncation, discount": ("discount", [1, 2], ["", "LU"], [(2, 0, 2), (2, 0, 2)]),
    "life lost, penalty": (
        "penalty",
        [1, 2, 4, 8, 16],
        ["", "L", "", "", ""],
        [(1 + 1 / 2 + 1, 1 / 8, 3), (1 + 2 + 2, 1 / 8, 4)],
    ),
    "last life, penalty once": ("penalty", [1, 2], ["", "LT"], [(1.5, 0, 2), (1, 0, 2)]),
    "end without lives, penalty": ("penalty", [1, 2], ["", "T"], [(1.5, 0, 2), (1, 0, 2)]),
    "truncated, no penalty": ("penalty", [1, 2], ["", "U"], [(2, 1 / 4, 2), (2, 1 / 2, 2)]),
}


@pytest.mark.parametrize("name", EPISODES)
def test_truth_table(name: str) -> None:
    life_loss, rewards, events, wanted = EPISODES[name]
    rules = Rules(n_step=3, gamma=0.5, life_loss=life_loss)
    replay, recorder = replay_of(rules, 1, 20), Recorder(1)
    for t, (reward, event) in enumerate(zip(rewards, events, strict=True)):
        add([replay, recorder], [(t, t % 18, reward, event)], [t + 1])
    for t in range(4):  # another episode, whose huge rewards must never be seen
        add([replay], [(50 + t, 0, 1e6, "")], [51 + t])
    count = len(wanted)
    got = replay.transitions(np.zeros(count, np.int64), np.arange(count))
    assert got.reward.tolist() == [w[0] for w in wanted]
    assert got.discount.tolist() == [w[1] for w in wanted]
    assert got.observation.numpy().tolist() == screens_of(list(range(count))).tolist()
    assert got.next_observation.numpy().tolist() == screens_of([w[2] for w in wanted]).tolist()
    assert got.action.tolist() == list(range(count))
    oracle = [recorder.expected(0, t, rules) for t in range(count)]
    assert [(w.reward, w.discount) for w in oracle] == [w[:2] for w in wanted], "the oracle itself is wrong"


@pytest.mark.parametrize(
    ("clip", "rewards", "wanted"),
    [(None, [-5, 0.5, 5], 0.5), (1.0, [-5, 0.5, 5], 0.5), (2.0, [-5, 0.5, 7], 0.5), (1.0, [-5, -5, 7], -1.0)],
)
def test_each_reward_is_clipped_before_the_sum(clip: float | None, rewards: list[float], wanted: float) -> None:
    replay = replay_of(Rules(n_step=3, gamma=1.0, reward_clip=clip), 1, 20)
    for t, reward in enumerate(rewards):
        add([replay], [(t, 0, reward, "")], [t + 1])
    assert replay.transitions(np.array([0]), np.array([0])).reward.tolist() == [wanted]


def test_the_penalty_is_not_clipped_away() -> None:
    replay = replay_of(Rules(n_step=1, life_loss="penalty", reward_clip=1.0), 1, 20)
    add([replay], [(0, 0, -7.0, "L")], [1])
    assert replay.transitions(np.array([0]), np.array([0])).reward.tolist() == [-2.0]


def test_the_extremes_of_gamma() -> None:
    for gamma, reward, discount in ((0.0, 1.0, 0.0), (1.0, 7.0, 1.0)):
        replay = replay_of(Rules(n_step=3, gamma=gamma), 1, 20)
        for t, r in enumerate([1.0, 2.0, 4.0]):
            add([replay], [(t, 0, r, "")], [t + 1])
        got = replay.transitions(np.array([0]), np.array([0]))
        assert (got.reward.item(), got.discount.item()) == (reward, discount)


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


def test_seed_defect_4_no_bootstrap_across_episode_ends() -> None:
    """Whatever n is, a transition whose window meets a termination has discount 0 and no later reward."""
    rewards, after = [1.0, 1.0, 1.0], 1e6
    for n_step in (1, 2, 3, 4, 8):
        replay = replay_of(Rules(n_step=n_step, gamma=0.9), 1, 40)
        for t, reward in enumerate(rewards):
            add([replay], [(t, 0, reward, "T" if t == 2 else "")], [t + 1])
        for t in range(9):
            add([replay], [(10 + t, 0, after, "")], [11 + t])
        got = replay.transitions(np.zeros(3, np.int64), np.arange(3))
        reaches_the_end = np.arange(3) + n_step >= 3
        assert ((got.discount.numpy() == 0) == reaches_the_end).all()
        assert got.reward.max() <= 3


def test_seed_defect_5_a_return_is_folded_over_its_own_window_with_its_own_power_of_gamma() -> None:
    """The return of step t uses rewards t .. t+k-1 alone, its discount is gamma^k and its next screen is t+k."""
    gamma = 0.5
    for n_step in (1, 2, 4):
        replay = replay_of(Rules(n_step=n_step, gamma=gamma), 1, 40)
        for t in range(20):
            add([replay], [(t, 0, float(2**t), "")], [t + 1])
        (slots, got) = every_slot(replay)
        for i, (_, t) in enumerate(slots):
            assert got.reward[i] == sum(gamma**j * 2 ** (t + j) for j in range(n_step)) == n_step * 2**t
            assert got.discount[i] == gamma**n_step
            assert got.observation[i].tolist() == screen(t).tolist()
            assert got.next_observation[i].tolist() == screen(t + n_step).tolist()


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
    assert len(replay) == sum(min(ring, len(s)) for s in recorder.slots)
    if not wanted:
        assert replay.sampleable == 0
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
    picked = Transition(*(x[keep] for x in got))
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
        assert_agrees(recorder, rules, slots, got)


def test_types_of_a_minibatch() -> None:
    replay = replay_of(Rules(frame_stack=2), 2, 30)
    play([replay], 40, 0, 2)
    got = replay.sample(8, np.random.default_rng(0))
    assert got.observation.shape == got.next_observation.shape == (8, 2, 2, 2)
    assert got.observation.dtype == got.next_observation.dtype == torch.uint8
    assert (got.action.dtype, got.reward.dtype, got.discount.dtype) == (torch.int64, torch.float32, torch.float32)
    assert got.action.shape == got.reward.shape == got.discount.shape == (8,)


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


def test_a_sample_is_a_function_of_the_generator() -> None:
    replay = replay_of(Rules(), 2, 30)
    play([replay], 100, 0, 2)
    first, same, other = (replay.sample(32, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
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
        if replay.sampleable:
            replay.sample(4, EveryIndex(1000))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- memory


def test_each_screen_is_stored_once() -> None:
    """With a stack of 4, a slot of 84 x 84 pixels costs one screen and a few bytes, not eight screens."""
    replay = ReplayBuffer(1000, 8, (1, 84, 84), UINT8, frame_stack=4)
    assert replay.nbytes / 1000 < 84 * 84 + 16


def test_a_million_frames_take_at_most_7_3_gib() -> None:
    """A hundredth of it: 10,000 transitions and the slack of an epoch of 2,500 frames (250,000 in the large)."""
    data = ReplayDataModule(env="breakout", num_envs=8, replay_capacity=10_000, frames_per_epoch=2_500)
    from bayes_rl.envs.kinds import make_envs

    envs = make_envs(data.settings, 8)
    replay = data._replay(envs)
    envs.close()
    assert replay.capacity == 10_000
    assert replay.slots * 8 >= 10_000 + 2_500 / 4
    assert 100 * replay.nbytes <= 7.3 * 2**30


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capacity": -1}, ["--data.replay_capacity", "-1", "positive"]),
        ({"capacity": 0}, ["--data.replay_capacity", "0"]),
        ({"n_step": 0}, ["--data.n_step", "0", "at least 1"]),
        ({"n_step": 200}, ["--data.n_step", "200", "50"]),
        ({"frame_stack": 0}, ["--data.frame_stack", "0"]),
        ({"frame_stack": 256}, ["--data.frame_stack", "256"]),
        ({"gamma": 1.01}, ["--data.gamma", "1.01", "[0, 1]"]),
        ({"gamma": -0.1}, ["--data.gamma", "-0.1"]),
        ({"gamma": float("nan")}, ["--data.gamma", "nan"]),
        ({"life_loss": "discoun"}, ["--data.life_loss", "'discoun'", "nearest: 'discount'"]),
        ({"life_loss": "penality"}, ["--data.life_loss", "nearest: 'penalty'"]),
        ({"reward_clip": 0.0}, ["--data.reward_clip", "0.0"]),
        ({"reward_clip": -1.0}, ["--data.reward_clip", "-1.0"]),
    ],
)
def test_a_setting_that_cannot_work_is_named(change: dict[str, Any], words: list[str]) -> None:
    arguments: dict[str, Any] = {"capacity": 100} | change
    with pytest.raises(ConfigError) as error:
        ReplayBuffer(arguments.pop("capacity"), 2, SHAPE, UINT8, **arguments)
    assert all(w in str(error.value) for w in words), str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- checkpoints of the ring

RULES = Rules(n_step=3, frame_stack=2)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint holds it: tensors and primitives only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same_contents(a: Seen, b: Seen) -> bool:
    (slots_a, got_a), (slots_b, got_b) = every_slot(a), every_slot(b)
    return slots_a == slots_b and all(torch.equal(x, y) for x, y in zip(got_a, got_b, strict=True))


def copy_of_window(replay: Seen) -> tuple[list[tuple[int, int]], Transition]:
    slots, got = every_slot(replay)
    return slots, Transition(*(x.clone() for x in got))


def test_a_saved_ring_is_found_again(tmp_path: Path) -> None:
    replay = replay_of(RULES, 2, 20, 10, tmp_path)
    fresh = play([replay], 90, 0, 2)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    again = replay_of(RULES, 2, 20, 10, tmp_path)
    again.load_state_dict(state)
    assert len(again) == len(replay) == 40
    found, after = every_slot(again)
    assert found == slots
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    play([again], 30, 7, 2, start=fresh)  # and goes on as the original would have
    reference = replay_of(RULES, 2, 20, 10)
    play([reference], 90, 0, 2)
    play([reference], 30, 7, 2, start=fresh)
    assert same_contents(again, reference)


def test_a_loaded_ring_knows_how_old_the_running_episode_is(tmp_path: Path) -> None:
    """Stacks right after a resume reach back into screens stored before it, and no further than the start."""
    rules = Rules(n_step=1, frame_stack=4)
    replay, recorder = replay_of(rules, 1, 20, 5, tmp_path), Recorder(1)
    for t in range(2):
        add([replay, recorder], [(t, 0, 0.0, "")], [t + 1])
    again = replay_of(rules, 1, 20, 5, tmp_path)
    again.load_state_dict(through_a_file(replay.state_dict()))
    for t in range(2, 8):
        add([again, recorder], [(t, 0, 0.0, "")], [t + 1])
    slots, got = every_slot(again)
    assert_agrees(recorder, rules, slots, got)


def test_slots_written_after_a_checkpoint_do_not_touch_what_it_refers_to(tmp_path: Path) -> None:
    """As many slots as the slack, in a run that is then killed."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_ring_that_has_moved_on_is_refused(tmp_path: Path) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    play([replay], 11, 1, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    with pytest.raises(ConfigError, match=r"moved on.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


def test_a_ring_that_a_killed_run_has_moved_on_is_refused(tmp_path: Path) -> None:
    """Nobody saved after the writing that overwrote what the checkpoint refers to."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    older = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    play([replay], 10, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match="moved on"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(older)


def test_a_ring_rewritten_from_an_older_checkpoint_is_refused_to_the_newer_one(tmp_path: Path) -> None:
    """Resumed from the older checkpoint and killed halfway: the newer one's last slots hold other games now."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    older = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    newer = through_a_file(replay.state_dict())
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(older)
    play([again], 5, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match=r"--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(newer)


def test_going_back_twice_does_not_hide_what_was_overwritten(tmp_path: Path) -> None:
    """The ring went 20 slots beyond the oldest checkpoint; going back to the middle one does not undo that."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    oldest = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    middle = through_a_file(replay.state_dict())
    play([replay], 10, 2, 1, p_end=0.0, start=fresh)
    replay.state_dict()
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(middle)
    again.state_dict()
    with pytest.raises(ConfigError, match="moved on"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(oldest)


def test_a_ring_begun_anew_in_an_old_directory_is_found_again(tmp_path: Path) -> None:
    """What --data.refill_replay true does: the old files are used, what they held counts for nothing."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 90, 0, 1)
    old.state_dict()
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 40, 1, 1, start=fresh)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_ring_begun_anew_is_refused_to_the_old_checkpoint(tmp_path: Path) -> None:
    """Refilled and killed before anything was saved: the old files hold a mixture of both now."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 90, 0, 1)
    state = through_a_file(old.state_dict())
    play([replay_of(RULES, 1, 20, 10, tmp_path)], 15, 1, 1, start=fresh)
    with pytest.raises(ConfigError, match=r"--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_ring_that_is_missing_is_refused(tmp_path: Path, on_disk: bool) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path / "here")
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    elsewhere = tmp_path / "elsewhere" if on_disk else None
    with pytest.raises(ConfigError, match=r"not there.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, elsewhere).load_state_dict(state)


@pytest.mark.parametrize(("num_envs", "ring", "slack"), [(2, 10, 5), (1, 21, 10), (1, 20, 11)])
def test_a_ring_of_another_shape_is_refused(tmp_path: Path, num_envs: int, ring: int, slack: int) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    with pytest.raises(ConfigError, match="another shape"):
        replay_of(RULES, num_envs, ring, slack, tmp_path).load_state_dict(state)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize(("num_envs", "ring", "slack"), [(1, 40, 10), (1, 15, 5), (2, 10, 5), (2, 20, 10)])
def test_a_refused_shape_leaves_the_stored_screens_as_they_are(
    tmp_path: Path, num_envs: int, ring: int, slack: int
) -> None:
    """A typing error in the capacity is refused; the corrected command finds the ring whole."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    slots, before = copy_of_window(replay)
    del replay
    stored = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match="another shape"):
        replay_of(RULES, num_envs, ring, slack, tmp_path).load_state_dict(state)
    assert bytes_of(tmp_path) == stored
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    found, after = every_slot(again)
    assert found == slots
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_files_of_another_size_are_replaced_by_the_first_step_of_a_new_ring(tmp_path: Path) -> None:
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 60, 0, 1)
    state = through_a_file(old.state_dict())
    new = replay_of(RULES, 2, 30, 10, tmp_path)
    play([new], 60, 1, 2, start=fresh)
    again = replay_of(RULES, 2, 30, 10, tmp_path)
    again.load_state_dict(through_a_file(new.state_dict()))
    assert same_contents(again, new)
    with pytest.raises(ConfigError, match="not there"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


@pytest.mark.parametrize("steps", [60, 64])
def test_a_ring_refilled_as_far_as_the_old_one_is_refused_to_the_old_checkpoint(tmp_path: Path, steps: int) -> None:
    """The counters agree, the games do not."""
    old = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([old], 60, 0, 1, p_end=0.0)
    state = through_a_file(old.state_dict())
    new = replay_of(RULES, 1, 20, 10, tmp_path)
    play([new], steps, 1, 1, p_end=0.0, start=fresh)
    stored = bytes_of(tmp_path)
    with pytest.raises(ConfigError, match=r"another replay.*--data.refill_replay true"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)
    assert bytes_of(tmp_path) == stored
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(through_a_file(new.state_dict()))


def test_a_folder_of_the_same_shape_in_place_of_the_own_one_is_refused(tmp_path: Path) -> None:
    """Two runs alike, but for their games; also if one was written by a version without histories."""
    states = {}
    for seed, name in enumerate(("mine", "other")):
        replay = replay_of(RULES, 1, 20, 10, tmp_path / name)
        play([replay], 60, seed, 1, p_end=0.0)
        states[name] = through_a_file(replay.state_dict())
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "other").load_state_dict(states["mine"])
    del states["mine"]["history"]
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "mine").load_state_dict(states["mine"])
    (tmp_path / "other" / "replay.json").unlink()
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path / "other").load_state_dict(states["other"])


def test_a_ring_of_a_version_without_histories_is_found_again(tmp_path: Path) -> None:
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    del state["history"]
    (tmp_path / "replay.json").unlink()
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(state)
    assert same_contents(again, replay)
    play([again], 10, 1, 1, start=fresh)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(through_a_file(again.state_dict()))


@pytest.mark.parametrize("damage", ["flipped", "cut", "a screen less", "swapped"])
def test_files_or_a_manifest_that_do_not_fit_are_refused_and_kept(tmp_path: Path, damage: str) -> None:
    mine, other = (replay_of(RULES, 1, ring, 10, tmp_path / name) for ring, name in ((20, "mine"), (21, "other")))
    play([mine, other], 60, 0, 1)
    state = through_a_file(mine.state_dict())
    manifest = tmp_path / "mine" / "replay.json"
    data = manifest.read_bytes()
    if damage == "flipped":
        manifest.write_bytes(data.replace(b"1", b"3", 1))
    elif damage == "cut":
        manifest.write_bytes(data[:-1])
    elif damage == "swapped":
        manifest.write_bytes((tmp_path / "other" / "replay.json").read_bytes())
    else:
        screens = tmp_path / "mine" / "screens.uint8"
        screens.write_bytes(screens.read_bytes()[: -int(np.prod(SHAPE))])
    stored = bytes_of(tmp_path / "mine")
    with pytest.raises(ConfigError, match="not there"):
        replay_of(RULES, 1, 20, 10, tmp_path / "mine").load_state_dict(state)
    assert bytes_of(tmp_path / "mine") == stored


class Killed(BaseException):
    """Stands in for SIGKILL."""


@pytest.mark.parametrize("moment", ["before the slots", "before the end is counted"])
def test_a_kill_in_the_midst_of_a_step_is_counted_as_overwriting(tmp_path: Path, moment: str) -> None:
    """The slack is used up to its last slot, and the step under way takes the first slot of the checkpoint."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    fresh = play([replay], 60, 0, 1, p_end=0.0)
    state = through_a_file(replay.state_dict())
    fresh = play([replay], 10, 1, 1, p_end=0.0, start=fresh)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)

    class Dying:
        """Stands in for an array that is being written to."""

        shape = replay.files.screens.shape

        def __setitem__(self, slot: Any, value: Any) -> None:
            raise Killed

    setattr(replay.files, "screens" if moment == "before the slots" else "ages", Dying())
    with pytest.raises(Killed):
        play([replay], 1, 2, 1, p_end=0.0, start=fresh)
    with pytest.raises(ConfigError, match=r"moved on|not there"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)


def test_a_checkpoint_of_the_very_start_leaves_what_is_there_to_the_others(tmp_path: Path) -> None:
    """It refers to no slot; until a step is taken, the newest checkpoint finds all of its own."""
    replay = replay_of(RULES, 1, 20, 10, tmp_path)
    start = through_a_file(replay.state_dict())
    play([replay], 60, 0, 1)
    state = through_a_file(replay.state_dict())
    again = replay_of(RULES, 1, 20, 10, tmp_path)
    again.load_state_dict(start)
    replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)
    play([again], 3, 1, 1)
    with pytest.raises(ConfigError, match="another replay"):
        replay_of(RULES, 1, 20, 10, tmp_path).load_state_dict(state)
