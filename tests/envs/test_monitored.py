"""Monitored environments: an error names the environment, the seeds and the number of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bayes_rl.envs.base import UNSEEDED, ActionHistory, EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.monitored import MonitoredEnvs
from bayes_rl.errors import ConfigError, RunError


def test_which_atari_game_failed_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_envs(EnvSettings("breakout"), 3)
    watched = MonitoredEnvs(envs)
    watched.reset(np.array([5, 6, 7]), np.ones(3, bool))
    watched.step(np.zeros(3, np.int64))
    watched.reset(np.array([8]), np.array([False, True, False]))
    watched.send(np.zeros(3, np.int64))

    def broken() -> None:
        raise RuntimeError("emulator")

    monkeypatch.setattr(envs, "recv", broken)
    with pytest.raises(RunError) as stop:
        watched.recv()
    words = "one of environments 0..2 of breakout (seeds 5, 8, 7; 2, 1, 2 actions since) raised RuntimeError: emulator"
    assert str(stop.value) == words
    watched.close()


def test_actions_are_counted_as_the_history_counts_them() -> None:
    """Beginning a new episode in place of a step is no action, and a reset without a seed goes on counting."""
    settings = EnvSettings("breakout", max_episode_frames=40, sticky_actions=0.0)
    watched = MonitoredEnvs(make_envs(settings, 2))
    watched.reset(np.array([5, 6]), np.ones(2, bool))
    ended = [watched.step(np.zeros(2, np.int64)).truncated.any() for _ in range(25)]
    assert watched._actions.tolist() == [25 - sum(ended[:-1])] * 2
    watched.reset(np.array([UNSEEDED]), np.array([True, False]))
    assert watched._actions[0] > 0
    watched.restore(np.array([3, 4]), [ActionHistory([0] * 4), ActionHistory([0] * 9)])
    assert watched._seeds.tolist() == [3, 4]
    assert watched._actions.tolist() == [4, 9]
    watched.close()


@pytest.mark.parametrize(
    "rewards", [[0, 0, 0], [3e38, 3e38, -3e38], [1, np.nan, 0], [0, np.inf, -np.inf], [0, 1, -np.inf]]
)
def test_a_reward_that_is_not_finite_is_found_wherever_it_is(
    rewards: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick test agrees with the obvious one, and large rewards whose sum is not finite are no failure."""
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 3))
    watched.reset(np.arange(3), np.ones(3, bool))
    watched.send(np.zeros(3, np.int64))
    step = watched.envs.recv()._replace(rewards=np.array(rewards, np.float32))
    monkeypatch.setattr(watched.envs, "recv", lambda: step)
    bad = np.flatnonzero(~np.isfinite(rewards))
    if not len(bad):
        assert watched.recv() is step
        return
    with pytest.raises(
        RunError, match=rf"^environment {bad[0]} of CartPole-v1 .* returned the reward {rewards[bad[0]]:g}$"
    ):
        watched.recv()


@pytest.mark.parametrize("bad", [0, 1])
def test_only_games_that_a_reset_begins_are_tested(bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 2))
    screens, lives = watched.reset(np.arange(2), np.ones(2, bool))
    screens = screens.copy()
    screens[bad] = np.nan
    monkeypatch.setattr(watched.envs, "reset", lambda *_: (screens, lives))
    again = np.array([2]), np.array([True, False])
    if bad:
        assert watched.reset(*again)[0] is screens
        return
    with pytest.raises(RunError, match=r"^environment 0 of CartPole-v1 .* an observation that is not finite$"):
        watched.reset(*again)


def test_an_action_counts_once_the_game_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 1))
    watched.reset(np.array([5]), np.ones(1, bool))
    watched.step(np.zeros(1, np.int64))

    def broken(*_: Any) -> None:
        raise RuntimeError("no entry")

    monkeypatch.setattr(watched.envs, "send", broken)
    with pytest.raises(RunError, match=r"\(seed 5, 1 actions since\) raised RuntimeError: no entry"):
        watched.send(np.zeros(1, np.int64))


def test_what_is_wrong_with_a_setting_stays_that(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = MonitoredEnvs(make_envs(EnvSettings("CartPole-v1", 1, 0.0), 1))
    error = ConfigError("data.env", "x", "is wrong")

    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(watched.envs, "send", broken)
    with pytest.raises(ConfigError):
        watched.send(np.zeros(1, np.int64))
