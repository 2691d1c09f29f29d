"""Episodes are named by seed and actions, and restored from them."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_rl.envs.base import UNSEEDED, ActionHistory, EnvSettings, Step
from bayes_rl.envs.kinds import make_envs
from tests.helpers.playing import copied, ended, equal, everyone, script, until_reset
from tests.helpers.slow_cases import slow_but

INVADERS_CROP = (13, 197, 15, 135)


SETTINGS = [
    EnvSettings("breakout", sticky_actions=0.0),
    EnvSettings("breakout", sticky_actions=0.25),
    EnvSettings("space_invaders", sticky_actions=0.25, crop=INVADERS_CROP),
    EnvSettings("breakout", sticky_actions=0.25, auto_fire=True),
    EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.25),
    EnvSettings("MinAtar/SpaceInvaders-v1", frame_skip=2, sticky_actions=0.25),
    EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0),
    EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.5),
    EnvSettings("bayes_rl/DeepSea-v0", frame_skip=1, sticky_actions=0.25),
    EnvSettings("FrozenLake-v1", frame_skip=1, sticky_actions=0.25),
]


def short(settings: EnvSettings) -> str:
    return f"{settings.env} sticky {settings.sticky_actions}{' fire' if settings.auto_fire else ''}"


QUICK = [name for name in map(short, SETTINGS) if name != "breakout sticky 0.0"]
each_kind = pytest.mark.parametrize("settings", slow_but(SETTINGS, *QUICK, id=short))


@each_kind
def test_an_episode_is_a_function_of_its_seed_and_actions(settings: EnvSettings) -> None:
    """Also in another object, beside other games, at another index and after other episodes."""
    a, b = make_envs(settings, 2), make_envs(settings, 3)
    actions = script(a, 25)
    until_reset(b, [5, 6, 7], 30)
    first_a = a.reset(np.array([11, 22]), everyone(a))[0].copy()
    first_b = b.reset(np.array([22, 33, 11]), everyone(b))[0].copy()
    assert np.array_equal(first_a[0], first_b[2])
    assert np.array_equal(first_a[1], first_b[0])
    alive = np.ones(2, bool)
    for x, y in actions:
        step_a, step_b = copied(a.step(np.array([x, y]))), copied(b.step(np.array([y, 0, x])))
        assert not alive[0] or equal(step_a, step_b, 0, 2)
        assert not alive[1] or equal(step_a, step_b, 1, 0)
        alive &= ~ended(step_a)
        over = ended(step_b)
        if over.any():
            b.reset(np.full(over.sum(), 9), over)
        if ended(step_a).any():
            a.reset(np.full(ended(step_a).sum(), 9), ended(step_a))
    a.close()
    b.close()


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.sticky_actions or s.env == "CartPole-v1"], ids=short)
def test_another_seed_is_another_episode(settings: EnvSettings) -> None:
    envs = make_envs(settings, 3)
    envs.reset(np.array([0, 1, 2]), everyone(envs))
    for actions in np.repeat(script(envs, 200)[:, :1], 3, 1):
        step = envs.step(actions)
        differ = not np.array_equal(step.screens[0], step.screens[1]) or ended(step).any()
        if differ:
            break
    assert differ
    envs.close()


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (EnvSettings("space_invaders", sticky_actions=0.25, crop=INVADERS_CROP), 20),
        (EnvSettings("MinAtar/SpaceInvaders-v1", frame_skip=2, sticky_actions=0.25), 40),
        (EnvSettings("breakout", sticky_actions=0.25, auto_fire=True, max_episode_frames=900), 260),
        (EnvSettings("CartPole-v1", frame_skip=1), 103),
        (EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0), 44),
        (EnvSettings("MinAtar/Breakout-v1", frame_skip=1), 103),
        (EnvSettings("FrozenLake-v1", frame_skip=1), 103),
    ],
    ids=lambda x: short(x) if isinstance(x, EnvSettings) else str(x),
)
def test_restore_rebuilds_exactly(settings: EnvSettings, steps: int) -> None:
    """Episodes of unequal age: the rebuilt screens, and all that follows, are those of the original."""
    original = make_envs(settings, 3)
    seeds = [11, 12, 13]
    histories, record = until_reset(original, seeds, steps)
    newest = record[-1].screens.copy()
    young = np.array([False, len(histories[1]) > 5, False])
    if young.any():  # a few steps old
        seeds[1] = 77
        newest[1] = original.reset(np.array([77]), young)[0][1]
        histories[1] = []
    for actions in script(original, 3, 9):
        played = original.send(actions)
        step = copied(original.recv())
        for e in range(3):
            histories[e].append(int(played[e]))
        newest = step.screens.copy()
        if ended(step).any():
            over = ended(step)
            for e in np.flatnonzero(over):
                seeds[e], histories[e] = 500 + e, []
            newest[over] = original.reset(np.array(seeds)[over], over)[0][over]
    newborn = np.array([False, False, True])
    seeds[2], histories[2] = 99, []
    newest[2] = original.reset(np.array([99]), newborn)[0][2]
    assert len({len(h) for h in histories}) > 1

    rebuilt = make_envs(settings, 3)
    until_reset(rebuilt, [1, 2, 3], 5)  # whatever happened before does not matter
    screens = rebuilt.restore(np.array(seeds), [ActionHistory(h) for h in histories])
    assert np.array_equal(screens, newest)
    for actions in script(original, 40, 5):
        assert np.array_equal(original.send(actions), rebuilt.send(actions))
        a, b = copied(original.recv()), copied(rebuilt.recv())
        assert equal(a, b)
        if ended(a).any():
            again = np.full(ended(a).sum(), 123)
            assert np.array_equal(
                original.reset(again, ended(a))[0][ended(a)], rebuilt.reset(again, ended(b))[0][ended(b)]
            )
    original.close()
    rebuilt.close()


@pytest.mark.parametrize("settings", [EnvSettings("breakout"), EnvSettings("CartPole-v1", frame_skip=1)], ids=short)
def test_restore_of_new_episodes_is_a_reset(settings: EnvSettings) -> None:
    a, b = make_envs(settings, 2), make_envs(settings, 2)
    screens = a.reset(np.array([4, 5]), everyone(a))[0].copy()
    assert np.array_equal(b.restore(np.array([4, 5]), [ActionHistory(), ActionHistory()]), screens)
    a.close()
    b.close()


def test_results_are_not_overwritten_by_the_next_step() -> None:
    """A caller may keep `terminated`, `truncated` and `lives` of a step while it takes the next one."""
    for settings in (EnvSettings("CartPole-v1", frame_skip=1), EnvSettings("breakout", max_episode_frames=40)):
        envs = make_envs(settings, 2)
        envs.reset(np.array([0, 1]), everyone(envs))
        for actions in script(envs, 200):
            step = envs.step(actions)
            kept = Step(step.screens, *(x.copy() for x in step[1:]))
            over = ended(step)
            if over.any():
                envs.reset(np.full(over.sum(), 5), over)
                envs.step(actions)
                assert all(np.array_equal(x, y) for x, y in zip(step[1:], kept[1:], strict=True))
                break
        envs.close()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [EnvSettings("breakout"), EnvSettings("CartPole-v1", frame_skip=1)], ids=short)
def test_restore_rebuilds_games_that_began_without_a_seed_of_their_own(settings: EnvSettings) -> None:
    """One seeded reset, then several games whose chance goes on from there: seed and history still name the state."""
    original = make_envs(settings, 2)
    seeds = np.array([11, 12])
    newest = original.reset(seeds, everyone(original))[0].copy()
    histories = [ActionHistory(), ActionHistory()]
    for actions in script(original, 700, 3):
        played = original.send(actions)
        step = copied(original.recv())
        newest = step.screens.copy()
        over = ended(step)
        for e in range(2):
            histories[e].actions.append(int(played[e]))
            if over[e]:
                histories[e].resets.append(len(histories[e].actions))
        if over.any():
            newest[over] = original.reset(np.full(over.sum(), UNSEEDED), over)[0][over]
    assert all(len(h.resets) >= 2 for h in histories)

    rebuilt = make_envs(settings, 2)
    assert np.array_equal(rebuilt.restore(seeds, histories), newest)
    for actions in script(original, 100, 5):
        original.send(actions), rebuilt.send(actions)
        a, b = copied(original.recv()), copied(rebuilt.recv())
        assert equal(a, b)
        if ended(a).any():
            again = np.full(ended(a).sum(), UNSEEDED)
            original.reset(again, ended(a)), rebuilt.reset(again, ended(a))
    original.close()
    rebuilt.close()
