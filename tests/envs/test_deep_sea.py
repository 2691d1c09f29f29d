"""Deep Sea against its definition, worked out in fractions; then through every door that leads to it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.deep_sea import DeepSea
from bayes_rl.envs.kinds import make_envs
from bayes_rl.errors import ConfigError
from bayes_rl.evaluation.games import Games
from bayes_rl.evaluation.rendering import render_game
from tests.helpers.scripted_envs import RANDOM, ring, same, stream_of, take, through_a_file

Cell = tuple[int, int]


def sea(**env_kwargs: Any) -> EnvSettings:
    return EnvSettings("bayes_rl/DeepSea-v0", frame_skip=1, sticky_actions=0.0, env_kwargs=env_kwargs)


def mapping(size: int, seed: int | None) -> NDArray[np.int64]:
    """The action that means right, `[size, size]`: bsuite's coins as numpy's legacy generator tosses them."""
    if seed is None:
        return np.ones((size, size), np.int64)
    return (np.random.RandomState(seed).random_sample((size, size)) > 0.5).astype(np.int64)


def fall(right: NDArray[np.int64], actions: Sequence[int]) -> tuple[list[Cell], list[Fraction]]:
    """Cells (row, column) before each step and after the last one, and the rewards, by the definition."""
    size = len(right)
    cells, rewards = [(0, 0)], []
    for action in actions:
        row, column = cells[-1]
        to_the_right = bool(right[row, column] == action)
        prize = int(to_the_right and (row, column) == (size - 1, size - 1))
        rewards.append(prize - to_the_right * Fraction(1, 100 * size))
        cells.append((row + 1, sorted((0, column + (1 if to_the_right else -1), size - 1))[1]))
    return cells, rewards


def played(env: DeepSea, actions: Sequence[int]) -> tuple[list[Any], list[float], list[bool], list[bool]]:
    """Observations, rewards, ends and bad-episode flags."""
    observation, info = env.reset()
    observations, rewards, ends, bad = [observation], [], [], [info["bad_episode"]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        assert not truncated
        observations.append(observation)
        rewards.append(float(reward))
        ends.append(terminated)
        bad.append(info["bad_episode"])
    return observations, rewards, ends, bad


def best(right: NDArray[np.int64]) -> list[int]:
    return right.diagonal().tolist()


# -------------------------------------------------------------------------------------------- the definition


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), size=st.integers(2, 12), seed=st.none() | st.integers(0, 2**32 - 1), stray=st.booleans())
def test_every_episode_is_the_definitions(data: st.DataObject, size: int, seed: int | None, stray: bool) -> None:
    """Random actions, or the best ones but for one: cells in both kinds of observation, rewards, end and flag."""
    right = mapping(size, seed)
    if stray:
        actions = best(right)
        actions[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(0, 1))
    else:
        actions = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    cells, rewards = fall(right, actions)
    env, by_number = DeepSea(size, seed), DeepSea(size, seed, one_hot=False)
    played(env, [1 - a for a in actions])  # an episode leaves nothing behind
    render_game, *one_hot = played(env, actions)
    numbers, *numbered = played(by_number, actions)
    assert one_hot == numbered
    found, ends, bad = one_hot
    assert found == pytest.approx([float(r) for r in rewards], abs=1e-15)
    assert ends == [False] * (size - 1) + [True]
    assert bad == [any(column != row for row, column in cells[: t + 1]) for t in range(size)] + [
        sum(rewards) != Fraction(99, 100)
    ]
    for picture, number, (row, column) in zip(render_game[:-1], numbers[:-1], cells[:-1], strict=True):
        assert picture.dtype == np.float32
        assert np.argwhere(picture).tolist() == [[row, column]]
        assert picture.sum() == 1
        assert picture.ravel()[number] == 1
    assert render_game[-1].shape == (size, size)
    assert not render_game[-1].any()
    assert numbers[-1] == (size - 1) * size + cells[-1][1]
    assert all(by_number.observation_space.contains(n) for n in numbers)


@pytest.mark.parametrize("size", [2, 3, 6, 9])
def test_one_episode_in_all_returns_0_99_and_the_others_nothing_or_less(size: int) -> None:
    env = DeepSea(size)
    returns = {a: sum(played(env, a)[1]) for a in itertools.product((0, 1), repeat=size)}
    assert len(returns) == 2**size
    winner = max(returns, key=lambda a: returns[a])
    assert returns.pop(winner) == pytest.approx(0.99, abs=1e-12)
    assert list(winner) == best(mapping(size, 42))
    assert max(returns.values()) == 0
    assert min(returns.values()) >= -0.01


def learnt_mapping(env: DeepSea) -> dict[Cell, int]:
    """What goes right in every cell within reach, by going there (along the left wall first) and trying action 1."""
    known: dict[Cell, int] = {}
    for row in range(env.size):
        for column in range(row + 1):
            actions: list[int] = []
            now = 0
            for t in range(row):
                to_the_right = t >= row - column
                actions.append(known[t, now] if to_the_right else 1 - known[t, now])
                now += to_the_right
            rewards = played(env, [*actions, 1])[1]
            known[row, column] = int(rewards[-1] != 0)
    return known


def test_the_mapping_follows_from_its_seed() -> None:
    found = [learnt_mapping(DeepSea(8, seed)) for seed in (0, 0, 42, 43, 2**32 - 1)]
    assert found[0] == found[1]
    for a, b in itertools.combinations(found[1:], 2):
        assert a != b
    assert learnt_mapping(DeepSea(8)) == found[2], "42 unless another seed is given"
    for known, seed in zip(found[1:], (0, 42, 43, 2**32 - 1), strict=True):
        assert known == {cell: mapping(8, seed)[cell] for cell in known}


def test_the_mapping_of_seed_42_in_numbers() -> None:
    """The generator's first numbers are 0.375, 0.951, 0.732, 0.599, 0.156, 0.156, 0.058, 0.866, 0.601, 0.708."""
    known = learnt_mapping(DeepSea(4))
    assert [known[cell] for cell in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1))] == [0, 0, 0, 1, 1]


def test_without_a_mapping_seed_action_1_goes_right_everywhere() -> None:
    assert set(learnt_mapping(DeepSea(7, mapping_seed=None)).values()) == {1}


def test_the_mapping_neither_changes_nor_uses_the_seed_of_an_episode() -> None:
    env = DeepSea(6)
    known = learnt_mapping(env)
    for seed in (0, 1):
        env.reset(seed=seed)
        assert learnt_mapping(env) == known


def test_gymnasium_finds_nothing_to_complain_about() -> None:
    for one_hot in (True, False):
        env = gym.make("bayes_rl/DeepSea-v0", size=4, one_hot=one_hot, render_mode="rgb_array").unwrapped
        assert isinstance(env, DeepSea)
        check_env(env)


def test_a_step_needs_an_episode() -> None:
    env = DeepSea(2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    played(env, [0, 0])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": 1}, "size 1 "),
        ({"size": -3}, "size -3 "),
        ({"size": 2.5}, "size 2.5 "),
        ({"size": "many"}, "size 'many' "),
        ({"size": True}, "size True "),
        ({"size": None}, "size None "),
        ({"mapping_seed": -1}, "mapping_seed -1 "),
        ({"mapping_seed": 2**32}, "mapping_seed 4294967296 "),
        ({"mapping_seed": "x"}, "mapping_seed 'x' "),
        ({"render_mode": "human"}, "render_mode 'human' "),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        DeepSea(**arguments)


@pytest.mark.parametrize("action", [-1, 2, 0.5])
def test_an_action_that_does_not_exist_is_refused(action: Any) -> None:
    env = DeepSea(3)
    env.reset()
    with pytest.raises(ValueError, match=f"^action {action} "):
        env.step(action)


# -------------------------------------------------------------------------------------------------- pictures


def test_a_picture_shows_the_block_where_it_is_and_the_goal_in_its_corner() -> None:
    actions = [0, 1, 1, 0]
    env = DeepSea(4, 7, render_mode="rgb_array")
    cells, _ = fall(mapping(4, 7), actions)
    env.reset()
    drawn = [env.render()]
    for action in actions:
        env.step(np.int64(action))
        drawn.append(env.render())
    for picture, (row, column) in zip(drawn, cells, strict=True):
        assert picture is not None
        assert (picture.shape, picture.dtype) == ((32, 32, 3), np.uint8)
        centres = picture[4::8, 4::8].astype(int)
        block = (min(row, 3), column)
        assert centres[block][0] > 200
        others = [c for c in itertools.product(range(4), repeat=2) if c != block]
        assert {tuple(centres[c]) for c in others if c != (3, 3)} == {(24, 60, 120)}
        assert picture[31, 31].argmax() == 1, "the goal is green, and seen behind the block too"
    assert DeepSea(4).render() is None


def test_a_game_is_drawn_step_by_step() -> None:
    (game,) = Games(sea(size=5, mapping_seed=None), [3], 1, 0).play(lambda o: torch.ones(len(o), dtype=torch.int64))
    assert game.score == pytest.approx(0.99, abs=1e-6)
    assert game.frames == 5
    drawn = list(render_game(sea(size=5, mapping_seed=None), game))
    assert len(drawn) == 6
    assert all(p.shape == (160, 160, 3) for p in drawn)
    block = [np.argwhere(p[16::32, 16::32, 0] > 200).tolist() for p in drawn]
    assert block == [[[i, i]] for i in (0, 1, 2, 3, 4)] + [[[4, 4]]]


# ----------------------------------------------------------------------------------- through the environments


@pytest.mark.parametrize("one_hot", [True, False])
def test_the_settings_reach_every_environment(one_hot: bool) -> None:
    """Three different games at once, ended and reset: screens, rewards and ends are the definition's."""
    size = 6
    envs = make_envs(sea(size=size, mapping_seed=11, one_hot=one_hot), 3)
    shape = ((36,), np.float32, 0) if one_hot else ((1,), np.int32, 36)
    assert (envs.screen_shape, envs.screen_dtype, envs.num_categories) == shape
    assert (envs.num_actions, envs.pixel_scale) == (2, 1.0)
    right = mapping(size, 11)
    scripts = np.random.default_rng(0).integers(0, 2, (4, 3, size))
    scripts[1, 1] = best(right)
    for episode, script in enumerate(scripts):
        falls = [fall(right, actions) for actions in script]
        screens, _ = envs.reset(np.arange(3) + episode, np.ones(3, bool))
        for t in range(size + 1):
            assert screens.shape == (3, *envs.screen_shape)
            assert screens.dtype == envs.screen_dtype
            for e in range(3):
                row, column = falls[e][0][t]
                number = min(row, size - 1) * size + column
                wanted = np.arange(36) == (number if t < size else -1) if one_hot else [number]
                assert np.array_equal(screens[e], wanted)
            if t == size:
                break
            step = envs.step(script[:, t])
            screens = step.screens
            assert step.rewards == pytest.approx([float(falls[e][1][t]) for e in range(3)], abs=1e-7)
            assert step.terminated.tolist() == [t == size - 1] * 3
            assert not step.truncated.any()
    envs.close()


def module(env_kwargs: dict[Any, Any] | None, env: str = "bayes_rl/DeepSea-v0", **options: Any) -> ReplayDataModule:
    defaults: dict[str, Any] = {"num_envs": 2, "frame_stack": 2, "rules": {"frame_skip": 1, "sticky_actions": 0.0}}
    return ReplayDataModule(env, env_kwargs, replay={"capacity": 400, "min_size": 40}, **(defaults | options))


@pytest.mark.parametrize(
    ("env_kwargs", "text"),
    [
        ({"size": 1}, "{'size': 1} .*size 1 "),
        ({"sice": 5}, "{'sice': 5} .*unexpected keyword argument 'sice'"),
        ({"size": [3]}, r"{'size': \[3\]} .*size \[3\] "),
        ({"render_mode": "human"}, "{'render_mode': 'human'} .*'render_mode'"),
        ({3: 4}, "{3: 4} .*keywords must be strings"),
    ],
)
def test_a_bad_keyword_is_one_line(env_kwargs: dict[Any, Any], text: str) -> None:
    def envs() -> Any:
        return make_envs(EnvSettings("bayes_rl/DeepSea-v0", env_kwargs=env_kwargs), 1)

    for build in (envs, lambda: module(env_kwargs)):
        with pytest.raises(ConfigError, match=f"^--data.env_kwargs: {text}") as error:
            build()
        assert "\n" not in str(error.value)


def test_the_data_module_knows_the_numbers_of_states() -> None:
    for one_hot, shape, categories in ((False, (2,), 49), (True, (2 * 49,), 0)):
        data = module({"size": 7, "one_hot": one_hot})
        assert (data.observation_shape, data.num_categories, data.num_actions) == (shape, categories, 2)
    assert module(None).observation_shape == (2 * 100,)
    assert module({"is_slippery": False}, "FrozenLake-v1").num_categories == 16
    assert module(None, "CartPole-v1").num_categories == 0


def test_keyword_arguments_are_typed_on_the_command_line() -> None:
    from pytorch_lightning.cli import LightningArgumentParser

    parser = LightningArgumentParser()
    parser.add_lightning_class_args(ReplayDataModule, "data")
    for words in (["--data.env_kwargs", "{size: 20, one_hot: false}"], ["--data.env_kwargs.size", "20"]):
        env_kwargs = parser.parse_args(words).as_dict()["data"]["env_kwargs"]
        assert env_kwargs["size"] == 20
        assert env_kwargs.get("one_hot", False) is False
    assert parser.parse_args([]).data.env_kwargs is None


# ---------------------------------------------------------------------------------- through replay and stream


def test_sampled_transitions_are_the_definitions() -> None:
    """What comes out of the replay, as int32 numbers of cells, is a step of the definition with the stored action."""
    size, right = 5, mapping(5, 42)
    envs = make_envs(sea(size=5, one_hot=False), 3)
    replay = ring(envs, n_step=1, gamma=0.5, frame_stack=2)
    stream = stream_of(envs, replay, epsilon=RANDOM, batch_size=32, frame_skip=1)
    seen, ends = set(), 0
    for batch in take(stream, 120):
        observation, action, reward, discount, next_observation, _ = batch.transition
        for stack in (observation, next_observation):
            assert (stack.dtype, stack.shape) == (torch.int32, (32, 2))
        for i in range(32):
            (before, number), (kept, after) = observation[i].tolist(), next_observation[i].tolist()
            row, column = divmod(number, size)
            to_the_right = bool(right[row, column] == action[i])
            landed = min(max(column + (1 if to_the_right else -1), 0), size - 1)
            assert after == min(row + 1, size - 1) * size + landed
            assert kept == number
            assert before // size == max(row - 1, 0)
            assert discount[i] == (0 if row == size - 1 else 0.5)
            wanted = (number == size * size - 1) * to_the_right - to_the_right * 0.01 / size
            assert reward[i] == pytest.approx(wanted, abs=1e-7)
            seen.add((number, int(action[i])))
            ends += row == size - 1
    assert len(seen) > 20
    assert ends > 100
    stream.finish_step()
    envs.close()


@pytest.mark.parametrize("one_hot", [True, False])
def test_a_resumed_stream_of_deep_sea_goes_on_bit_for_bit(tmp_path: Any, one_hot: bool) -> None:
    """Sticky actions make the episodes' seeds matter."""
    options = {"size": 5, "one_hot": one_hot}
    chosen = EnvSettings("bayes_rl/DeepSea-v0", frame_skip=1, sticky_actions=0.25, env_kwargs=options)

    def build() -> Any:
        envs = make_envs(chosen, 2)
        return stream_of(envs, ring(envs, directory=tmp_path, slack=200), epsilon=RANDOM, frame_skip=1)

    stream = build()
    take(stream, 33)
    state = through_a_file(stream.state_dict())
    wanted = take(stream, 40)
    stream.finish_step()
    stream.envs.close()
    resumed = build()
    resumed.load_state_dict(state)
    assert same(take(resumed, 40), wanted)
    resumed.finish_step()
    resumed.envs.close()
