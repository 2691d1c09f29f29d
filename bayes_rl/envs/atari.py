"""Atari games on ale-py's C++ vector environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from bayes_rl.envs.base import BoolArray, EnvKind, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.gymnasium_envs import registered_outside
from bayes_rl.envs.observations import SIDE
from bayes_rl.errors import check

gym.register_envs(ale_py)


ATARI_ROWS, ATARI_COLUMNS = 210, 160  # pixels of the emulator's screen
ATARI_ACTIONS = 18  # of the full set
FIRE = 1


class AtariEnvs(VectorEnvs):
    """Atari games on ale-py's C++ threads: skip, max-pool, grey (or colours), resize to 84 x 84.

    Args:
        settings: the game and its rules.
        num_envs: E.
        rgb: make full 210 x 160 colour screens `[3, 210, 160]` instead, for videos.
    """

    # ale-py loads the ROM for every seeded reset: 80 ms against 7 ms without a seed. 80 ms are 200 steps of play.
    steps_per_seed = 20_000

    def __init__(self, settings: EnvSettings, num_envs: int, rgb: bool = False) -> None:
        top, bottom, left, right = settings.crop or (0, ATARI_ROWS, 0, ATARI_COLUMNS)
        # The environment resizes the whole screen so that the crop comes out at 84 x 84: no OpenCV needed.
        height = ATARI_ROWS if rgb else round(SIDE * ATARI_ROWS / (bottom - top))
        width = ATARI_COLUMNS if rgb else round(SIDE * ATARI_COLUMNS / (right - left))
        row = min(round(top * height / ATARI_ROWS), height - SIDE)
        column = min(round(left * width / ATARI_COLUMNS), width - SIDE)
        self._window = (slice(row, row + SIDE), slice(column, column + SIDE))
        self._cropped = settings.crop is not None and not rgb
        self._colours = rgb or not settings.grey
        self._envs = AtariVectorEnv(
            atari_games()[settings.env],
            num_envs,
            repeat_action_probability=settings.sticky_actions,
            max_num_frames_per_episode=settings.max_episode_frames,
            full_action_space=settings.full_action_space,
            frameskip=settings.frame_skip,
            img_height=height,
            img_width=width,
            grayscale=not self._colours,
            stack_num=1,
            noop_max=0,  # sticky actions make episodes random; random no-ops would be a second source
            use_fire_reset=settings.auto_fire,
            reward_clipping=False,  # clipped at sampling: reported scores stay raw
            autoreset_mode=AutoresetMode.NEXT_STEP,  # see `steps_per_seed`
        )
        self.name, self.num_envs = settings.env, num_envs
        self.num_actions = int(self._envs.single_action_space.n)  # type: ignore[attr-defined]
        self.screen_shape = (3, height, width) if rgb else (3 if self._colours else 1, SIDE, SIDE)
        part = f"rows {top} to {bottom} and columns {left} to {right}" if self._cropped else "the screen"
        colours = "3 colours kept" if self._colours else "made grey"
        self.reading = f"an image of {part} of 210 x 160, {colours}, resized to {SIDE} x {SIDE}"
        self.screen_dtype = np.dtype(np.uint8)
        self._auto_fire = settings.auto_fire and FIRE in {a.value for a in self._envs.ale.get_action_set()}
        self._lives = np.zeros(num_envs, np.int64)
        self._fire_next = np.zeros(num_envs, bool)

    def _screens(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._colours:
            observation = observation[:, 0].transpose(0, 3, 1, 2)
        return observation[:, :, self._window[0], self._window[1]] if self._cropped else observation

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Start new episodes; see `VectorEnvs.reset`."""
        observation, info = self._envs.reset(seed=seeds.astype(np.int64), options={"reset_mask": mask})
        self._lives = info["lives"].astype(np.int64)
        self._fire_next &= ~mask
        return self._screens(observation), self._lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begin one agent step; return `actions`, with FIRE in their place where `auto_fire` presses it."""
        if self._auto_fire:
            actions = np.where(self._fire_next, FIRE, actions)
        self._envs.send(actions)
        return actions

    def recv(self) -> Step:
        """Wait for the step that `send` began."""
        observation, rewards, terminated, truncated, info = self._envs.recv()
        lives = info["lives"].astype(np.int64)
        if self._auto_fire:
            self._fire_next = lives < self._lives
            self._lives = lives
        return Step(self._screens(observation), rewards.astype(np.float32), terminated, truncated, lives)

    def close(self) -> None:
        """Free the emulators and their threads."""
        self._envs.close()


def atari_games() -> dict[str, str]:
    """Return the name of the ROM for every name of a bundled Atari game (`breakout`, `ALE/Breakout-v5`)."""
    names = {rom: rom for rom in roms.get_all_rom_ids()}
    # Ids that end in `-ram-v5`, of earlier versions of ale-py, observe the memory of the emulator.
    ids = [env for env in gym.registry if env.startswith("ALE/") and "-ram" not in env]
    names |= {env: gym.registry[env].kwargs["game"] for env in ids if not registered_outside(env, "ale_py")}
    return {name: rom for name, rom in names.items() if not registered_outside(name, "ale_py")}


OLD_ID = re.compile(
    r"(?:ALE/)?(?P<game>[A-Z]\w*?)(?P<ram>-ram)?(?P<skip>Deterministic|NoFrameskip)?-v(?P<version>[045])"
)
"""Ids of the Arcade Learning Environment before `ALE/Breakout-v5`, and those that observe the memory."""


class OldId(NamedTuple):
    """Parts of an old id.

    Attributes:
        rom: name of the game's ROM.
        ram: whether the memory of the emulator is observed, not the screen.
        skip: `Deterministic` (4 frames, 3 in Space Invaders), `NoFrameskip` (1 frame), or empty (2 to 5 frames, drawn
            anew at each step).
        version: 0 repeats actions with a probability of 0.25, 4 never does.
    """

    rom: str
    ram: bool
    skip: str
    version: int

    @property
    def modern(self) -> str:
        """Id of the game today."""
        return next(i for i, rom in atari_games().items() if rom == self.rom and i.startswith("ALE/"))


def old_id(env: str) -> OldId | None:
    """Return the parts of an old id of a bundled game; None for other ids, and for an id that a user registered."""
    parts = OLD_ID.fullmatch(env)
    if parts is None or env in atari_games() or (parts["version"] == "5" and not parts["ram"]):
        return None
    if registered_outside(env, "ale_py"):
        return None
    rom = re.sub(r"(?<!^)(?=[A-Z])", "_", parts["game"]).lower()
    if rom not in atari_games():
        return None
    return OldId(rom, bool(parts["ram"]), parts["skip"] or "", int(parts["version"]))


def atari_actions(env: str, num_actions: int | None = None) -> list[str]:
    """Return the names of a game's actions.

    The full set has 18 actions in all games but Skiing and Lost Luggage, which have 9.

    Args:
        env: a name of a bundled game.
        num_actions: the size of the set that is wanted, the game's own or the full one; None means the full one.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = ale_py.ALEInterface()
    rom = roms.get_rom_path(atari_games()[env])
    assert rom is not None  # `atari_games` names bundled games only
    game.loadROM(rom)
    full, minimal = game.getLegalActionSet(), game.getMinimalActionSet()
    return [action.name.lower() for action in (full if num_actions in (None, len(full)) else minimal)]


class AtariKind(EnvKind):
    """Bundled Atari games, by short name (`breakout`) or Gymnasium id (`ALE/Breakout-v5`)."""

    title = "an Atari game"
    repeatable = True

    def knows(self, env: str) -> bool:
        """Return whether `env` names a bundled Atari game, by an old id too."""
        return env in atari_games() or old_id(env) is not None

    def ids(self) -> Iterable[str]:
        """Return every name of every bundled game."""
        return atari_games()

    def game_name(self, env: str) -> str:
        """Return the name of the ROM."""
        old = old_id(env)
        return old.rom if old else atari_games()[env]

    def with_own_rules(self, settings: EnvSettings) -> EnvSettings:
        """Return the settings with the frame skip and the sticky actions that an old id decides.

        A user of a `NoFrameskip` id skips frames outside of the environment, so `frame_skip` stays as it is.

        Raises:
            ConfigError: if the id skips a random number of frames or observes the memory, or if an option contradicts
                the id.
        """
        old = old_id(settings.env)
        if old is None:
            return settings
        check(not old.ram, "data.env", settings.env, f"observes memory, not the screen; nearest: {old.modern!r}")
        problem = f"skips 2 to 5 frames at random, which is not played here; nearest: {old.modern!r}"
        check(bool(old.skip), "data.env", settings.env, problem)
        rules = {"sticky_actions": 0.25 if old.version == 0 else 0.0}
        if old.skip == "Deterministic":
            rules["frame_skip"] = 3 if old.rom == "space_invaders" else 4
        for name, value in rules.items():
            usual = EnvSettings.__dataclass_fields__[name].default
            problem = f"contradicts {settings.env}, which has {value}; drop it, or take --data.env {old.rom}"
            check(getattr(settings, name) in (value, usual), f"data.rules.{name}", getattr(settings, name), problem)
        rules.setdefault("frame_skip", settings.frame_skip)
        words = f"frame_skip {rules['frame_skip']}, sticky_actions {rules['sticky_actions']:g}"
        remark = f"{settings.env} is {old.rom} with {words}"
        return replace(settings, env=old.rom, remark=remark, **rules)  # type: ignore[arg-type]

    def check(self, settings: EnvSettings) -> None:
        """Refuse constructor arguments and a crop that leaves the screen."""
        check(not settings.env_kwargs, "data.env_kwargs", settings.env_kwargs, "is not for Atari games; drop it")
        problem = "is not read so in Atari games, which are images; nearest: 'image'"
        check(settings.observation in ("auto", "image"), "data.observation", settings.observation, problem)
        problem = "has no effect on Atari games; drop it"
        check(settings.channels == "auto", "data.channels", settings.channels, problem)
        if settings.crop is not None:
            top, bottom, left, right = settings.crop
            inside = 0 <= top < bottom <= ATARI_ROWS and 0 <= left < right <= ATARI_COLUMNS
            message = f"must be [top, bottom, left, right] inside {ATARI_ROWS} x {ATARI_COLUMNS}"
            check(inside, "data.rules.crop", list(settings.crop), message)

    def make(self, settings: EnvSettings, num_envs: int) -> AtariEnvs:
        """Return `num_envs` emulators of one game."""
        return AtariEnvs(settings, num_envs)

    def action_names(self, settings: EnvSettings, num_actions: int) -> list[str]:
        """Return the emulator's names of the actions, in lower case."""
        return atari_actions(settings.env, num_actions)

    def render(self, settings: EnvSettings, seed: int, actions: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Play the game again and yield the emulator's full colour screens `[210, 160, 3]`."""
        envs = AtariEnvs(settings, 1, rgb=True)
        yield envs.reset(np.array([seed]), np.ones(1, bool))[0][0].transpose(1, 2, 0)
        for action in actions:
            yield envs.step(np.array([action])).screens[0].transpose(1, 2, 0)
        envs.close()

    def share_spaces(self, settings: Sequence[EnvSettings]) -> list[EnvSettings]:
        """Return the settings with all 18 actions; the screens have the same shape anyway.

        Raises:
            ConfigError: for the two games that have 9 actions only.
        """
        for game in settings:
            count = len(atari_actions(game.env))
            message = f"knows {count} actions instead of Atari's 18, and shares no network with other games"
            check(count == ATARI_ACTIONS, "data.tasks", game.env, message)
        return [replace(game, full_action_space=True) for game in settings]
