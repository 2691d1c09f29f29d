"""Replay memory: every screen is stored once; stacks and n-step returns are made on reading."""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.errors import ConfigError, check, check_choice
from bayes_rl.types import Transition
from bayes_rl.utils.files import read_checksummed_json, write_checksummed_json

TERMINATED, TRUNCATED, LIFE_LOST, LAST_SCREEN = 1, 2, 4, 8


MANIFEST = "replay.json"


LIFE_LOSS = ("none", "discount", "penalty")


def layout(
    num_envs: int, slots: int, screen_shape: tuple[int, ...], screen_dtype: np.dtype[Any]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name, shape and type of a replay's files: E rings of so many slots, one behind the other."""
    total = num_envs * slots
    return {
        f"screens.{screen_dtype.name}": ((total, math.prod(screen_shape)), screen_dtype),
        "actions.int16": ((total,), np.dtype(np.int16)),
        "rewards.float32": ((total,), np.dtype(np.float32)),
        "flags.uint8": ((total,), np.dtype(np.uint8)),
        "ages.uint8": ((total,), np.dtype(np.uint8)),  # steps since reset, saturating
        # Slots of the running history, and the most ever written: going back does not undo an overwriting.
        "written.int64": ((2, num_envs), np.dtype(np.int64)),
    }


class ReplayBuffer:
    """One ring of slots per environment. A slot holds a screen and the step taken from it.

    An episode of T steps takes T + 1 slots: the extra one, marked `LAST_SCREEN`, keeps its final screen, which a
    truncated episode bootstraps from. Rings have `slack` more slots than can be sampled, so that what a
    checkpoint refers to survives the writes of one more epoch.

    Files in `directory` are shared memory: what was written survives the death of the process at any moment, and
    `state_dict` brings it to disk before a checkpoint refers to it. After a power cut the newest checkpoint finds its
    slots; an older one (`best.ckpt`) may be let in though the last writes before the cut went over its oldest slots.
    A manifest beside the files names the history in them, so that a checkpoint of another one is refused.

    Args:
        capacity: transitions kept in all, over all environments.
        num_envs: E, rings.
        screen_shape: of one screen.
        screen_dtype: of one screen.
        frame_stack: screens per observation, oldest first, zeros before an episode's start.
        n_step: n of the return; may be changed between samples.
        gamma: discount per agent step, in [0, 1].
        life_loss: what a lost life is to the learner: nothing, a discount of 0, or a reward of -1 (also at the
            episode's end, as in the original system's Space Invaders).
        reward_clip: rewards are clipped to +- this on reading; None leaves them raw.
        slack: additional slots per ring.
        directory: where memory-mapped files live; None keeps everything in memory.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        screen_shape: tuple[int, ...],
        screen_dtype: np.dtype[Any],
        *,
        frame_stack: int = 4,
        n_step: int = 4,
        gamma: float = 0.99,
        life_loss: str = "none",
        reward_clip: float | None = 1.0,
        slack: int = 0,
        directory: Path | None = None,
    ) -> None:
        check(capacity >= 1, "data.replay_capacity", capacity, "must be a positive number of transitions")
        check(1 <= frame_stack <= 255, "data.frame_stack", frame_stack, "must lie between 1 and 255 screens")
        check(n_step >= 1, "data.n_step", n_step, "must be at least 1 step")
        check(0 <= gamma <= 1, "data.gamma", gamma, "must lie in [0, 1]")
        check_choice("data.life_loss", life_loss, LIFE_LOSS)
        check(reward_clip is None or reward_clip > 0, "data.reward_clip", reward_clip, "must be positive, or null")
        ring = capacity // num_envs
        limit = f"must be smaller than one environment's share of the replay, {ring} = {capacity} / {num_envs} slots"
        check(n_step + frame_stack < ring, "data.n_step", n_step, limit)
        self.capacity, self.num_envs, self.ring = capacity, num_envs, ring
        self.screen_shape, self.frame_stack = tuple(screen_shape), frame_stack
        self.n_step, self.gamma = n_step, gamma
        self.life_loss, self.reward_clip = life_loss, reward_clip
        self.slots = ring + slack
        self.directory = directory
        self._layout = layout(num_envs, self.slots, screen_shape, screen_dtype)
        self._history: str | None = None
        self._mapped = self._recognise()
        # Files that do not fit stay as they are until a new history begins: a checkpoint may refer to them.
        self._map("r+" if self._mapped else "")
        self.written = np.zeros(num_envs, np.int64)  # slots ever written, per ring
        self._age = np.zeros(num_envs, np.int64)
        self._base = np.arange(num_envs) * self.slots
        self._begun = False

    @property
    def _geometry(self) -> list[int]:
        return [self.num_envs, self.slots, *self.screen_shape]

    def _manifest(self) -> dict[str, Any]:
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in self._layout.items()}
        return {"format": 1, "history": self._history, "geometry": self._geometry, "files": sizes}

    def _recognise(self) -> bool:
        """Whether the files of a ring like this one are there; takes over the name of their history."""
        if self.directory is None:
            return False
        paths = {self.directory / name: size for name, size in self._manifest()["files"].items()}
        if any(not path.is_file() or path.stat().st_size != size for path, size in paths.items()):
            return False
        try:
            content = read_checksummed_json(self.directory / MANIFEST)
        except FileNotFoundError:  # written by an earlier version of this program
            return True
        except (OSError, ValueError):
            return False
        self._history = content.get("history")
        return isinstance(self._history, str) and content == self._manifest()

    def _map(self, mode: str) -> None:
        """Arrays in the files of `directory`; without a `mode` in memory, of which nothing is taken before a write."""
        self._files: list[np.memmap[Any, Any]] = []
        arrays = []
        for name, (shape, dtype) in self._layout.items():
            if self.directory is None or not mode:
                arrays.append(np.zeros(shape, dtype))
                continue
            self._files.append(np.memmap(self.directory / name, dtype, mode, shape=shape))  # type: ignore[call-overload]
            # The same memory: indexing a memmap itself takes three times as long.
            arrays.append(self._files[-1].view(np.ndarray))
        self._screens, self._actions, self._rewards, self._flags, self._ages, self._disk = arrays

    def _begin_history(self) -> None:
        """Nothing that was written before counts any more, from before the first slot is overwritten."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._mapped:
                self._map("w+")
                self._mapped = True
            self._history = secrets.token_hex(16)
            write_checksummed_json(self.directory / MANIFEST, self._manifest())
        self._disk[:] = 0
        self._begun = True

    def __len__(self) -> int:
        """Slots inside the window that can be sampled from, all rings together."""
        return int(np.minimum(self.written, self.ring).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays at full size."""
        return sum(a.nbytes for a in (self._screens, self._actions, self._rewards, self._flags, self._ages))

    def _write(self, envs: slice | NDArray[np.int64], screens: NDArray[Any], flags: Any) -> NDArray[np.int64]:
        if not self._begun:
            self._begin_history()
        slot = self._base[envs] + self.written[envs] % self.slots
        self.written[envs] += 1
        # Before the slots, whose old content is lost from now on, and after them: a kill can come in between.
        np.maximum(self._disk[1], self.written, out=self._disk[1])
        self._screens[slot] = screens.reshape(len(slot), self._screens.shape[1])
        self._flags[slot] = flags
        self._ages[slot] = np.minimum(self._age[envs], 255)
        self._disk[0] = self.written
        return slot

    def add(
        self,
        screens: NDArray[Any],
        actions: NDArray[np.int64],
        rewards: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        life_lost: NDArray[np.bool_],
        next_screens: NDArray[Any],
        idle: NDArray[np.bool_] | None = None,
    ) -> None:
        """Append a step of every environment `[E]` that was not `idle`; `next_screens` is kept where episodes ended."""
        envs = slice(None) if idle is None or not idle.any() else np.flatnonzero(~idle)
        ended = np.flatnonzero(terminated | truncated)
        flags = life_lost * LIFE_LOST
        if len(ended):
            flags += terminated * TERMINATED + truncated * TRUNCATED
        slot = self._write(envs, screens[envs], flags[envs])
        self._actions[slot] = actions[envs]
        self._rewards[slot] = rewards[envs]
        self._age[envs] += 1
        if len(ended):
            self._write(ended, next_screens[ended], LAST_SCREEN)
            self._age[ended] = 0

    def _window(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First slot number that can be sampled, and how many, per ring: whole stacks and whole n-step windows."""
        oldest = np.maximum(self.written - self.ring, 0)
        low = oldest + np.where(oldest > 0, self.frame_stack - 1, 0)
        return low, np.maximum(self.written - self.n_step - low, 0)

    @property
    def sampleable(self) -> int:
        """Slots that `sample` chooses among (a few of them, the last screens, are drawn again)."""
        return int(self._window()[1].sum())

    def sample(self, batch_size: int, rng: np.random.Generator) -> Transition:
        """Draw `batch_size` transitions uniformly, with replacement, from those stored."""
        low, count = self._window()
        ends = np.cumsum(count)
        if ends[-1] == 0:
            raise RuntimeError("nothing to sample: the replay holds no complete n-step window yet")
        env = np.empty(batch_size, np.int64)
        number = np.empty(batch_size, np.int64)
        missing = np.arange(batch_size)
        while len(missing):
            u = rng.integers(0, ends[-1], len(missing))
            e = np.searchsorted(ends, u, side="right")
            env[missing], number[missing] = e, low[e] + u - (ends[e] - count[e])
            flags = self._flags[self._slot(env[missing], number[missing])]
            missing = missing[(flags & LAST_SCREEN) > 0]  # no step was taken from there
        return self.transitions(env, number)

    def _slot(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._base[env] + number % self.slots

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        """The n-step transitions that start at slot `number` `[B]` of ring `env` `[B]`."""
        window = self._slot(env[:, None], number[:, None] + np.arange(self.n_step))
        flags = self._flags[window]
        reward = np.asarray(self._rewards[window], np.float64)
        if self.reward_clip is not None:
            reward = reward.clip(-self.reward_clip, self.reward_clip)
        if self.life_loss == "penalty":
            reward = reward - ((flags & (LIFE_LOST | TERMINATED)) > 0)
        absorbing = (flags & (TERMINATED | (LIFE_LOST if self.life_loss == "discount" else 0))) > 0
        ends = absorbing | ((flags & TRUNCATED) > 0)
        taken: NDArray[np.bool_] = np.cumsum(ends, 1) - ends == 0  # steps up to and including the first end
        k: NDArray[np.int64] = taken.sum(1)
        powers = self.gamma ** np.arange(self.n_step + 1)
        # One after the other, for the same rounding on every device.
        n_step_return = sum((reward * taken * powers[:-1]).T, np.zeros(len(k)))
        discount = powers[k] * ~absorbing[np.arange(len(k)), k - 1]
        return Transition(
            self._observations(env, number),
            torch.from_numpy(self._actions[self._slot(env, number)].astype(np.int64)),
            torch.from_numpy(n_step_return.astype(np.float32)),
            torch.from_numpy(discount.astype(np.float32)),
            self._observations(env, number + k),
        )

    def _observations(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Tensor:
        """Stacks `[B, frame_stack * C, ...]` that end at slot `number`, zeros before the episode's start."""
        back = np.arange(self.frame_stack - 1, -1, -1)
        stack = self._screens[self._slot(env[:, None], number[:, None] - back)]
        missing = self._ages[self._slot(env, number)][:, None] < back
        if missing.any():
            stack[missing] = 0
        channels, *rest = self.screen_shape
        return torch.from_numpy(np.ascontiguousarray(stack)).view(len(env), self.frame_stack * channels, *rest)

    def state_dict(self) -> dict[str, Any]:
        """Positions in the rings; the slots themselves stay in `directory`, flushed to disk here."""
        for file in self._files:
            file.flush()
        return {
            "written": torch.from_numpy(self.written.copy()),
            "age": torch.from_numpy(self._age.copy()),
            "geometry": self._geometry,
            "history": self._history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to `state`. Refuses when the files no longer (or do not) hold what it refers to."""
        written = state["written"].numpy()
        where = str(self.directory)
        remedy = "; resume from checkpoints/last.ckpt, or collect again with --data.refill_replay true"
        if state["geometry"] != self._geometry:
            raise ConfigError("ckpt_path", where, f"replay of another shape, {state['geometry']}{remedy}")
        self._begun = bool(written.any())
        if self._begun:  # else it refers to nothing, and what is there stays until the first step
            end, most = self._disk
            if self._mapped and state.get("history") != self._history:
                raise ConfigError("ckpt_path", where, f"another replay was begun in place of this checkpoint's{remedy}")
            if (end < written).any():
                raise ConfigError("ckpt_path", where, f"the replay that this checkpoint refers to is not there{remedy}")
            if (most - written > self.slots - self.ring).any():
                raise ConfigError("ckpt_path", where, f"the replay has moved on since this checkpoint{remedy}")
            self._disk[0] = written
        self.written[:] = written
        self._age[:] = state["age"].numpy()
