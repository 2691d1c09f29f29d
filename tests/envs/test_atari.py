"""Atari games: what the agent sees is what the emulator drew, and episodes begin and end where they should."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from bayes_rl.envs.atari import FIRE, AtariEnvs, AtariKind, atari_games, old_id
from bayes_rl.envs.base import EnvSettings, episode_seed
from bayes_rl.envs.gymnasium_envs import GymnasiumKind
from bayes_rl.envs.kinds import KINDS, find_kind, game_name, make_envs, resolve
from bayes_rl.errors import ConfigError
from tests.envs.kind_case import KindCase
from tests.helpers.playing import copied, ended, equal, everyone, run, script

INVADERS_CROP = (13, 197, 15, 135)
NATIVE = (100, 184, 20, 104)  # 84 x 84 pixels of the screen: kept without any resize


class TestAtariKind(KindCase):
    """Atari games."""

    kind = AtariKind
    settings = EnvSettings("breakout", sticky_actions=0.25, max_episode_frames=100)
    joined = ("breakout", "tennis")
    refused = (({"env_kwargs": {"x": 1}}, "data.env_kwargs"), ({"crop": (0, 300, 0, 84)}, "data.rules.crop"))


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
    assert 0 <= episode_seed(2**40, 3, 10**6) <= top
    envs.close()


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


# ------------------------------------------------------------------ ids of earlier versions
@pytest.mark.parametrize(
    ("old", "rom", "frame_skip", "sticky_actions"),
    [
        ("BreakoutNoFrameskip-v4", "breakout", 2, 0.0),  # 2 frames as typed: the id skips none
        ("BreakoutNoFrameskip-v0", "breakout", 2, 0.25),
        ("BreakoutDeterministic-v4", "breakout", 4, 0.0),
        ("SpaceInvadersDeterministic-v0", "space_invaders", 3, 0.25),
        ("UpNDownNoFrameskip-v4", "up_n_down", 2, 0.0),
    ],
)
def test_an_old_id_is_played_by_its_own_rules(old: str, rom: str, frame_skip: int, sticky_actions: float) -> None:
    typed = 4 if "Deterministic" in old else 2
    settings = resolve(EnvSettings(old, frame_skip=typed))
    assert (settings.env, settings.frame_skip, settings.sticky_actions) == (rom, frame_skip, sticky_actions)
    assert settings.remark == f"{old} is {rom} with frame_skip {frame_skip}, sticky_actions {sticky_actions:g}"
    assert game_name(old) == rom
    envs = make_envs(EnvSettings(old, frame_skip=typed), 1)
    assert isinstance(envs, AtariEnvs)
    envs.reset(np.array([0]), everyone(envs))
    result = envs._envs.step(np.array([0]))
    assert result[4]["episode_frame_number"].tolist() == [frame_skip]
    envs.close()


@pytest.mark.parametrize(
    ("old", "text"),
    [
        ("Breakout-v4", "skips 2 to 5 frames at random, which is not played here; nearest: 'ALE/Breakout-v5'"),
        ("SpaceInvaders-v0", "skips 2 to 5 frames at random.* nearest: 'ALE/SpaceInvaders-v5'"),
        ("Breakout-ramDeterministic-v4", "observes memory, not the screen; nearest: 'ALE/Breakout-v5'"),
        ("Breakout-ram-v0", "observes memory"),
        ("ALE/Breakout-ram-v5", "observes memory"),
    ],
)
def test_an_old_id_that_the_emulator_here_does_not_play_names_the_nearest(old: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--data.env: '{old}' {text}"):
        make_envs(EnvSettings(old), 1)


def test_an_option_that_contradicts_an_old_id_is_refused() -> None:
    for change in ({"sticky_actions": 0.5}, {"frame_skip": 8}):
        with pytest.raises(ConfigError, match=f"--data.rules.{next(iter(change))}: .* contradicts Breakout"):
            resolve(EnvSettings("BreakoutDeterministic-v4", **change))


def test_an_id_that_was_never_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'Breakout-v5' is no known game .* nearest: 'breakout'"):
        make_envs(EnvSettings("Breakout-v5"), 1)
    assert not any(old_id(env) for kind in KINDS for env in kind.ids()), "an old id is no nearest id"


def test_a_user_s_environment_may_have_the_name_of_a_game() -> None:
    gym.register("TennisDeterministic-v4", "gymnasium.envs.classic_control.cartpole:CartPoleEnv")
    try:
        assert not isinstance(find_kind("TennisDeterministic-v4"), AtariKind)
    finally:
        gym.registry.pop("TennisDeterministic-v4")


@pytest.mark.parametrize("env", ["breakout", "ALE/Breakout-v5", "ALE/Own-v0", "MinAtar/Own-v0", "MiniGrid-Own-v0"])
@pytest.mark.parametrize("entry", ["gymnasium.envs.classic_control.cartpole:CartPoleEnv", CartPoleEnv])
def test_a_name_that_a_user_registers_is_the_user_s_environment(env: str, entry: Any) -> None:
    with mock.patch.dict(gym.registry):
        gym.registry.pop(env, None)
        gym.register(env, entry)
        assert type(find_kind(env)) is GymnasiumKind
        assert isinstance(find_kind("ALE/Pong-v5"), AtariKind)


def test_every_id_of_the_emulator_is_played_or_refused_by_this_kind() -> None:
    ids = [i for i, spec in gym.registry.items() if "ale_py" in str(spec.entry_point)]
    assert len(ids) > 300
    for env in ids:
        kind = find_kind(env)
        assert isinstance(kind, AtariKind), env
        skips_at_random = isinstance(gym.spec(env).kwargs["frameskip"], tuple)
        with pytest.raises(ConfigError, match="skips 2 to 5") if skips_at_random else nullcontext():
            assert kind.with_own_rules(EnvSettings(env)).env in atari_games()


def test_colours_are_kept_on_request() -> None:
    """The bricks, at their own size, are those of the emulator's colour screen."""
    envs = make_envs(EnvSettings("breakout", sticky_actions=0.0, grey=False, crop=(40, 124, 20, 104)), 1)
    emulator = Emulator("breakout", 0)
    assert envs.screen_shape == (3, 84, 84)
    assert "3 colours kept" in envs.reading
    envs.reset(np.array([0]), everyone(envs))
    for action in script(envs, 5)[:, 0]:
        screen = envs.step(np.array([action])).screens[0].copy()
        emulator.frames(int(action))
    bricks = emulator.ale.getScreenRGB()[60:90, 20:104].transpose(2, 0, 1)
    np.testing.assert_array_equal(screen[:, 20:50], bricks)
    assert len(np.unique(bricks.reshape(3, -1).T, axis=0)) > 4
    envs.close()
