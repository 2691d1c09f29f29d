"""Atari games on ale-py's C++ vector environment."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from bayes_rl.envs.base import BoolArray, EnvSettings, Step, VectorEnvs
from bayes_rl.envs.wrappers import SIDE

gym.register_envs(ale_py)


ATARI_ROWS, ATARI_COLUMNS = 210, 160


FIRE = 1


class AtariEnvs(VectorEnvs):
    """Atari games on ale-py's C++ threads: skip, max-pool, grey, resize to 84 x 84.

    Args:
        settings: what to play.
        num_envs: E.
        rgb: full 210 x 160 colour screens `[3, 210, 160]` instead, for showing to people.
    """

    # ale-py loads the ROM again for every seed: 80 ms against 7 ms, as long as 200 steps of play.
    steps_per_seed = 20_000

    def __init__(self, settings: EnvSettings, num_envs: int, rgb: bool = False) -> None:
        top, bottom, left, right = settings.crop or (0, ATARI_ROWS, 0, ATARI_COLUMNS)
        # The environment resizes the whole screen so that the kept part comes out at 84 x 84: no OpenCV needed.
        height = ATARI_ROWS if rgb else round(SIDE * ATARI_ROWS / (bottom - top))
        width = ATARI_COLUMNS if rgb else round(SIDE * ATARI_COLUMNS / (right - left))
        row = min(round(top * height / ATARI_ROWS), height - SIDE)
        column = min(round(left * width / ATARI_COLUMNS), width - SIDE)
        self._window = (slice(row, row + SIDE), slice(column, column + SIDE))
        self._cropped = settings.crop is not None and not rgb
        self._rgb = rgb
        self._envs = AtariVectorEnv(
            atari_games()[settings.env],
            num_envs,
            repeat_action_probability=settings.sticky_actions,
            max_num_frames_per_episode=settings.max_episode_frames,
            full_action_space=settings.full_action_space,
            frameskip=settings.frame_skip,
            img_height=height,
            img_width=width,
            grayscale=not rgb,
            stack_num=1,
            noop_max=0,  # sticky actions are the source of chance; random no-ops would be a second one
            use_fire_reset=settings.auto_fire,
            reward_clipping=False,  # clipped at sampling: reported scores stay raw
            autoreset_mode=AutoresetMode.NEXT_STEP,  # see `steps_per_seed`
        )
        self.name, self.num_envs = settings.env, num_envs
        self.num_actions = int(self._envs.single_action_space.n)  # type: ignore[attr-defined]
        self.screen_shape = (3, height, width) if rgb else (1, SIDE, SIDE)
        self.screen_dtype = np.dtype(np.uint8)
        self._actions = np.zeros(num_envs, np.int64)
        self._auto_fire = settings.auto_fire and FIRE in {a.value for a in self._envs.ale.get_action_set()}
        self._lives = np.zeros(num_envs, np.int64)
        self._fire_next = np.zeros(num_envs, bool)

    def _screens(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._rgb:
            return observation[:, 0].transpose(0, 3, 1, 2)
        return observation[:, :, self._window[0], self._window[1]] if self._cropped else observation

    def reset(self, seeds: NDArray[np.int64], mask: BoolArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
        observation, info = self._envs.reset(seed=seeds.astype(np.int64), options={"reset_mask": mask})
        self._lives = info["lives"].astype(np.int64)
        self._fire_next &= ~mask
        return self._screens(observation), self._lives

    def send(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._auto_fire:
            actions = np.where(self._fire_next, FIRE, actions)
        self._envs.send(actions)
        return actions

    def recv(self) -> Step:
        observation, rewards, terminated, truncated, info = self._envs.recv()
        lives = info["lives"].astype(np.int64)
        if self._auto_fire:
            self._fire_next = lives < self._lives
            self._lives = lives
        return Step(self._screens(observation), rewards.astype(np.float32), terminated, truncated, lives)

    def close(self) -> None:
        self._envs.close()


def atari_games() -> dict[str, str]:
    """Every name of a bundled Atari game (`breakout`, `ALE/Breakout-v5`) to its ROM's name."""
    names = {rom: rom for rom in roms.get_all_rom_ids()}
    names |= {i: spec.kwargs["game"] for i, spec in gym.registry.items() if i.startswith("ALE/")}
    return names


def atari_actions(env: str, num_actions: int | None = None) -> list[str]:
    """Names of a game's actions: of the set that has `num_actions`, its own or the full one; the full one without it.

    The full set has 18 actions in all games but Skiing and Lost Luggage, which know 9.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = ale_py.ALEInterface()
    rom = roms.get_rom_path(atari_games()[env])
    assert rom is not None  # it is one of those bundled
    game.loadROM(rom)
    full, own = game.getLegalActionSet(), game.getMinimalActionSet()
    return [action.name.lower() for action in (full if num_actions in (None, len(full)) else own)]
