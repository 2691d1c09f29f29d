"""The stream with a scripted environment whose every screen says where it comes from; then with real ones."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bayes_rl.data import stream as stream_module
from bayes_rl.data.exploration import DrawSchedule, EpsilonSchedule, ExplorationNoise, draw_seed
from bayes_rl.data.n_step import LAST_SCREEN, TRUNCATED
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.base import EnvSettings, episode_seed
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.errors import ConfigError
from bayes_rl.types import Batch, DrawPolicy
from bayes_rl.utils.side_thread import SIDE_THREAD
from tests.helpers.agents import make_module
from tests.helpers.scripted_envs import (
    RANDOM,
    UINT8,
    LoggingReplay,
    RestartingEnvs,
    ScriptedEnvs,
    SwappingEnvs,
    first_action,
    hashed,
    ring,
    same,
    stream_of,
    take,
    through_a_file,
)

# -------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", [400, 17])
@pytest.mark.parametrize("restarting", [False, True])
def test_no_transition_crosses_an_episode(num_envs: int, capacity: int, restarting: bool) -> None:
    """Screens say (environment, episode, step): all four things a transition tells must fit the same episode."""
    envs = RestartingEnvs(num_envs) if restarting else ScriptedEnvs(num_envs)
    replay = ring(envs, frame_stack=3, n_step=3, capacity=capacity * num_envs)
    seen, ends = set(), set()
    for batch in take(stream_of(envs, replay, batch_size=32, batches_per_epoch=20, replay_min_size=10), 120):
        observation, _, reward, discount, next_observation, _ = batch.transition
        for i in range(32):
            before, after = observation[i].view(3, 3).tolist(), next_observation[i].view(3, 3).tolist()
            env, episode, t = before[-1]
            k = after[-1][2] - t
            assert after[-1][:2] == [env, episode]
            assert 1 <= k <= 3
            length = envs.lengths[(env - 1 + episode) % 4]
            terminated = t + k == length and (env - 1 + episode) % 2 == 0
            assert k == min(3, length - t)
            assert discount[i] == (0 if terminated else 0.5**k)
            assert reward[i] == sum(0.5**j * (t + j + 1) for j in range(k))
            for stack, end in ((before, t), (after, t + k)):
                assert stack == [[env, episode, s] if s >= 0 else [0, 0, 0] for s in range(end - 2, end + 1)]
            seen.add((env, episode, t))
            ends.add(terminated)
    assert ends == {True, False}
    assert len(seen) > 50


def test_act_step_store_in_this_order_and_minibatches_while_the_games_step() -> None:
    """recv, (reset), act on the newest screens, send, store; then the minibatches, before the next recv."""
    envs = ScriptedEnvs(2)
    log = envs.log
    replay = ring(envs, kind=LoggingReplay)
    assert isinstance(replay, LoggingReplay)
    replay.log = log

    def policy(observations: torch.Tensor) -> torch.Tensor:
        log.append(("act", observations.clone()))
        return first_action(observations)

    stream = stream_of(envs, replay, policy)
    for _ in stream:
        log.append(("batch", None))
    words = [name for name, _ in log]
    start = words.index("batch")
    begin = next(i for i in range(start, 0, -1) if words[i] == "recv")
    rounds = " ".join(words[begin:]).split("recv ")[1:]
    assert {r.strip() for r in rounds} == {"act send add batch batch", "reset act send add batch batch"}
    assert len(rounds) == 25
    # What the policy saw is what is stored, with the action that followed and the screen that came of it.
    acted: list[Any] = []
    sent: list[Any] = []
    stored = 0
    for name, content in log:
        if name == "act":
            sent, acted = acted, [content]
        elif name == "send" and acted:
            acted.append(content)
        elif name == "add" and sent:
            screens, actions, _, _, _, _, next_screens, idle = content
            np.testing.assert_array_equal(sent[0].view(2, 2, 3)[:, -1].numpy(), screens)
            np.testing.assert_array_equal(sent[1], actions)
            np.testing.assert_array_equal(next_screens[:, 2], screens[:, 2] + 1)
            np.testing.assert_array_equal(next_screens[:, :2], screens[:, :2])
            assert not idle.any()
            stored += 1
    assert stored >= 20


@pytest.mark.parametrize("updates_per_step", [0.25, 1.0, 2.5])
def test_a_second_thread_stores_the_same_bits(updates_per_step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread stores a step, and makes the next minibatch, while the policy acts."""
    found: list[list[Batch]] = []
    files: list[NDArray[Any]] = []
    for smallest, cores in ((2**40, 1), (0, 1), (0, 2)):
        monkeypatch.setattr("bayes_rl.data.stream.BYTES_BESIDE", smallest)
        monkeypatch.setattr(SIDE_THREAD, "_cores", cores)
        options: dict[str, Any] = {"epsilon": EpsilonSchedule(0.5, 0.5, 0), "updates_per_step": updates_per_step}
        stream = stream_of(RestartingEnvs(3), **options)
        found.append(take(stream, 73))
        files.append(stream.replay.files.screens.copy())
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert np.array_equal(files[0], files[1])
    assert np.array_equal(files[0], files[2])


def test_an_error_of_the_second_thread_reaches_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_rl.data.stream.BYTES_BESIDE", 0)
    monkeypatch.setattr(SIDE_THREAD, "_cores", 2)
    stream = stream_of(ScriptedEnvs(2))
    take(stream, 3)

    def fail(*step: Any) -> None:
        raise OSError("no room on the disk")

    monkeypatch.setattr(stream.replay, "add", fail)
    with pytest.raises(OSError, match="no room"):
        take(stream, 3)


def test_chances_are_drawn_while_the_games_step_and_are_those_of_the_step_they_are_for() -> None:
    """Not between a step and the next one, when the emulators wait; the slow twin draws one step at a time."""
    envs = ScriptedEnvs(3)
    stream = stream_of(envs, ring(envs), epsilon=RANDOM)
    drawn: list[bool] = []
    chances = stream._exploration

    def noted() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        drawn.append(envs.pending is not None)
        return chances()

    stream._exploration = noted  # type: ignore[method-assign]
    for _ in range(150):
        stream.step_environments()
    assert drawn == [False] + [True] * 149
    sent = [actions.tolist() for name, actions in envs.log if name == "send"]
    key = (stream.seed, envs.num_envs, envs.num_actions)
    assert sent == [ExplorationNoise(*key)(step)[0].tolist() for step in range(150)]


def test_the_policy_sees_stacks_that_are_zero_before_the_start() -> None:
    envs = ScriptedEnvs(2, lengths=(2, 3))
    seen: list[torch.Tensor] = []

    def policy(observations: torch.Tensor) -> torch.Tensor:
        seen.append(observations.clone().view(2, 3, 3))
        return first_action(observations)

    take(stream_of(envs, ring(envs, frame_stack=3), policy), 60)
    for observations in seen:
        for stack in observations.tolist():
            env, episode, t = stack[-1]
            assert stack == [[env, episode, s] if s >= 0 else [0, 0, 0] for s in range(t - 2, t + 1)]


def test_the_action_that_was_really_played_is_stored() -> None:
    stream = stream_of(SwappingEnvs(2))
    actions = torch.cat([b.transition.action for b in take(stream, 20)])
    assert (actions == 4).all()
    assert all(a == 4 for history in stream.histories for a in history.actions)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_lost_life_is_stored_with_the_step_that_lost_it_and_a_new_game_loses_none(num_envs: int) -> None:
    """Lives fall at every second step, the first one included; that they are back at a reset is no loss or gain, and
    the reset of one game is none of another's.
    """
    envs = ScriptedEnvs(num_envs, lengths=(5, 4), lives=3)
    replay = ring(envs, kind=LoggingReplay)
    assert isinstance(replay, LoggingReplay)
    replay.log = envs.log
    take(stream_of(envs, replay), 60)
    added = [c for name, c in envs.log if name == "add"]
    lost = {(int(c[0][e, 2]), bool(c[5][e])) for c in added for e in range(num_envs)}
    assert lost == {(0, True), (1, False), (2, True), (3, False), (4, True)}


def test_environments_restart_by_themselves_until_a_seed_is_due() -> None:
    """Nothing of a restart is stored or counted, histories name it, and every 12 steps or later comes a seed."""
    envs = RestartingEnvs(3)
    stream = stream_of(envs, replay := ring(envs, capacity=3000))
    take(stream, 400)
    stream.finish_step()
    steps = stream.vector_steps
    for e in range(3):
        begun = stream.episodes[e] - len(envs.seeds[e])  # by themselves
        assert begun > 3
        ended = [envs.lengths[(e + j) % 4] for j in range(1, stream.episodes[e])]
        in_progress = 0 if envs.over[e] else envs.time[e]
        whole = sum(ended) + (envs.lengths[(e + stream.episodes[e]) % 4] if envs.over[e] else in_progress)
        restarts = begun
        assert whole + restarts == steps  # every step is an action or a restart
        assert replay.written[e] == whole + stream.episodes[e] - (not envs.over[e])
        history = stream.histories[e]
        # A seed follows the first end after 12 steps; an episode has at most 7.
        assert steps / (12 + 7 + 12) <= len(envs.seeds[e]) <= steps / 12 + 1
        seeded = max(envs.seeds[e])
        assert envs.seeds[e][seeded] == stream.episode_seeds[e]
        played = [envs.lengths[(e + j) % 4] for j in range(seeded, stream.episodes[e])]
        assert history.resets == np.cumsum(played).tolist()
        assert len(history.actions) == sum(played) + (
            envs.lengths[(e + stream.episodes[e]) % 4] if envs.over[e] else in_progress
        )


def test_a_finished_game_is_counted_once_with_its_own_return() -> None:
    envs = ScriptedEnvs(2)
    stream = stream_of(envs)
    take(stream, 50)
    stream.finish_step()
    wanted = sorted(
        sum(range(1, envs.lengths[(e + j) % 4] + 1)) for e in range(2) for j in range(1, int(envs.episode[e]))
    )
    assert sorted(stream.recent_returns) == wanted
    assert stream.finished_episodes == len(wanted)


def test_the_observation_stack_begins_and_pushes() -> None:
    stack = ObservationStack(2, 3, (1,), UINT8)
    stack.begin(np.array([[1], [2]], np.uint8), np.array([True, True]))
    stack.push(np.array([[3], [4]], np.uint8))
    stack.begin(np.array([[9], [5]], np.uint8), np.array([False, True]))
    assert stack.observations().tolist() == [[0, 1, 3], [0, 0, 5]]


# ----------------------------------------------------------------------------------------------------- epsilon


def test_epsilon_is_one_during_the_prefill_and_decays_with_the_frames_of_learning() -> None:
    """Also over ranks: two processes of three environments and a skip of 4 make 24 frames a step."""
    envs = ScriptedEnvs(3)
    asked: dict[int, float] = {}

    def policy(observations: torch.Tensor) -> torch.Tensor:
        asked[stream.steps_after_prefill] = stream.epsilon
        return first_action(observations)

    stream = stream_of(envs, None, policy, EpsilonSchedule(0.5, 0.1, 480), replay_min_size=60, world_size=2)
    assert stream.epsilon == 1.0
    stream._prefill()
    assert stream.epsilon == 1.0
    assert not asked
    assert stream.vector_steps >= 15
    take(stream, 600)
    assert len(asked) > 50
    assert asked == pytest.approx({s: max(0.1, 0.5 - 0.4 * 24 * s / 480) for s in asked})


def test_the_frequency_of_random_actions_is_epsilon() -> None:
    """Among 5 actions of which the policy always takes the first: within 4 standard errors, each action."""
    epsilon, steps = 0.3, 3000
    envs = ScriptedEnvs(4)
    stream = stream_of(envs, epsilon=EpsilonSchedule(epsilon, epsilon, 0), updates_per_step=1 / 16, replay_min_size=8)
    stream._prefill()
    begin = len(envs.log)
    take(stream, steps // 4)
    actions = np.concatenate([a for name, a in envs.log[begin:] if name == "send"])
    assert len(actions) == 4 * steps
    for action in range(5):
        probability = epsilon / 5 + (1 - epsilon) * (action == 0)
        error = math.sqrt(probability * (1 - probability) / len(actions))
        assert abs((actions == action).mean() - probability) < 4 * error


def test_environments_explore_independently() -> None:
    """Two environments are both random at once with probability epsilon squared."""
    envs = ScriptedEnvs(2)
    stream = stream_of(envs, epsilon=EpsilonSchedule(0.5, 0.5, 0), updates_per_step=1 / 8)
    stream._prefill()
    begin = len(envs.log)
    take(stream, 625)  # a fourth as many minibatches as steps
    moved = np.array([a != 0 for name, a in envs.log[begin:] if name == "send"])
    error = math.sqrt(0.16 * 0.84 / len(moved))
    assert abs(moved.all(1).mean() - 0.16) < 4 * error


# --------------------------------------------------------------------------------------------- posterior draws


@pytest.mark.parametrize("kind", [ScriptedEnvs, RestartingEnvs])
@pytest.mark.parametrize(("seed", "rank"), [(3, 0), (3, 1), (4, 0)])
def test_the_draw_of_an_environment_is_named_by_its_episode(kind: type[ScriptedEnvs], seed: int, rank: int) -> None:
    """The screens say which episode is on: the seed changes with it, also where games restart by themselves."""
    envs = kind(3)
    begun: list[tuple[int, ...]] = []

    def draw_policy(observations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        episodes = observations.view(3, 2, 3)[:, -1, 1].tolist()  # while one restarts, its last screen
        assert seeds == [draw_seed(seed, 3 * rank + env, episode) for env, episode in enumerate(episodes)]
        begun.append(tuple(episodes))
        return first_action(observations)

    def never(observations: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the mean weights were asked")

    take(stream_of(envs, None, never, seed=seed, rank=rank, world_size=rank + 1, draw_policy=draw_policy), 500)
    for env in range(3):
        episodes = [row[env] for row in begun]
        assert len(set(episodes)) > 10
        assert episodes == sorted(episodes)


def test_draws_act_where_chance_does_not() -> None:
    """With epsilon 0 after the prefill always; else as often as a single policy would."""

    def draw_policy(observations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.tensor([seed % 4 for seed in seeds])  # 4 is left to chance

    for epsilon, kind in ((0.0, ScriptedEnvs), (0.3, ScriptedEnvs), (0.3, RestartingEnvs)):
        envs = kind(4)
        schedule = EpsilonSchedule(epsilon, epsilon, 0)
        stream = stream_of(envs, epsilon=schedule, draw_policy=draw_policy, updates_per_step=1 / 16, replay_min_size=8)
        stream._prefill()
        begin = len(envs.log)
        take(stream, 500)  # a fourth as many minibatches as steps
        actions = np.concatenate([a for name, a in envs.log[begin:] if name == "send"])
        error = math.sqrt(epsilon / 5 * (1 - epsilon / 5) / len(actions))
        assert abs((actions == 4).mean() - epsilon / 5) <= 4 * error


def test_a_share_of_the_episodes_is_played_by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode is played by its draw or by the mean to its end, and as many by a draw as the schedule says."""
    share, by_draw, by_mean = 0.3, 1, 0
    envs = ScriptedEnvs(8)

    def draw_policy(observations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return torch.full((len(seeds),), by_draw)

    draws = DrawSchedule(share, share, 0)
    stream = stream_of(envs, draw_policy=draw_policy, draws=draws, updates_per_step=1 / 16, replay_min_size=8)
    stream._prefill()
    begun, send = envs.episode.copy(), envs.send
    played: dict[tuple[int, int], set[int]] = {}

    def recorded(actions: NDArray[np.int64]) -> NDArray[np.int64]:
        for env, action in enumerate(actions.tolist()):
            if envs.episode[env] > begun[env]:  # else the prefill has begun it
                played.setdefault((env, int(envs.episode[env])), set()).add(action)
        return send(actions)

    monkeypatch.setattr(envs, "send", recorded)
    take(stream, 200)
    assert stream.draw_share == share
    assert len(played) > 200
    assert all(actions in ({by_draw}, {by_mean}) for actions in played.values())
    found = np.mean([actions == {by_draw} for actions in played.values()])
    assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / len(played))


def test_draws_give_way_to_the_mean_as_scheduled() -> None:
    asked: list[str] = []

    def policy(observations: torch.Tensor) -> torch.Tensor:
        asked.append("mean")
        return first_action(observations)

    def draw_policy(observations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        asked.append("draw")
        return first_action(observations)

    envs = ScriptedEnvs(4)
    schedule = DrawSchedule(1.0, 0.0, 100 * 4 * 4)  # 100 steps of four environments, four frames each
    stream = stream_of(envs, None, policy, draw_policy=draw_policy, draws=schedule, updates_per_step=0.25)
    take(stream, 150)
    assert stream.draw_share == 0
    assert asked[0] == "draw"  # before the schedule begins, every episode has a draw
    assert asked[-20:] == ["mean"] * 20
    assert stream_of(ScriptedEnvs(4)).draw_share == 0  # nothing draws


# --------------------------------------------------------------------------------------------------- counters


@pytest.mark.parametrize("batches", [1, 7, 50])
def test_every_epoch_has_its_number_of_batches(batches: int) -> None:
    stream = stream_of(ScriptedEnvs(3), batches_per_epoch=batches)
    assert len(stream) == batches
    for epoch in range(1, 4):
        assert len(list(stream)) == batches
        assert stream.updates == epoch * batches


def test_an_epoch_that_was_left_goes_on_where_it_was() -> None:
    stream = stream_of(ScriptedEnvs(1), batches_per_epoch=10)
    take(stream, 4)
    assert len(list(stream)) == 6
    assert len(list(stream)) == 10


@pytest.mark.parametrize(
    ("num_envs", "updates_per_step"),
    [(1, 1.0), (1, 0.25), (1, 4.0), (2, 2.0), (3, 0.5), (4, 0.25), (8, 0.25), (8, 0.0625), (5, 0.125)],
)
def test_updates_per_agent_step_are_exact(num_envs: int, updates_per_step: float) -> None:
    """After every minibatch the games are as few steps ahead as allow updates <= agent steps x updates_per_step."""
    stream = stream_of(ScriptedEnvs(num_envs), updates_per_step=updates_per_step, batches_per_epoch=16)
    per_vector_step = num_envs * Fraction(updates_per_step)
    done = 0
    for _ in range(3):
        for _ in stream:
            done += 1
            assert stream.updates == done
            assert stream.steps_after_prefill == math.ceil(done / per_vector_step)


def test_updates_never_drift_when_the_rate_is_no_binary_fraction() -> None:
    stream = stream_of(ScriptedEnvs(3), updates_per_step=0.1, batches_per_epoch=150)
    take(stream, 300)
    assert stream.steps_after_prefill * 3 * 0.1 == pytest.approx(300, abs=0.31)


def test_frames_count_every_environment_rank_and_skip() -> None:
    for world_size in (1, 2):
        envs = ScriptedEnvs(3)
        stream = stream_of(envs, frame_skip=5, world_size=world_size)
        last = 0
        for batch in stream:
            sends = sum(name == "send" for name, _ in envs.log)
            assert stream.vector_steps == sends
            assert stream.agent_steps == sends * 3 * world_size
            assert batch.frames == stream.frames == sends * 3 * world_size * 5 >= last
            last = batch.frames
            if world_size == 1:
                assert batch.num_data == len(stream.replay)


def test_learning_begins_when_enough_is_stored() -> None:
    for size in (1, 30, 100):
        stream = stream_of(ScriptedEnvs(2), replay_min_size=size)
        take(stream, 1)
        assert size <= stream.replay.stored <= size + 8


def test_a_prefill_as_large_as_the_replay_ends() -> None:
    """Three rings share a capacity of 20: 18 slots, of which asking for 20 must not wait for ever."""
    envs = ScriptedEnvs(3)
    envs.steps_left = 200
    take(stream_of(envs, ring(envs, capacity=20, frame_stack=1, n_step=1), replay_min_size=20), 1)


# ------------------------------------------------------------------------------------------------------ seeds


def test_every_episode_has_a_seed_of_its_own() -> None:
    seeds = {episode_seed(run, env, episode) for run in (0, 1, 2) for env in range(24) for episode in range(1, 40)}
    assert len(seeds) == 3 * 24 * 39
    assert all(0 <= s < 2**31 for s in seeds)
    assert episode_seed(0, 2, 3) == episode_seed(0, 2, 3)


def test_the_stream_names_episodes_by_run_environment_and_number() -> None:
    played = {}
    for seed, rank in ((0, 0), (0, 1), (1, 0)):
        envs = ScriptedEnvs(3)
        take(stream_of(envs, seed=seed, rank=rank, world_size=rank + 1), 100)
        for e in range(3):
            assert len(envs.seeds[e]) > 3
            assert envs.seeds[e] == {j: episode_seed(seed, 3 * rank + e, j) for j in envs.seeds[e]}
            played |= {(seed, rank, e, j): s for j, s in envs.seeds[e].items()}
    assert len(set(played.values())) == len(played)


def test_streams_of_one_seed_agree_and_others_do_not() -> None:
    def run(seed: int, rank: int) -> list[Batch]:
        options = {"epsilon": EpsilonSchedule(1, 0.1, 200), "seed": seed, "rank": rank, "world_size": rank + 1}
        return take(stream_of(ScriptedEnvs(3), **options), 60)

    first = run(0, 0)
    assert same(first, run(0, 0))
    for seed, rank in ((1, 0), (0, 1)):
        assert not any(
            torch.equal(a.transition.observation, b.transition.observation)
            for a, b in zip(first, run(seed, rank), strict=True)
        )


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("by_draw", [False, True])
def test_ranks_play_the_games_of_one_process(ranks: int, by_draw: bool) -> None:
    """Real games with sticky actions: the same screens, actions and rewards, step by step and ring by ring."""

    def play(count: int, **of_rank: int) -> ReplayStream:
        envs = make_envs(CARTPOLE, count)
        policy = hashed(envs.num_actions)

        def draw_policy(observations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
            return (policy(observations) + torch.tensor(seeds)) % envs.num_actions

        options: dict[str, Any] = {"draw_policy": draw_policy if by_draw else None}
        options["draws"] = DrawSchedule(1, 0.2, 2000)
        stream = stream_of(envs, None, policy, EpsilonSchedule(1, 0.2, 2000), **options, **of_rank)
        for step in range(300):
            stream.steps_after_prefill = max(0, step - 50)
            stream.step_environments()
        stream.finish_step()
        return stream

    alone = play(6)
    parts = [play(6 // ranks, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert {part.frames for part in parts} == {alone.frames}
    assert {part.epsilon for part in parts} == {alone.epsilon}
    assert sum(part.finished_episodes for part in parts) == alone.finished_episodes > 20
    for name in ("screens", "actions", "rewards", "flags"):
        joined = np.concatenate([getattr(part.replay.files, name) for part in parts])
        assert np.array_equal(joined, getattr(alone.replay.files, name)), name


# ----------------------------------------------------------------------------------------------------- resume

BREAKOUT = EnvSettings("breakout", sticky_actions=0.25)
CARTPOLE = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.25)
Builder = Callable[[], ReplayStream]


def by_seed(num_actions: int) -> DrawPolicy:
    """A policy that depends on every number of each observation and on the seed."""
    policy = hashed(num_actions)
    return lambda observations, seeds: (policy(observations) + torch.tensor(seeds)) % num_actions


def builder(
    settings: EnvSettings, directory: Path | None, num_envs: int, by_draw: bool = False, **options: Any
) -> Builder:
    def build() -> ReplayStream:
        envs = make_envs(settings, num_envs)
        replay = ring(envs, capacity=num_envs * 150, slack=150, directory=directory, reward_clip=1.0, frame_stack=4)
        policy = hashed(envs.num_actions)
        epsilon = EpsilonSchedule(1.0, 0.0, 300 * num_envs * settings.frame_skip)
        options.setdefault("frame_skip", settings.frame_skip)
        options["draw_policy"] = by_seed(envs.num_actions) if by_draw else None
        options["draws"] = DrawSchedule(1.0, 0.2, 300 * num_envs * settings.frame_skip)
        options["newest"] = 40
        return stream_of(envs, replay, policy, epsilon, batches_per_epoch=100, **options)

    return build


@pytest.mark.parametrize(
    ("settings", "num_envs", "updates_per_step", "saved_at", "by_draw"),
    [
        *[(CARTPOLE, 3, 1 / 3, n, by_draw) for n in (30, 100, 331) for by_draw in (False, True)],
        *[(CARTPOLE, 1, 2.0, n, False) for n in (30, 100, 331)],  # two batches a step
        pytest.param(BREAKOUT, 2, 0.5, 331, False, marks=pytest.mark.slow),
        (BREAKOUT, 2, 0.5, 331, True),
    ],
    ids=lambda x: x.env if isinstance(x, EnvSettings) else str(x),
)
def test_a_resumed_stream_goes_on_bit_for_bit(
    tmp_path: Path,
    settings: EnvSettings,
    num_envs: int,
    updates_per_step: float,
    saved_at: int,
    by_draw: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after 60 batches more than were saved, then resumed from the same directory of the replay."""
    monkeypatch.setattr("bayes_rl.data.stream.BYTES_BESIDE", 0)  # a second thread stores steps and makes minibatches
    newest_share = 0.5 if by_draw else 0.0
    build = builder(settings, tmp_path, num_envs, by_draw, updates_per_step=updates_per_step, newest_share=newest_share)
    stream = build()
    take(stream, saved_at)
    state = through_a_file(stream.state_dict())
    wanted = take(stream, 60)
    stream.finish_step()
    stream.envs.close()
    resumed = build()
    resumed.load_state_dict(state)
    assert same(take(resumed, 60), wanted)
    resumed.finish_step()
    assert resumed.histories == stream.histories
    assert resumed.episodes.tolist() == stream.episodes.tolist()
    assert list(resumed.recent_returns) == list(stream.recent_returns)
    assert resumed.finished_episodes == stream.finished_episodes
    resumed.envs.close()


def test_ranks_count_their_transitions_at_every_eighth_update_and_not_anew_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks hold as many transitions. One process knows its number at every update, without an exchange."""
    counted: list[int] = []

    def sum_over_ranks(*numbers: int) -> tuple[int, ...]:
        if len(numbers) == 1:  # and not at the prefill
            counted.append(stream.updates)
        return tuple(2 * number for number in numbers)

    monkeypatch.setattr(stream_module, "sum_over_ranks", sum_over_ranks)
    build = builder(CARTPOLE, tmp_path, 2, world_size=2, updates_per_step=0.25)
    stream = build()
    first = [batch.num_data for batch in take(stream, 13)]
    assert counted == [1, 8]
    assert len(set(first[:7])) == len(set(first[7:])) == 1
    assert first[0] < first[7]
    state = through_a_file(stream.state_dict())
    straight = [batch.num_data for batch in take(stream, 5)]
    stream.finish_step()
    counted.clear()
    stream = build()
    stream.load_state_dict(state)
    assert [batch.num_data for batch in take(stream, 5)] == straight
    assert counted == [16]
    alone = take(builder(CARTPOLE, tmp_path / "alone", 2, updates_per_step=0.25)(), 5)
    assert len({batch.num_data for batch in alone}) == 5


@pytest.mark.parametrize(
    ("by_draw", "epsilon"),
    [(False, RANDOM), pytest.param(True, EpsilonSchedule(0.8, 0.8, 0), marks=pytest.mark.slow)],
)
def test_a_stream_saved_while_games_restart_resumes_bit_for_bit(
    tmp_path: Path, by_draw: bool, epsilon: EpsilonSchedule
) -> None:
    """With a restart under way, and after several of them: the emulator's own random numbers go on."""
    build = builder(BREAKOUT, tmp_path, 4, by_draw, updates_per_step=0.25)
    stream = build()
    stream.epsilon_schedule = epsilon
    batches = 0
    while not (stream.restarting.any() and min(len(h.resets) for h in stream.histories) >= 1):
        take(stream, 1)
        batches += 1
        assert batches < 3000
    state = through_a_file(stream.state_dict())
    wanted = take(stream, 40)
    stream.finish_step()
    stream.envs.close()
    resumed = build()
    resumed.epsilon_schedule = epsilon
    resumed.load_state_dict(state)
    assert same(take(resumed, 40), wanted)
    resumed.finish_step()
    assert resumed.histories == stream.histories
    resumed.envs.close()


@pytest.mark.parametrize(
    "family",
    [
        {},
        {"posterior": {"family": "members"}},
        {"posterior": {"family": "low_rank"}, "network": {"prior_function_scale": 1.0}},
    ],
)
def test_a_resumed_agent_explores_by_the_same_draws(tmp_path: Path, family: dict[str, Any]) -> None:
    """No draw is saved: seeds of episodes name them, and weights do the rest."""

    def build() -> ReplayStream:
        torch.manual_seed(0)
        module = make_module({"posterior": {"init_log_var": -2.0}}, family, observation_shape=(8,), num_actions=2)
        envs = make_envs(CARTPOLE, 3)
        replay = ring(envs, capacity=900, slack=150, directory=tmp_path)
        return stream_of(envs, replay, module.act, draw_policy=module.act_by_draw, frame_skip=1, batches_per_epoch=100)

    stream = build()
    take(stream, 80)
    state = through_a_file(stream.state_dict())
    begun = stream.episodes.copy()
    wanted = take(stream, 90)
    assert (stream.episodes > begun).all()
    stream.finish_step()
    stream.envs.close()
    resumed = build()
    resumed.load_state_dict(state)
    assert same(take(resumed, 90), wanted)
    resumed.finish_step()
    assert resumed.histories == stream.histories
    resumed.envs.close()


@pytest.mark.parametrize("updates_per_step", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("saved_at", [40, 41, 50])
def test_saving_does_not_change_the_run(saved_at: int, updates_per_step: float) -> None:
    """A stream that was saved hands out the same minibatches as one that never was, wherever that happened."""

    def run(save: bool) -> list[Batch]:
        stream = stream_of(ScriptedEnvs(2), updates_per_step=updates_per_step, epsilon=RANDOM)
        batches = take(stream, saved_at)
        if save:
            stream.state_dict()
        return batches + take(stream, 60)

    assert same(run(save=True), run(save=False))


def test_a_state_is_small_and_holds_tensors_and_primitives_only() -> None:
    """A few kilobytes beside the last screens: environments are named by seed and actions."""
    stream = stream_of(ScriptedEnvs(2))
    take(stream, 20)
    buffer = io.BytesIO()
    torch.save(stream.state_dict(), buffer)
    assert buffer.tell() < 20_000


def test_a_limit_of_the_trainer_shortens_every_epoch_and_not_every_second_one() -> None:
    stream = stream_of(ScriptedEnvs(2), batches_per_epoch=10, epoch_limit=6)
    assert [len(list(stream)) for _ in range(3)] == [6, 6, 6]
    whole = stream_of(ScriptedEnvs(2), batches_per_epoch=10, epoch_limit=10)
    assert [len(list(whole)) for _ in range(2)] == [10, 10]


def test_a_stream_refilled_on_resume_collects_new_games_and_keeps_its_counters() -> None:
    stream = stream_of(ScriptedEnvs(2))
    take(stream, 60)
    state = through_a_file(stream.state_dict())
    envs = ScriptedEnvs(2)
    resumed = stream_of(envs, refill_replay=True)
    resumed.load_state_dict(state)
    assert (resumed.updates, resumed.frames) == (stream.updates, stream.frames)
    assert len(resumed.replay) == 0
    assert len(take(resumed, 40)) == 40
    assert resumed.updates == 100
    assert len(resumed.replay) >= 20
    for e in range(2):
        number = int(state["episodes"][e])
        assert envs.seeds[e][1] == episode_seed(3, e, number + 1)  # a game that the first run had not begun


def test_the_return_of_a_game_that_is_not_continued_counts_for_no_other_game() -> None:
    stream = stream_of(ScriptedEnvs(2))
    take(stream, 60)
    state = stream.state_dict()
    state["episode_return"] += 1000.0
    resumed = stream_of(ScriptedEnvs(2), refill_replay=True)
    resumed.load_state_dict(state)
    take(resumed, 60)
    assert max(resumed.recent_returns) < 1000.0


def test_a_resume_without_its_replay_is_refused(tmp_path: Path) -> None:
    stream = builder(CARTPOLE, tmp_path / "here", 1)()
    take(stream, 20)
    state = through_a_file(stream.state_dict())
    stream.envs.close()
    resumed = builder(CARTPOLE, tmp_path / "elsewhere", 1)()
    with pytest.raises(ConfigError, match=r"--data.refill_replay true"):
        resumed.load_state_dict(state)
    resumed.envs.close()


def test_an_environment_that_is_not_what_it_was_is_noticed(tmp_path: Path) -> None:
    """Other physics for the same seed and actions (here: another stickiness) must not pass silently."""
    stream = builder(CARTPOLE, tmp_path, 2)()
    take(stream, 30)
    state = through_a_file(stream.state_dict())
    stream.envs.close()
    other = EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.9)
    resumed = builder(other, tmp_path, 2)()
    with pytest.raises(ConfigError, match="could not be rebuilt"):
        resumed.load_state_dict(state)
    resumed.envs.close()


def test_games_that_do_not_repeat_begin_anew_on_resume_and_keep_the_replay(tmp_path: Path) -> None:
    """Episodes that were not over are truncated where the checkpoint left them; counters and slots stay."""

    def build() -> ReplayStream:
        envs = ScriptedEnvs(3)
        envs.repeatable = False
        return stream_of(envs, ring(envs, directory=tmp_path, slack=100), batch_size=4)

    stream = build()
    take(stream, 40)
    state = through_a_file(stream.state_dict())
    newest, ages = stream.stack.array[:, -1].copy(), stream.replay._age.copy()
    written = stream.replay.written.copy()
    assert (ages > 0).any(), "some episode is not over"
    take(stream, 5)  # an interrupted epoch, whose slots a resumed run writes over
    resumed = build()
    for _ in range(2):  # resuming twice from one checkpoint is as good as once
        resumed.load_state_dict(state)
        assert resumed.vector_steps == state["vector_steps"]
        flags = resumed.replay.files.flags
        for env in range(3):
            running = int(ages[env] > 0)
            assert resumed.replay.written[env] == written[env] + running
            final = resumed.replay._base[env] + written[env]
            if running:
                assert flags[final] == LAST_SCREEN
                assert flags[final - 1] & TRUNCATED
                assert np.array_equal(resumed.replay.files.screens[final], newest[env])
        assert not resumed.episode_return.any()
    episodes = resumed.episodes.copy()
    batches = take(resumed, 30)
    assert (resumed.episodes > episodes).all()
    for batch in batches:  # every stack is of one episode: (environment, episode, step) of its two screens
        for observation in (batch.transition.observation, batch.transition.next_observation):
            older, newer = observation.view(4, 2, 3).unbind(1)
            inside = (older != 0).any(1)
            assert torch.equal(older[inside, :2], newer[inside, :2])
        inside = batch.transition.discount > 0
        assert torch.equal(batch.transition.observation[inside, 3:5], batch.transition.next_observation[inside, 3:5])
