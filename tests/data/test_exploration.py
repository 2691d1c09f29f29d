"""Departures from the greedy policy: when, by which random numbers, and what a run makes of its settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.agent.behaviour import critic_of_draw
from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.exploration import BLOCK, DrawSchedule, EpsilonSchedule, ExplorationNoise, draw_seed, episode_uniform
from bayes_rl.envs.base import episode_seed
from bayes_rl.errors import ConfigError
from tests.helpers.agents import make_trainer


# ------------------------------------------------------------------ epsilon
@pytest.mark.parametrize(
    ("start", "end", "decay", "frames", "wanted"),
    [
        (1.0, 0.1, 100, 0, 1.0),
        (1.0, 0.1, 100, 50, 0.55),
        (1.0, 0.1, 100, 100, 0.1),
        (1.0, 0.1, 100, 10**9, 0.1),
        (1.0, 0.1, 0, 0, 0.1),
        (1.0, 0.1, 0, 5, 0.1),
        (0.2, 0.2, 100, 30, 0.2),
        (0.0, 1.0, 10, 4, 0.4),
    ],
)
def test_epsilon_is_linear_and_then_constant(start: float, end: float, decay: int, frames: int, wanted: float) -> None:
    assert EpsilonSchedule(start, end, decay)(frames) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(
    ("values", "word"),
    [((1.1, 0.1, 1), "start"), ((1.0, -0.1, 1), "end"), ((1.0, 0.1, -1), "decay_frames")],
)
def test_an_impossible_schedule_is_named(values: tuple[float, float, int], word: str) -> None:
    with pytest.raises(ConfigError, match=f"--data.epsilon.{word}: "):
        EpsilonSchedule(*values)
    with pytest.raises(ConfigError, match=f"--data.draws.{word}: "):
        DrawSchedule(*values)


def test_every_episode_is_played_by_a_draw_unless_a_schedule_says_otherwise() -> None:
    assert [DrawSchedule()(frames) for frames in (0, 10, 10**9)] == [1.0] * 3
    assert [DrawSchedule(1.0, 0.5, 100)(frames) for frames in (0, 50, 100, 200)] == [1.0, 0.75, 0.5, 0.5]


def test_numbers_of_episodes_are_uniform_and_independent_of_the_draw() -> None:
    count = 4000
    numbers = np.array([episode_uniform(seed) for seed in range(count)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for share in (0.1, 0.5, 0.9):
        assert abs((numbers < share).mean() - share) < 4 * math.sqrt(share * (1 - share) / count)
    critics = np.array([critic_of_draw(seed) for seed in range(count)])
    assert abs(np.corrcoef(numbers, critics)[0, 1]) < 4 / math.sqrt(count)


# ------------------------------------------------------------------ chance
def numbers(chance: ExplorationNoise, step: int) -> tuple[list[int], list[float]]:
    actions, uniform = chance(step)
    return actions.tolist(), uniform.tolist()


def test_chance_is_a_function_of_the_step_whatever_was_asked_before() -> None:
    steps = [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK + 3, 2, 10**6]
    asked = ExplorationNoise(3, 4, 5)
    first = {step: numbers(asked, step) for step in steps}
    for step in reversed(steps):
        assert numbers(asked, step) == numbers(ExplorationNoise(3, 4, 5), step) == first[step]


def test_steps_seeds_and_environments_have_their_own_numbers() -> None:
    drawn = [u for step in range(3 * BLOCK) for u in numbers(ExplorationNoise(0, 3, 2), step)[1]]
    drawn += numbers(ExplorationNoise(1, 3, 2), 0)[1]
    assert len(set(drawn)) == len(drawn) == 9 * BLOCK + 3


def test_ranks_have_the_numbers_of_their_environments() -> None:
    together, parts = ExplorationNoise(3, 6, 5), [ExplorationNoise(3, 6, 5, range(k, k + 2)) for k in (0, 2, 4)]
    for step in (0, 1, BLOCK, 10**6):
        actions, uniform = together(step)
        assert [a for part in parts for a in part(step)[0].tolist()] == actions.tolist()
        assert [u for part in parts for u in part(step)[1].tolist()] == uniform.tolist()


def test_random_actions_are_uniform_and_say_nothing_about_whether_they_are_taken() -> None:
    """Within 4 standard errors, for each action: its frequency, and the mean of the uniform number beside it."""
    chance, count, actions = ExplorationNoise(0, 8, 3), 8 * 40 * BLOCK, 3
    both = [chance(step) for step in range(40 * BLOCK)]
    chosen, uniform = (np.concatenate(column) for column in zip(*both, strict=True))
    assert len(chosen) == count
    assert 0 <= uniform.min() < uniform.max() < 1
    for action in range(actions):
        error = math.sqrt((1 / actions) * (1 - 1 / actions) / count)
        assert abs((chosen == action).mean() - 1 / actions) < 4 * error
        assert abs(uniform[chosen == action].mean() - 0.5) < 4 * math.sqrt(1 / 12 / (count / actions))


# ------------------------------------------------------------------ posterior draws
def test_every_episode_has_a_draw_of_its_own_that_its_game_knows_nothing_of() -> None:
    names = [(s, e, j) for s in (0, 1) for e in range(24) for j in range(1, 40)]
    seeds = {draw_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert not seeds & {episode_seed(*name) for name in names}
    assert draw_seed(1, 3, 4) == draw_seed(1, 3, 4)


# ------------------------------------------------------------------ whole runs
class Watch(pl.Callback):
    """Notes what each policy said, and what was then done: `(name, answers, actions)`, no name where none was asked."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, list[int], list[int]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stream = trainer.datamodule.stream
        policy, draw_policy, send = stream.policy, stream.draw_policy, stream.envs.send
        said: list[tuple[str, list[int]]] = []

        def asked(name: str, answers: Tensor) -> Tensor:
            said.append((name, answers.tolist()))
            return answers

        def watched_send(actions: NDArray[np.int64]) -> NDArray[np.int64]:
            self.steps.append((*(said.pop() if said else ("", [])), actions.tolist()))
            assert not said
            return send(actions)

        stream.envs.send = watched_send
        stream.policy = lambda observations: asked("mean", policy(observations))
        if draw_policy:
            stream.draw_policy = lambda observations, seeds: asked("draw", draw_policy(observations, seeds))


ENVS, EPSILON = 3, 0.25


def steps_of(exploration: str) -> list[tuple[str, list[int], list[int]]]:
    """The steps of a short run with a constant epsilon, after those that filled the replay."""
    torch.manual_seed(0)
    module = VariationalActorCritic(
        network={"encoder": "mlp", "hidden_dim": 4}, observation_shape=(4,), num_actions=2, exploration=exploration
    )
    data = ReplayDataModule(
        env="CartPole-v1",
        num_envs=ENVS,
        frame_stack=1,
        rules={"frame_skip": 1},
        replay={"capacity": 2000, "min_size": 60, "batch_size": 4},
        frames_per_epoch=900,
        epsilon={"start": EPSILON, "end": EPSILON},
    )
    watch = Watch()
    make_trainer(watch).fit(module, datamodule=data)
    prefill = data.stream.vector_steps - data.stream.steps_after_prefill
    assert len(watch.steps) == data.stream.vector_steps
    assert 10 < prefill < 30
    assert all(not name for name, _, _ in watch.steps[:prefill])  # nobody is asked while all actions are random
    return watch.steps[prefill:]


def test_thompson_takes_no_random_action_after_the_prefill() -> None:
    steps = steps_of("thompson")
    assert len(steps) >= 300
    assert all(name == "draw" and answers == actions for name, answers, actions in steps)


@pytest.mark.parametrize(("exploration", "policy"), [("both", "draw"), ("epsilon", "mean")])
def test_both_replaces_actions_of_draws_as_epsilon_replaces_those_of_the_mean(exploration: str, policy: str) -> None:
    """Where an action was asked for, it is random with (e - e^3) / (1 - e^3), and every other one of those is new."""
    steps = steps_of(exploration)
    assert {name for name, _, _ in steps} == {policy, ""}
    asked = [(answers, actions) for name, answers, actions in steps if name]
    replaced = np.mean([a != b for pair in asked for a, b in zip(*pair, strict=True)])
    expected = 0.5 * (EPSILON - EPSILON**ENVS) / (1 - EPSILON**ENVS)
    assert abs(replaced - expected) < 4 * math.sqrt(expected * (1 - expected) / (ENVS * len(asked)))


@pytest.mark.parametrize(("name", "value"), [("start", 1.1), ("end", -0.1), ("decay_frames", -1)])
def test_settings_of_epsilon_that_cannot_work_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--data.epsilon.{name}: {value}"):
        EpsilonSchedule(**{name: value})
