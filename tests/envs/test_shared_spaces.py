"""Observations and actions that several games share."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.shared_spaces import task_name, task_settings
from bayes_rl.errors import ConfigError

MINATAR = ["MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "MinAtar/SpaceInvaders-v1"]
PLAIN = EnvSettings("?", frame_skip=1, sticky_actions=0.1)
# MinAtar's actions in order: nothing, left, up, right, down, fire.
MEANINGS = {"Breakout": "nlr", "Freeway": "nud", "SpaceInvaders": "nlrf"}
UNION = "nlurdf"
FIRST_PLANE = {"Breakout": 0, "Freeway": 4, "SpaceInvaders": 11}  # each game's own, one behind the other


def test_minatar_tasks_share_actions_by_their_meaning_and_no_planes() -> None:
    """Each game in common spaces is the game itself: played by the same moves it shows and pays the same."""
    moves = np.random.default_rng(0).integers(0, 6, (60, 2))
    for env, settings in zip(MINATAR, task_settings(PLAIN, MINATAR), strict=True):
        name = env.split("/")[1].split("-")[0]
        own, first = MEANINGS[name], FIRST_PLANE[name]
        common, original = make_envs(settings, 2), make_envs(EnvSettings(env, 1, 0.1), 2)
        assert common.num_actions == 6
        assert common.screen_shape == (17, 10, 10)
        mask, seeds = np.ones(2, bool), np.array([5, 6])
        screens = [e.reset(seeds, mask)[0] for e in (common, original)]
        planes = original.screen_shape[0]
        for action in moves:
            padded, bare = screens
            assert np.array_equal(padded[:, first : first + planes], bare)
            assert padded.sum() == bare.sum()
            # An action that the game does not know is to do nothing.
            known = np.array([own.index(UNION[a]) if UNION[a] in own else 0 for a in action])
            steps = common.step(action), original.step(known)
            assert np.array_equal(steps[0].rewards, steps[1].rewards)
            over = steps[1].terminated | steps[1].truncated
            assert np.array_equal(steps[0].terminated, steps[1].terminated)
            screens = [step.screens.copy() for step in steps]
            if over.any():
                for envs, now in zip((common, original), screens, strict=True):
                    now[over] = envs.reset(seeds[over] + 7, over)[0][over]
        common.close()
        original.close()


def test_a_plane_that_several_games_have_is_one() -> None:
    breakout, asterix = task_settings(PLAIN, ["MinAtar/Breakout-v1", "MinAtar/Asterix-v1"])
    # paddle, ball, trail, brick; player, enemy, trail, gold
    assert breakout.screen_shape == asterix.screen_shape == (7, 10, 10)
    assert (breakout.places, asterix.places) == ((0, 1, 2, 3), (4, 5, 2, 6))


def test_atari_tasks_have_all_actions() -> None:
    settings = task_settings(EnvSettings("?"), ["breakout", "ALE/Tennis-v5"])
    assert [one.full_action_space for one in settings] == [True, True]
    assert [task_name(one.env) for one in settings] == ["breakout", "tennis"]
    envs = make_envs(settings[0], 1)
    assert envs.num_actions == 18
    envs.close()


def test_vectors_are_padded_and_missing_actions_are_the_first() -> None:
    cartpole, acrobot = task_settings(PLAIN, ["CartPole-v1", "Acrobot-v1"])
    assert (cartpole.screen_shape, cartpole.places, cartpole.action_map) == ((6,), (0, 1, 2, 3), (0, 1, 0))
    assert (acrobot.screen_shape, acrobot.places, acrobot.action_map) == ((6,), (0, 1, 2, 3, 4, 5), (0, 1, 2))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([], ["names no game"]),
        (["breakout", "CartPole-v1"], ["breakout is an Atari game, CartPole-v1 is not"]),
        (["CartPole-v1", "MinAtar/Breakout-v1"], ["CartPole-v1 has observations float32 [4]", "uint8 [4, 10, 10]"]),
        (["FrozenLake-v1", "FrozenLake8x8-v1"], ["FrozenLake-v1 has 16 states, FrozenLake8x8-v1 has 64 states"]),
        (["breakout"], ["names one game", "--data.env breakout"]),
        (["breakout", "tenis"], ["'tenis'", "nearest: 'tennis'"]),
        (["tennis", "ALE/Tennis-v5"], ["names tennis twice", "--data.curriculum.cycles"]),
        (["breakout", "skiing"], ["'skiing'", "knows 9 actions"]),
        (["CartPole-v1", "Pendulum-v1"], ["Pendulum-v1", "discrete"]),
    ],
)
def test_tasks_that_cannot_share_a_network_are_refused(tasks: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        task_settings(PLAIN, tasks)
    assert error.value.key == "data.tasks"
    assert all(word in str(error.value) for word in words), str(error.value)


def test_arguments_of_one_constructor_are_for_one_environment() -> None:
    with pytest.raises(ConfigError, match=r"data\.env_kwargs"):
        task_settings(EnvSettings("?", env_kwargs={"size": 3}), ["CartPole-v1", "Acrobot-v1"])
