"""The environments: by name, by seed, without automatic resets; what the agent sees is what the emulator drew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from bayes_rl.envs.atari import FIRE, AtariEnvs
from bayes_rl.envs.base import UNSEEDED, ActionHistory, EnvSettings, Step, VectorEnvs, episode_seed
from bayes_rl.envs.gymnasium_envs import GymnasiumEnvs
from bayes_rl.envs.kinds import check_env, game_name, make_envs
from bayes_rl.errors import ConfigError

INVADERS_CROP = (13, 197, 15, 135)
NATIVE = (100, 184, 20, 104)  # 84 x 84 pixels of the screen: kept without any resize


def everyone(envs: VectorEnvs) -> NDArray[np.bool_]:
    return np.ones(envs.num_envs, bool)


def script(envs: VectorEnvs, steps: int, seed: int = 0) -> NDArray[np.int64]:
    """Random actions `[steps, E]`."""
    return np.random.default_rng(seed).integers(0, envs.num_actions, (steps, envs.num_envs))


def copied(step: Step) -> Step:
    return Step(*(x.copy() for x in step))


def run(envs: VectorEnvs, seeds: list[int], actions: NDArray[np.int64]) -> tuple[NDArray[Any], list[Step]]:
    """The first screens and every step of new episodes of all environments, ended ones included."""
    first = envs.reset(np.array(seeds), everyone(envs))[0].copy()
    return first, [copied(envs.step(a)) for a in actions]


def equal(a: Step, b: Step, env: int | slice = slice(None), other: int | slice | None = None) -> bool:
    other = env if other is None else other
    return all(np.array_equal(x[env], y[other]) for x, y in zip(a, b, strict=True))


def ended(step: Step) -> NDArray[np.bool_]:
    return step.terminated | step.truncated


class Flag(gym.Env[NDArray[np.uint8], int]):
    """A picture of 60 x 40 pixels: black, with a white upper third and a red right quarter; ends after 3 steps."""

    observation_space = gym.spaces.Box(0, 255, (60, 40, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def _picture(self) -> NDArray[np.uint8]:
        picture = np.zeros((60, 40, 3), np.uint8)
        picture[:20] = 255
        picture[20:, 30:, 0] = 255
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._picture(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._picture(), 1.0, self.time == 3, False, {}


class Endless(gym.Env[NDArray[np.float32], int]):
    """Observes the number of frames since the reset; never ends by itself; a reward of 1 each frame."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, False, False, {}


class Shifted(gym.Env[int, int]):
    """States 5, ..., 8 and actions 2, 3, 4, counted from elsewhere than 0: an action names the next state."""

    observation_space = gym.spaces.Discrete(4, start=5)
    action_space = gym.spaces.Discrete(3, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        return 5, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action in (2, 3, 4)
        return int(action) + 4, float(action), False, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    gym.register("BayesRLTests/Flag-v0", lambda **_: Flag())
    gym.register("BayesRLTests/Endless-v0", lambda **_: Endless())
    gym.register("BayesRLTests/Shifted-v0", lambda **_: Shifted())
    yield
    gym.registry.pop("BayesRLTests/Flag-v0")
    gym.registry.pop("BayesRLTests/Endless-v0")
    gym.registry.pop("BayesRLTests/Shifted-v0")


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["breakout", "ALE/Breakout-v5"])
def test_short_names_and_ids_are_the_same_game(name: str) -> None:
    assert game_name(name) == "breakout"
    envs = make_envs(EnvSettings(name), 1)
    assert isinstance(envs, AtariEnvs)
    assert (envs.num_actions, envs.screen_shape, envs.screen_dtype) == (4, (1, 84, 84), np.uint8)
    envs.close()


def test_other_ids_keep_their_names() -> None:
    assert game_name("CartPole-v1") == "CartPole-v1"
    envs = make_envs(EnvSettings("CartPole-v1"), 1)
    assert isinstance(envs, GymnasiumEnvs)
    envs.close()


@pytest.mark.parametrize(
    ("env", "nearest"),
    [
        ("breakot", "breakout"),
        ("Breakout", "breakout"),
        ("space_invader", "space_invaders"),
        ("CartPole-v9", "CartPole-v"),
        ("MinAtar/Brekout-v1", "MinAtar/Breakout-v"),
    ],
)
def test_an_unknown_id_names_the_nearest(env: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_envs(EnvSettings(env), 1)
    text = str(error.value)
    assert text.startswith(f"--data.env: {env!r}")
    assert f"nearest: '{nearest}" in text
    assert "\n" not in text


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data.env: 'Pendulum-v1' has actions Box.*only discrete"):
        make_envs(EnvSettings("Pendulum-v1"), 1)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"frame_skip": 0}, "frame_skip"),
        ({"sticky_actions": 1.0}, "sticky_actions"),
        ({"sticky_actions": -0.1}, "sticky_actions"),
        ({"max_episode_frames": 0}, "max_episode_frames"),
        ({"crop": (13, 13, 0, 160)}, "crop"),
        ({"crop": (0, 211, 0, 160)}, "crop"),
        ({"crop": (0, 210, 20, 10)}, "crop"),
        ({"env": "CartPole-v1", "crop": (0, 84, 0, 84)}, "crop"),
        ({"env_kwargs": {"mode": 3}}, "env_kwargs"),
        ({"env": "ALE/Breakout-v5", "env_kwargs": {"difficulty": 1}}, "env_kwargs"),
    ],
)
def test_an_impossible_setting_is_named(change: dict[str, Any], key: str) -> None:
    arguments: dict[str, Any] = {"env": "breakout"} | change
    with pytest.raises(ConfigError, match=f"--data.{key}: "):
        check_env(EnvSettings(**arguments))


@pytest.mark.parametrize(
    ("env", "env_kwargs", "word"),
    [
        ("CartPole-v1", {"gravity": 3.7}, "gravity"),  # unknown
        ("FrozenLake-v1", {"map_name": "9x9"}, "9x9"),  # unknown value
        ("MinAtar/Breakout-v1", {"sticky_action_prob": 0.5}, "sticky_action_prob"),  # an option of its own
    ],
)
def test_a_refused_keyword_is_named_in_one_line(env: str, env_kwargs: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_envs(EnvSettings(env, env_kwargs=env_kwargs), 1)
    text = str(error.value)
    assert text.startswith(f"--data.env_kwargs: {env_kwargs!r} is refused by {env}: ")
    assert text.count(word) == 2
    assert "\n" not in text


def test_keywords_reach_the_environment() -> None:
    """A lake without ice: the way that leads to the goal does so every time."""
    way = [2, 2, 1, 1, 1, 2]
    envs = make_envs(EnvSettings("FrozenLake-v1", 1, 0.0, env_kwargs={"is_slippery": False}), 2)
    _, steps = run(envs, [0, 1], np.array([way, way]).T)
    assert steps[-1].rewards.tolist() == [1.0, 1.0]
    assert steps[-1].screens.tolist() == [[15], [15]]
    envs.close()


def test_settings_with_keywords_are_equal_and_hashable_by_value() -> None:
    a, b, c = (EnvSettings("FrozenLake-v1", env_kwargs={"is_slippery": x}) for x in (True, True, False))
    assert a == b != c
    assert len({a, b, c}) == 2


def test_no_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--data.num_envs: 0"):
        make_envs(EnvSettings("breakout"), 0)


# ------------------------------------------------------------------------------------------ seeds and actions

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


each_kind = pytest.mark.parametrize("settings", SETTINGS, ids=short)


def until_reset(envs: VectorEnvs, seeds: list[int], steps: int, salt: int = 0) -> tuple[list[list[int]], list[Step]]:
    """Play `steps` steps at random, resetting each finished environment; histories of the running episodes."""
    envs.reset(np.array(seeds), everyone(envs))
    now = list(seeds)
    histories: list[list[int]] = [[] for _ in seeds]
    record = []
    for actions in script(envs, steps, salt):
        played = envs.send(actions)
        step = copied(envs.recv())
        record.append(step)
        for e in range(envs.num_envs):
            histories[e].append(int(played[e]))
        over = ended(step)
        if over.any():
            for e in np.flatnonzero(over):
                now[e] += 1000
                histories[e] = []
            envs.reset(np.array(now)[over], over)
    seeds[:] = now
    return histories, record


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


def test_seed_0_is_respected() -> None:
    """ale-py 0.11.0 took seed 0 for no seed: the same actions gave different games."""
    settings = EnvSettings("breakout", sticky_actions=0.25)
    envs = make_envs(settings, 3)
    actions = np.repeat(script(envs, 60)[:, :1], 3, 1)
    _, steps = run(envs, [0] * 3, actions)
    assert all(np.array_equal(s.screens[0], s.screens[e]) for s in steps for e in range(3))
    _, others = run(envs, [1] * 3, actions)
    assert any(not np.array_equal(s.screens[0], o.screens[0]) for s, o in zip(steps, others, strict=True))
    envs.close()


def test_without_stickiness_the_action_is_always_played_and_with_it_sometimes_not() -> None:
    for sticky in (0.0, 0.5):
        envs = make_envs(EnvSettings("breakout", sticky_actions=sticky), 2)
        actions = np.repeat(script(envs, 60)[:, :1], 2, 1)
        _, steps = run(envs, [3, 4], actions)
        assert all(np.array_equal(s.screens[0], s.screens[1]) for s in steps) == (sticky == 0)
        envs.close()


def test_episode_seeds_fit_the_emulator() -> None:
    """Seeds are 31-bit: the largest ones are neither negative nor truncated on the way to C++."""
    envs = make_envs(EnvSettings("breakout"), 3)
    actions = np.repeat(script(envs, 60)[:, :1], 3, 1)
    top = 2**31 - 1
    _, steps = run(envs, [top, top, top - 1], actions)
    assert all(np.array_equal(s.screens[0], s.screens[1]) for s in steps)
    assert any(not np.array_equal(s.screens[0], s.screens[2]) for s in steps)
    assert 0 <= episode_seed(2**40, 7, 3, 10**6) <= top
    envs.close()


# --------------------------------------------------------------------------------------------- explicit reset


def test_resetting_a_finished_atari_game_leaves_the_others_untouched() -> None:
    """Every reset happens where a game ended; beside it the other games go on as if alone."""
    settings = EnvSettings("breakout", max_episode_frames=400)
    together = make_envs(settings, 3)
    together.reset(np.array([1, 2, 3]), everyone(together))
    seeds = [1, 2, 3]
    alone = [make_envs(settings, 1) for _ in range(3)]
    for e in range(3):
        alone[e].reset(np.array([seeds[e]]), everyone(alone[e]))
    resets = 0
    for actions in script(together, 130):
        step = copied(together.step(actions))
        for e in range(3):
            assert equal(step, alone[e].step(actions[e : e + 1]), e, 0)
        over = ended(step)
        if over.any():
            resets += 1
            new = np.array([seeds[e] + 100 for e in np.flatnonzero(over)])
            screens, lives = together.reset(new, over)
            assert np.array_equal(screens[~over], step.screens[~over])
            assert np.array_equal(lives[~over], step.lives[~over])
            for e, seed in zip(np.flatnonzero(over), new, strict=True):
                seeds[e] = int(seed)
                fresh, _ = alone[e].reset(np.array([seed]), everyone(alone[e]))
                assert np.array_equal(screens[e], fresh[0])
    assert resets >= 1
    together.close()
    for envs in alone:
        envs.close()


def test_a_running_atari_game_may_be_reset_too() -> None:
    """Games cut short (idle ones, those restored late) start afresh, whatever state they were in."""
    envs, other = make_envs(EnvSettings("breakout"), 2), make_envs(EnvSettings("breakout"), 1)
    actions = script(envs, 80)
    run(envs, [1, 2], actions[:40])
    envs.reset(np.array([7]), np.array([False, True]))
    other.reset(np.array([7]), everyone(other))
    for a in actions[40:]:
        assert equal(copied(envs.step(a)), other.step(a[1:]), 1, 0)
    envs.close()
    other.close()


@pytest.mark.parametrize("cause", ["truncated", "terminated"])
def test_no_autoreset_step_is_inserted(monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    """The step after the explicit reset is a real one: it advances the emulator by `frame_skip` frames."""
    limit = 40 if cause == "truncated" else 108_000
    settings = EnvSettings("breakout", max_episode_frames=limit)
    envs, fresh = AtariEnvs(settings, 2), AtariEnvs(settings, 1)
    frames: list[NDArray[np.int64]] = []
    receive = envs._envs.recv

    def recv() -> Any:
        result = receive()
        frames.append(result[4]["episode_frame_number"].copy())
        return result

    monkeypatch.setattr(envs._envs, "recv", recv)
    envs.reset(np.array([1, 2]), everyone(envs))
    for actions in script(envs, 400):
        step = copied(envs.step(actions))
        if ended(step).any():
            break
    over = ended(step)
    assert (step.truncated if cause == "truncated" else step.terminated).any()
    index = int(np.flatnonzero(over)[0])
    seeds = np.array([50 + e for e in np.flatnonzero(over)])
    screens = envs.reset(seeds, over)[0].copy()
    first = fresh.reset(np.array([50 + index]), everyone(fresh))[0]
    assert np.array_equal(screens[index], first[0])
    frames.clear()
    for t, actions in enumerate(script(envs, 9, 1)):
        assert equal(copied(envs.step(actions)), fresh.step(actions[index : index + 1]), index, 0)
        assert frames[-1][index] == 4 * (t + 1)
    envs.close()
    fresh.close()


@pytest.mark.parametrize("env", ["CartPole-v1", "MinAtar/Breakout-v1"])
def test_resetting_a_finished_gymnasium_environment_leaves_the_others_untouched(env: str) -> None:
    settings = EnvSettings(env, frame_skip=1)
    together = make_envs(settings, 3)
    alone = [make_envs(settings, 1) for _ in range(3)]
    together.reset(np.array([1, 2, 3]), everyone(together))
    for e in range(3):
        alone[e].reset(np.array([e + 1]), everyone(alone[e]))
    resets = 0
    for actions in script(together, 120):
        step = copied(together.step(actions))
        for e in range(3):
            assert equal(step, copied(alone[e].step(actions[e : e + 1])), e, 0)
        over = ended(step)
        if over.any():
            resets += 1
            new = np.flatnonzero(over) + 100 * resets
            screens, _ = together.reset(new, over)
            assert np.array_equal(screens[~over], step.screens[~over])
            for e, seed in zip(np.flatnonzero(over), new, strict=True):
                assert np.array_equal(screens[e], alone[e].reset(np.array([seed]), everyone(alone[e]))[0][0])
    assert resets > 3
    for envs in (together, *alone):
        envs.close()


# --------------------------------------------------------------------------------------------------- restore


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


# --------------------------------------------------------------------------------------------- what is seen


class Emulator:
    """One game straight from the emulator, frame by frame, without stickiness: the oracle of what was drawn."""

    def __init__(self, game: str, seed: int) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(roms.get_rom_path(game))
        self.ale.reset_game()
        self.actions = self.ale.getMinimalActionSet()

    def frames(self, action: int, skip: int = 4) -> tuple[list[NDArray[np.uint8]], float]:
        """Grey screens `[210, 160]` after each frame, and the sum of rewards."""
        screens, reward = [], 0.0
        for _ in range(skip):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale().reshape(210, 160))
        return screens, reward


def test_seed_defect_10_a_screen_is_the_maximum_of_the_last_two_frames_alone() -> None:
    """Pixel for pixel, in a part of the screen kept at its own size: nothing older shines through."""
    settings = EnvSettings("space_invaders", sticky_actions=0.0, crop=NATIVE)
    envs, emulator = make_envs(settings, 1), Emulator("space_invaders", 5)
    envs.reset(np.array([5]), everyone(envs))
    top, bottom, left, right = NATIVE
    smeared = None
    differs = False
    for action in script(envs, 150)[:, 0]:
        frames, _ = emulator.frames(int(action))
        wanted = np.maximum(frames[-1], frames[-2])[top:bottom, left:right]
        assert np.array_equal(envs.step(np.array([action])).screens[0, 0], wanted)
        smeared = wanted if smeared is None else np.maximum(smeared, wanted)
        differs |= not np.array_equal(smeared, wanted)
    assert differs, "nothing moved: this shows nothing"
    envs.close()


def test_seed_defect_9_rows_are_rows_and_columns_are_columns() -> None:
    """The whole screen at 84 x 84 is the emulator's, averaged over areas: upright, and not mirrored."""
    envs, emulator = make_envs(EnvSettings("breakout", sticky_actions=0.0), 1), Emulator("breakout", 0)
    envs.reset(np.array([0]), everyone(envs))
    for action in script(envs, 20)[:, 0]:
        frames, _ = emulator.frames(int(action))
        screen = envs.step(np.array([action])).screens[0, 0].astype(np.float32)
    drawn = torch.from_numpy(np.maximum(frames[-1], frames[-2]).astype(np.float32))[None, None]
    wanted = torch.nn.functional.interpolate(drawn, (84, 84), mode="area")[0, 0].numpy()

    def error(candidate: NDArray[np.float32]) -> float:
        return float(np.abs(candidate - wanted).mean())

    for wrong in (screen.T, screen[::-1], screen[:, ::-1], screen.T[::-1]):
        assert error(screen) < 3 < error(wrong)
    assert screen.shape == (84, 84)
    envs.close()


def test_the_space_invaders_crop_is_rows_6_to_90_and_columns_10_to_94_of_112_by_96() -> None:
    cropped = make_envs(EnvSettings("space_invaders", crop=INVADERS_CROP), 1)
    whole = AtariVectorEnv(
        "space_invaders",
        1,
        repeat_action_probability=0.25,
        img_height=96,
        img_width=112,
        stack_num=1,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    assert cropped.screen_shape == (1, 84, 84)
    part = cropped.reset(np.array([3]), everyone(cropped))[0]
    full = whole.reset(seed=np.array([3]))[0]
    for action in script(cropped, 40):
        assert part.shape == (1, 1, 84, 84)
        assert np.array_equal(part, full[:, :, 6:90, 10:94])
        part, full = cropped.step(action).screens, whole.step(action)[0]
    cropped.close()
    whole.close()


def test_a_crop_at_the_edge_stays_inside() -> None:
    for crop in ((126, 210, 76, 160), (0, 84, 0, 84), (0, 209, 1, 160), (0, 210, 0, 160)):
        envs = make_envs(EnvSettings("breakout", crop=crop), 1)
        assert envs.reset(np.array([0]), everyone(envs))[0].shape == (1, 1, 84, 84) == (1, *envs.screen_shape)
        envs.close()


def test_colour_screens_are_the_emulator_s_own() -> None:
    settings = EnvSettings("breakout", sticky_actions=0.0, crop=NATIVE)
    envs, emulator = AtariEnvs(settings, 1, rgb=True), Emulator("breakout", 0)
    assert envs.screen_shape == (3, 210, 160)
    envs.reset(np.array([0]), everyone(envs))
    for action in script(envs, 5)[:, 0]:
        screen = envs.step(np.array([action])).screens[0].copy()
        emulator.frames(int(action))
    drawn = emulator.ale.getScreenRGB()
    assert drawn.shape == (210, 160, 3)
    still = np.s_[60:90]  # the bricks do not move: pooling two frames changes nothing there
    np.testing.assert_array_equal(screen.transpose(1, 2, 0)[still], drawn[still])
    envs.close()


# ----------------------------------------------------------------------------------------- rewards and lives


def test_rewards_are_raw_and_lives_are_counted() -> None:
    """Space Invaders without stickiness, against the emulator: rewards above 1, lives from 3 downwards."""
    envs, emulator = make_envs(EnvSettings("space_invaders", sticky_actions=0.0), 1), Emulator("space_invaders", 2)
    _, lives = envs.reset(np.array([2]), everyone(envs))
    assert lives.tolist() == [3]
    seen, lost = set(), 0
    for action in script(envs, 500)[:, 0]:
        step = copied(envs.step(np.array([action])))
        _, reward = emulator.frames(int(action))
        assert step.rewards.tolist() == [reward]
        assert step.rewards.dtype == np.float32
        assert step.lives.tolist() == [emulator.ale.lives()]
        assert step.lives.dtype == np.int64
        assert step.terminated[0] == emulator.ale.game_over(with_truncation=False)
        lost += step.lives[0] < lives[0]
        lives = step.lives
        seen.add(reward)
        if step.terminated[0]:
            break
    assert lost >= 2
    assert max(seen) > 1
    envs.close()


def test_games_are_truncated_after_their_frames() -> None:
    envs = make_envs(EnvSettings("breakout", max_episode_frames=48, sticky_actions=0.0), 1)
    _, steps = run(envs, [0], np.zeros((12, 1), np.int64))
    assert [bool(s.truncated[0]) for s in steps] == [False] * 11 + [True]
    assert not any(s.terminated[0] for s in steps)
    envs.close()


@pytest.mark.parametrize("frame_skip", [1, 4])
def test_every_environment_is_truncated_after_its_frames(frame_skip: int) -> None:
    """`max_episode_frames` says so without exception."""
    settings = EnvSettings("BayesRLTests/Endless-v0", frame_skip=frame_skip, sticky_actions=0, max_episode_frames=24)
    envs = make_envs(settings, 1)
    _, steps = run(envs, [0], np.zeros((24 // frame_skip, 1), np.int64))
    assert [bool(s.truncated[0]) for s in steps] == [False] * (24 // frame_skip - 1) + [True]
    envs.close()


def test_frame_skip_repeats_and_sums() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Endless-v0", frame_skip=5, sticky_actions=0), 2)
    _, steps = run(envs, [0, 1], np.zeros((3, 2), np.int64))
    assert [s.screens.tolist() for s in steps] == [[[5.0]] * 2, [[10.0]] * 2, [[15.0]] * 2]
    assert all(s.rewards.tolist() == [5.0, 5.0] and s.lives.tolist() == [0, 0] for s in steps)
    envs.close()


# ------------------------------------------------------------------------------------------------- auto_fire


def test_breakout_stands_still_without_fire_and_plays_itself_with_auto_fire() -> None:
    idle = make_envs(EnvSettings("breakout", sticky_actions=0.0), 1)
    _, steps = run(idle, [0], np.zeros((60, 1), np.int64))
    assert all(s.lives[0] == 5 for s in steps)
    idle.close()
    envs = make_envs(EnvSettings("breakout", sticky_actions=0.0, auto_fire=True), 2)
    _, lives = envs.reset(np.array([0, 1]), everyone(envs))
    lives = lives.copy()
    fire = np.zeros(2, bool)
    for t in range(400):
        played = envs.send(np.array([0, 2 + t % 2]))
        assert played[0] == (FIRE if fire[0] else 0)
        assert played[1] == (FIRE if fire[1] else 2 + t % 2)
        step = copied(envs.recv())
        fire = step.lives < lives
        lives = step.lives
        if step.terminated.any():
            break
    assert step.terminated[0]
    assert lives[0] == 0
    envs.reset(np.array([3, 4])[step.terminated], step.terminated)
    assert envs.send(np.zeros(2, np.int64))[0] == 0, "a new game has lost no life"
    envs.recv()
    envs.close()


def test_auto_fire_changes_nothing_in_a_game_without_fire() -> None:
    """Asterix: action 1 is UP."""
    envs = make_envs(EnvSettings("asterix", auto_fire=True), 2)
    envs.reset(np.array([0, 1]), everyone(envs))
    lives = np.array([3, 3])
    lost = False
    for actions in script(envs, 320):
        assert np.array_equal(envs.send(actions), actions)
        step = copied(envs.recv())
        lost |= bool((step.lives < lives).any())
        lives = step.lives
        if ended(step).any():
            break
    assert lost
    envs.close()


def test_full_action_space_has_all_18_actions() -> None:
    envs = make_envs(EnvSettings("breakout", full_action_space=True), 1)
    assert envs.num_actions == 18
    envs.reset(np.array([0]), everyone(envs))
    envs.step(np.array([17]))
    envs.close()


# --------------------------------------------------------------------------------------- other environments


def test_minatar_planes_come_channels_first() -> None:
    envs = make_envs(EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((4, 10, 10), np.uint8, 1.0, 3)
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    assert screens.shape == (2, 4, 10, 10)
    assert screens.dtype == np.uint8
    assert screens[0, 0].sum() == 1
    assert screens[0, 0, 9].any()
    assert screens[0, 3].sum() == 30
    assert screens[0, 3, 1:4].all()
    step = envs.step(np.array([0, 0]))
    assert step.screens.shape == (2, 4, 10, 10)
    assert step.lives.tolist() == [0, 0]
    envs.close()


def test_minatar_forgets_its_sticky_action_on_reset() -> None:
    """Whatever was pressed before the reset, (seed, actions) give the same game: 20 seeds at stickiness 0.5."""
    settings = EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.5)
    envs = make_envs(settings, 2)
    for seed in range(20):
        envs.reset(np.array([100 + seed, 200 + seed]), everyone(envs))
        for _ in range(5):
            envs.step(np.array([1, 2]))  # left, right
        envs.reset(np.array([seed, seed]), everyone(envs))
        for _ in range(4):
            step = envs.step(np.array([0, 0]))
            assert np.array_equal(step.screens[0], step.screens[1])
    envs.close()


def test_a_frame_limit_truncates_minatar() -> None:
    envs = make_envs(EnvSettings("MinAtar/Freeway-v1", frame_skip=2, sticky_actions=0.0, max_episode_frames=20), 1)
    _, steps = run(envs, [0], np.zeros((10, 1), np.int64))
    assert [bool(s.truncated[0]) for s in steps] == [False] * 9 + [True]
    envs.close()


def test_cartpole_is_a_float_vector() -> None:
    envs = make_envs(EnvSettings("CartPole-v1", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale, envs.num_actions) == ((4,), np.float32, 1.0, 2)
    single = gym.make("CartPole-v1")
    wanted, _ = single.reset(seed=6)
    screens, _ = envs.reset(np.array([5, 6]), everyone(envs))
    assert screens.dtype == np.float32
    for action in (0, 1, 1, 0, 1):
        np.testing.assert_array_equal(screens[1], wanted)
        wanted = single.step(action)[0]
        screens = envs.step(np.array([1 - action, action])).screens
    single.close()
    envs.close()


@pytest.mark.parametrize(("env", "states", "actions"), [("FrozenLake-v1", 16, 4), ("CliffWalking-v1", 48, 4)])
def test_numbered_states_stay_numbers(env: str, states: int, actions: int) -> None:
    envs = make_envs(EnvSettings(env, frame_skip=1, sticky_actions=0.0), 1)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale) == ((1,), np.int32, 1.0)
    assert (envs.num_categories, envs.num_actions) == (states, actions)
    single = gym.make(env)
    seen = set()
    for seed in range(10):
        wanted, _ = single.reset(seed=seed)
        screens, _ = envs.reset(np.array([seed]), everyone(envs))
        terminated = False
        for action in np.random.default_rng(seed).integers(0, actions, 20):
            assert screens.dtype == np.int32
            assert screens.tolist() == [[wanted]]
            seen.add(int(wanted))
            if terminated:
                break
            wanted, _, terminated, _, _ = single.step(action)
            screens = envs.step(np.array([action])).screens
    assert len(seen) > 6
    single.close()
    envs.close()


def test_states_and_actions_are_counted_from_0() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Shifted-v0", frame_skip=2, sticky_actions=0.25), 1)
    assert (envs.num_categories, envs.num_actions) == (4, 3)
    assert envs.reset(np.array([0]), everyone(envs))[0].tolist() == [[0]]
    envs.close()
    envs = make_envs(EnvSettings("BayesRLTests/Shifted-v0", frame_skip=1, sticky_actions=0.0), 1)
    _, steps = run(envs, [0], np.array([[0], [1], [2]]))
    assert [s.screens.tolist() for s in steps] == [[[1]], [[2]], [[3]]]
    assert [s.rewards.tolist() for s in steps] == [[2.0], [3.0], [4.0]]
    assert envs.send(np.array([1])).tolist() == [1], "what was played is counted from 0 too"
    envs.recv()
    envs.close()


def test_several_numbers_become_one_hot_vectors() -> None:
    """Blackjack: the sum in hand, the dealer's card, a usable ace."""
    envs = make_envs(EnvSettings("Blackjack-v1", frame_skip=1, sticky_actions=0.0), 1)
    assert (envs.screen_shape, envs.screen_dtype, envs.num_categories) == ((45,), np.float32, 0)
    screens, _ = envs.reset(np.array([0]), everyone(envs))
    single = gym.make("Blackjack-v1")
    hand, dealer, ace = single.reset(seed=0)[0]
    assert np.flatnonzero(screens[0]).tolist() == [hand, 32 + dealer, 43 + ace]
    assert screens[0].max() == 1
    single.close()
    envs.close()


def test_a_picture_becomes_grey_84_by_84_and_upright() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Flag-v0", frame_skip=1, sticky_actions=0.0), 2)
    assert (envs.screen_shape, envs.screen_dtype, envs.pixel_scale) == ((1, 84, 84), np.uint8, 255.0)
    screens, _ = envs.reset(np.array([0, 1]), everyone(envs))
    assert screens.shape == (2, 1, 84, 84)
    assert screens.dtype == np.uint8
    assert (screens[:, 0, :28] == 255).all()  # the upper third, white
    assert (screens[:, 0, 29:, :62] == 0).all()
    assert (screens[:, 0, 29:, 64:] == 85).all()  # the right quarter, red: a third of white
    envs.close()


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
