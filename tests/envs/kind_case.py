"""Tests that every kind of environment passes: subclass `KindCase` in the test file of the kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bayes_rl.envs.base import UNSEEDED, ActionHistory, EnvKind, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.kinds import action_names, check_env, find_kind, make_envs
from bayes_rl.errors import ConfigError

ENVS, STEPS = 3, 40


def play(envs: VectorEnvs, seeds: list[int], actions: NDArray[np.int64], histories: list[ActionHistory]) -> list[Step]:
    """Play `actions` `[T, E]`, reset games that are over without a seed, and write both to `histories`."""
    envs.reset(np.array(seeds), np.ones(len(seeds), bool))
    steps: list[Step] = []
    over = np.zeros(len(seeds), bool)
    for row in actions:
        if over.any():
            envs.reset(np.full(over.sum(), UNSEEDED), over)
            for game in np.flatnonzero(over):
                histories[game].resets.append(len(histories[game].actions))
        for history, action in zip(histories, envs.send(row), strict=True):
            history.actions.append(int(action))
        steps.append(Step(*(part.copy() for part in envs.recv())))
        over = steps[-1].terminated | steps[-1].truncated
    return steps


class KindCase:
    """Tests of one kind.

    Attributes:
        kind: class of the kind.
        settings: of one of its games, with all randomness that it has.
        joined: ids of two games that can share a network, or () if no two can.
        refused: changes of the settings, each of which the kind refuses, and the option that the message names.
    """

    kind: type[EnvKind]
    settings: EnvSettings
    joined: tuple[str, ...] = ()
    refused: tuple[tuple[dict[str, Any], str], ...] = ()

    @pytest.fixture
    def envs(self) -> Iterator[VectorEnvs]:
        envs = make_envs(self.settings, ENVS)
        yield envs
        envs.close()

    @pytest.fixture
    def actions(self, envs: VectorEnvs) -> NDArray[np.int64]:
        return np.random.default_rng(3).integers(0, envs.num_actions, (STEPS, ENVS))

    def test_the_list_finds_the_kind(self) -> None:
        assert type(find_kind(self.settings.env)) is self.kind
        check_env(self.settings)

    def test_observations_and_actions_are_those_that_are_declared(self, envs: VectorEnvs) -> None:
        screens, lives = envs.reset(np.arange(ENVS), np.ones(ENVS, bool))
        assert screens.shape == (ENVS, *envs.screen_shape)
        assert screens.dtype == envs.screen_dtype
        assert lives.shape == (ENVS,)
        for action in range(envs.num_actions):
            step = envs.step(np.full(ENVS, action))
            assert step.screens.shape == (ENVS, *envs.screen_shape)
            assert step.screens.dtype == envs.screen_dtype
            assert (step.rewards.dtype, step.rewards.shape) == (np.float32, (ENVS,))
            assert (step.terminated.dtype, step.truncated.dtype) == (bool, bool)
            if (step.terminated | step.truncated).any():
                envs.reset(np.arange(ENVS), np.ones(ENVS, bool))
        names = action_names(self.settings, envs.num_actions)
        assert len(set(names)) == envs.num_actions

    def test_seed_and_actions_name_a_game_whatever_is_played_beside_it(
        self, envs: VectorEnvs, actions: NDArray[np.int64]
    ) -> None:
        steps = play(envs, [5, 6, 7], actions, [ActionHistory() for _ in range(ENVS)])
        alone = make_envs(self.settings, 1)
        for game, seed in enumerate((5, 6, 7)):
            for ours, its in zip(play(alone, [seed], actions[:, [game]], [ActionHistory()]), steps, strict=True):
                assert all(np.array_equal(a[0], b[game]) for a, b in zip(ours, its, strict=True))
        alone.close()

    def test_a_reset_leaves_the_games_outside_the_mask_alone(
        self, envs: VectorEnvs, actions: NDArray[np.int64]
    ) -> None:
        steps = play(envs, [5, 6, 7], actions, [ActionHistory() for _ in range(ENVS)])
        length = next((t for t, step in enumerate(steps) if (step.terminated | step.truncated)[1:].any()), STEPS)
        envs.reset(np.array([5, 6, 7]), np.ones(ENVS, bool))
        over = np.zeros(ENVS, bool)
        for t in range(length):
            if t % 4 == 2 or over[0]:
                envs.reset(np.array([100 + t]), np.array([True, False, False]))
            step = envs.step(actions[t])
            over = step.terminated | step.truncated
            assert all(np.array_equal(a[1:], b[1:]) for a, b in zip(step, steps[t], strict=True))

    @pytest.mark.parametrize("length", [0, 7, STEPS - 1])
    def test_seed_and_history_restore_a_game(self, envs: VectorEnvs, actions: NDArray[np.int64], length: int) -> None:
        """Games of different lengths, with unseeded resets on the way."""
        seeds, histories = [5, 6, 7], [ActionHistory() for _ in range(ENVS)]
        steps = play(envs, seeds, actions, histories)
        cuts = [length, max(0, length - 3), length // 2]
        shorter = [
            ActionHistory(h.actions[:cut], [r for r in h.resets if r < cut])
            for h, cut in zip(histories, cuts, strict=True)
        ]
        other = make_envs(self.settings, ENVS)
        screens = other.restore(np.array(seeds), shorter).copy()
        for game, cut in enumerate(cuts):
            if cut:
                assert np.array_equal(screens[game], steps[cut - 1].screens[game])
        ended = [bool(cut and (steps[cut - 1].terminated | steps[cut - 1].truncated)[g]) for g, cut in enumerate(cuts)]
        if any(ended):
            other.reset(np.full(sum(ended), UNSEEDED), np.array(ended))
        following = other.step(np.array([histories[game].actions[cut] for game, cut in enumerate(cuts)]))
        for game, cut in enumerate(cuts):
            assert all(np.array_equal(a[game], b[game]) for a, b in zip(following, steps[cut], strict=True))
        other.close()

    def test_a_game_is_drawn_from_its_seed_and_actions(self) -> None:
        kind, actions = find_kind(self.settings.env), [0, 1, 1, 0]
        images, again = ([image.copy() for image in kind.render(self.settings, 5, actions)] for _ in range(2))
        assert len(images) == len(actions) + 1
        assert all(image.dtype == np.uint8 and image.shape == images[0].shape for image in images)
        assert images[0].shape[2] == 3
        assert images[0].shape[0] >= 160
        assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
        assert any(not np.array_equal(images[0], image) for image in images[1:])

    def test_settings_that_the_kind_does_not_have_are_refused(self) -> None:
        for change, key in self.refused:
            with pytest.raises(ConfigError) as error:
                check_env(EnvSettings(**{**vars(self.settings), **change}))
            assert error.value.key == key

    def test_games_that_share_a_network_have_the_same_spaces(self) -> None:
        kind, settings = find_kind(self.settings.env), vars(self.settings)
        if not self.joined:
            with pytest.raises(ConfigError, match="cannot share a network"):
                kind.share_spaces([self.settings, self.settings])
            return
        spaces = set()
        for game in kind.share_spaces([EnvSettings(**{**settings, "env": env}) for env in self.joined]):
            envs = make_envs(game, 1)
            spaces.add((envs.num_actions, envs.screen_shape, envs.screen_dtype, envs.num_categories))
            envs.close()
        assert len(spaces) == 1
