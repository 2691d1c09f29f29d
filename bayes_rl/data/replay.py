"""Replay that stores every screen once and makes stacks and n-step returns on reading."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.data.n_step import (
    LAST_SCREEN,
    LIFE_LOST,
    TERMINATED,
    TRUNCATED,
    check_return_rules,
    discount_powers,
    n_step_return,
    realised_returns,
)
from bayes_rl.data.replay_files import ReplayFiles
from bayes_rl.errors import ConfigError, check, check_choice
from bayes_rl.types import Transition
from bayes_rl.utils.files import FULL

REPLAY_DEVICES = ("cpu", "cuda")


def num_newest(batch_size: int, newest_share: float) -> int:
    """Return how many transitions of a minibatch are drawn from the newest alone: a share, rounded up.

    At least one transition is always drawn from all.

    Args:
        batch_size: B, number of transitions.
        newest_share: share of them, in [0, 1).
    """
    # Without the rounding to nine digits, the error of a product such as 0.07 * 100 would count as one more.
    return min(math.ceil(round(newest_share * batch_size, 9)), batch_size - 1)


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of the replay and of the transitions that it makes.

    Args:
        capacity: largest number of transitions in the replay, over all environments.
        device: device where minibatches are made: cpu, or cuda, by a copy of the replay in the GPU's memory.
        min_size: transitions collected at random before the first update.
        batch_size: transitions per minibatch.
        newest_share: share of a minibatch that is drawn from the `newest` transitions, in [0, 1), rounded up; the rest,
            at least one, is drawn from all. A new transition is then learned soon, however large the replay is.
        newest: number of the newest transitions, over all environments; all of them if the replay holds fewer.
        n_step: agent steps of the n-step return.
        gamma: discount per agent step, in [0, 1].
        life_loss: effect of a lost life on the learner: none, discount (of 0) or penalty (a reward of -1).
        reward_clip: largest size of a reward for the learner; None leaves rewards raw. Scores are always raw.

    Raises:
        ConfigError: a setting cannot work.
    """

    capacity: int = 100_000
    device: str = "cpu"
    min_size: int = 5_000
    batch_size: int = 32
    newest_share: float = 0.0
    newest: int = 2_000
    n_step: int = 4
    gamma: float = 0.99
    life_loss: str = "discount"
    reward_clip: float | None = 1.0

    def __post_init__(self) -> None:
        capacity, batch = self.capacity, self.batch_size
        check(capacity >= 1, "data.replay.capacity", capacity, "must be a positive number of transitions")
        check(batch >= 1, "data.replay.batch_size", batch, "must be a positive number of transitions")
        check(capacity >= batch, "data.replay.batch_size", batch, f"exceeds the replay of {capacity} slots")
        limit = f"must lie between 1 and the replay's capacity, {capacity}"
        check(1 <= self.min_size <= capacity, "data.replay.min_size", self.min_size, limit)
        check(0 <= self.newest_share < 1, "data.replay.newest_share", self.newest_share, "must lie in [0, 1)")
        check(self.newest >= 1, "data.replay.newest", self.newest, "must be a positive number of transitions")
        check_choice("data.replay.device", self.device, REPLAY_DEVICES)
        check_return_rules(self.n_step, self.gamma, self.life_loss, self.reward_clip)


class ReplayBuffer:
    """Replay buffer with one ring of slots per environment. A slot holds a screen and the step taken from it.

    An episode of T steps takes T + 1 slots. The last slot, marked `LAST_SCREEN`, holds the final screen, which the
    return of a truncated episode bootstraps from. A ring has `slack` more slots than can be sampled, so that the slots
    that a checkpoint refers to are not overwritten within the next epoch.

    A resumed run continues from `state_dict`, which writes the files to disk before a checkpoint refers to them. The
    newest checkpoint therefore finds its slots after a power failure. An older checkpoint (`best.ckpt`) may be accepted
    although the last writes before the failure overwrote its oldest slots.

    Args:
        capacity: largest number of transitions in the replay, over all environments.
        num_envs: E, the number of rings.
        screen_shape: shape of one screen, channels first.
        screen_dtype: type of the numbers of one screen.
        frame_stack: screens per observation, oldest first, zeros before an episode's start.
        n_step: n of the return; may be changed between samples.
        gamma: discount per agent step, in [0, 1].
        life_loss: effect of a lost life on the learner: none, a discount of 0, or a reward of -1. The reward of -1 is
            also given at the end of a game, as in the original system's Space Invaders.
        reward_clip: largest size of a reward, applied on reading; None leaves rewards raw.
        slack: additional slots per ring.
        directory: folder of memory-mapped files; None keeps everything in memory.

    Attributes:
        files: arrays of all slots, with their manifest.
        returns: realised return of the step of each slot, `[slots of all rings]`, NaN while it is not known. It is
            computed when an episode ends, and again from the files when a run resumes.
        written: slots ever written, per ring, `[E]`.

    Raises:
        ConfigError: a setting cannot work; the error names it.
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
        check(capacity >= 1, "data.replay.capacity", capacity, "must be a positive number of transitions")
        check(1 <= frame_stack <= 255, "data.frame_stack", frame_stack, "must lie between 1 and 255 screens")
        check_return_rules(n_step, gamma, life_loss, reward_clip)
        ring = capacity // num_envs
        limit = f"must be smaller than one environment's share of the replay, {ring} = {capacity} / {num_envs} slots"
        check(n_step + frame_stack < ring, "data.replay.n_step", n_step, limit)
        self.capacity, self.num_envs, self.ring = capacity, num_envs, ring
        self.screen_shape, self.frame_stack = tuple(screen_shape), frame_stack
        self.n_step, self.gamma = n_step, gamma
        self.life_loss, self.reward_clip = life_loss, reward_clip
        self.slots = ring + slack
        with self._named_capacity(directory):
            self.files = ReplayFiles(directory, num_envs, self.slots, self.screen_shape, screen_dtype)
        self.written = np.zeros(num_envs, np.int64)
        self._age = np.zeros(num_envs, np.int64)  # steps since the reset, per ring
        self._rings = np.arange(num_envs)
        self._base = self._rings * self.slots
        self._last_screens = np.zeros(num_envs, np.int32)  # ever written, per ring
        self._last_screens_before = np.zeros(num_envs * self.slots, np.int32)  # of the ring, before each slot
        self.returns = np.full(num_envs * self.slots, np.nan, np.float32)
        self._history_began = False

    def __len__(self) -> int:
        """Return N of the ELBO: the number of transitions that `sample` draws from."""
        low, count = self._window()
        ends = (self._slot(self._rings, number) for number in (low, low + count))
        before, after = (self._last_screens_before[slots] for slots in ends)
        return int((count - (after - before)).sum())

    @property
    def num_windows(self) -> int:
        """Number of complete n-step windows, over all rings; those that begin at a final screen count as well."""
        return int(self._window()[1].sum())

    @property
    def stored(self) -> int:
        """Number of written slots among the newest `ring` slots of each ring, which `min_size` is compared with."""
        return int(np.minimum(self.written, self.ring).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all slots at full size."""
        return self.files.nbytes

    @contextlib.contextmanager
    def _named_capacity(self, directory: Path | None) -> Iterator[None]:
        """Turn the error of a full disk in this block into a `ConfigError` of the capacity."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ConfigError(
                "data.replay.capacity", self.capacity, f"finds no room on the disk of {directory}"
            ) from None

    def _write(self, envs: slice | NDArray[np.int64], screens: NDArray[Any], flags: Any) -> NDArray[np.int64]:
        """Write the next slot of each of the rings `envs`, and return the slots' indices."""
        if not self._history_began:
            with self._named_capacity(self.files.directory):
                self.files.begin_history()
            self._history_began = True
        slot = self._base[envs] + self.written[envs] % self.slots
        self.written[envs] += 1
        self._last_screens_before[slot] = self._last_screens[envs]
        self._last_screens[envs] += (flags & LAST_SCREEN) > 0
        # A process can be killed at any line. The largest number of slots rises before a slot loses its old content,
        # and the number of valid slots rises after the screen is written. A checkpoint refers to whole steps only.
        np.maximum(self.files.written[1], self.written, out=self.files.written[1])
        self.files.screens[slot] = screens.reshape(len(slot), self.files.screens.shape[1])
        self.files.flags[slot] = flags
        self.returns[slot] = np.nan
        self.files.ages[slot] = np.minimum(self._age[envs], 255)
        self.files.written[0] = self.written
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
        restarting: NDArray[np.bool_] | None = None,
    ) -> None:
        """Append one step of every environment.

        Args:
            screens: screens that the steps were taken from, `[E, *screen_shape]`.
            actions: actions as executed, `[E]`.
            rewards: raw rewards, `[E]`.
            terminated: whether the episode terminated with this step, `[E]`.
            truncated: whether the episode was truncated after this step, `[E]`.
            life_lost: whether a life was lost in this step, `[E]`.
            next_screens: screens after the steps, `[E, *screen_shape]`; stored where episodes ended.
            restarting: environments that started an episode and took no step, `[E]`; None if there are none.
        """
        envs = slice(None) if restarting is None or not restarting.any() else np.flatnonzero(~restarting)
        ended = np.flatnonzero(terminated | truncated)
        flags = life_lost * LIFE_LOST
        if len(ended):
            flags += terminated * TERMINATED + truncated * TRUNCATED
        slot = self._write(envs, screens[envs], flags[envs])
        self.files.actions[slot] = actions[envs]
        self.files.rewards[slot] = rewards[envs]
        self._age[envs] += 1
        if len(ended):
            self._write(ended, next_screens[ended], LAST_SCREEN)
            for env in ended.tolist():
                self._add_returns(env, self.written[env] - 1, self._age[env])
            self._age[ended] = 0

    def _add_returns(self, env: int, last_screen: int, steps: int) -> NDArray[np.int64]:
        """Compute the realised returns of an episode that has ended.

        Args:
            env: number of the ring.
            last_screen: number of the slot of the episode's final screen.
            steps: number of steps of the episode, of which as many are read as the ring still holds.

        Returns:
            Indices of the slots whose returns were computed.
        """
        first = max(last_screen - steps, self.written[env] - self.slots, 0)
        slots = self._slot(np.full(1, env), np.arange(first, last_screen))
        rules = self.gamma, self.life_loss, self.reward_clip
        self.returns[slots] = realised_returns(self.files.rewards[slots], self.files.flags[slots], *rules)
        return slots

    def truncate_episodes(self, screens: NDArray[Any]) -> NDArray[np.int64]:
        """Mark the newest step of every unfinished episode as truncated, and append the final screen.

        Args:
            screens: final screens `[E, *screen_shape]`.

        Returns:
            Indices of the slots that changed.
        """
        running = np.flatnonzero(self._age > 0)
        newest = self._base[running] + (self.written[running] - 1) % self.slots
        self.files.flags[newest] |= TRUNCATED
        if not len(running):
            return newest
        final = self._write(running, screens[running], LAST_SCREEN)
        for env in running.tolist():
            self._add_returns(env, self.written[env] - 1, self._age[env])
        self._age[running] = 0
        return np.concatenate([newest, final])

    def _window(self, newest: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first slot number with a whole stack, and the number of n-step windows from it on, `[E]` each.

        Args:
            newest: number of the newest windows to count, over all rings; None for all. At least two of each ring
                count, because two slots in a row are never both final screens.
        """
        oldest = np.maximum(self.written - self.ring, 0)
        low = oldest + np.where(oldest > 0, self.frame_stack - 1, 0)
        end = self.written - self.n_step
        if newest is not None:
            low = np.maximum(low, end - max(2, -(-newest // self.num_envs)))
        return low, np.maximum(end - low, 0)

    def sample(
        self, batch_size: int, rng: np.random.Generator, newest: int | None = None, from_newest: int | None = None
    ) -> Transition:
        """Draw transitions with replacement.

        Args:
            batch_size: B, number of transitions.
            rng: generator of the slots' numbers.
            newest: number of the newest windows to draw from, over all environments; None for all.
            from_newest: number of transitions that are drawn from the newest windows. They come last; those from all
                windows come first. None: every transition is drawn from the newest windows.

        Raises:
            RuntimeError: the replay holds no complete n-step window yet.
        """
        from_newest = batch_size if from_newest is None else from_newest
        parts = [(batch_size - from_newest, None), (from_newest, newest)]
        drawn = [self._draw(count, rng, limit) for count, limit in parts if count]
        return self.transitions(*map(np.concatenate, zip(*drawn, strict=True)))

    def _draw(
        self, count: int, rng: np.random.Generator, newest: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw slots uniformly among those that hold a step, and return their rings and numbers, `[count]` each."""
        low, windows = self._window(newest)
        ends = np.cumsum(windows)
        if ends[-1] == 0:
            raise RuntimeError("nothing to sample: the replay holds no complete n-step window yet")
        env = np.empty(count, np.int64)
        number = np.empty(count, np.int64)
        missing = np.arange(count)
        while len(missing):
            index = rng.integers(0, ends[-1], len(missing))
            ring = np.searchsorted(ends, index, side="right")
            env[missing], number[missing] = ring, low[ring] + index - (ends[ring] - windows[ring])
            flags = self.files.flags[self._slot(env[missing], number[missing])]
            missing = missing[(flags & LAST_SCREEN) > 0]  # no step was taken from a final screen
        return env, number

    def _slot(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the array index of slot `number` of ring `env`."""
        return self._base[env] + number % self.slots

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        """Return the n-step transitions that start at slot `number` `[B]` of ring `env` `[B]`."""
        window = self._slot(env[:, None], number[:, None] + np.arange(self.n_step))
        reward, discount, steps = n_step_return(
            self.files.rewards[window],
            self.files.flags[window],
            discount_powers(self.gamma, self.n_step),
            self.life_loss,
            self.reward_clip,
        )
        return Transition(
            self._observations(env, number),
            torch.from_numpy(self.files.actions[window[:, 0]].astype(np.int64)),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(discount.astype(np.float32)),
            self._observations(env, number + steps),
            torch.from_numpy(self.returns[window[:, 0]]),
        )

    def _observations(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Tensor:
        """Return stacks `[B, frame_stack * C, ...]` that end at slot `number`, zeros before the episode's start."""
        back = np.arange(self.frame_stack - 1, -1, -1)
        stack = self.files.screens[self._slot(env[:, None], number[:, None] - back)]
        missing = self.files.ages[self._slot(env, number)][:, None] < back
        if missing.any():
            stack[missing] = 0
        channels, *height_and_width = self.screen_shape
        stack = np.ascontiguousarray(stack)
        return torch.from_numpy(stack).view(len(env), self.frame_stack * channels, *height_and_width)

    def state_dict(self) -> dict[str, Any]:
        """Flush the files to disk and return the positions in the rings. The slots stay in the files."""
        self.files.flush()
        return {
            "written": torch.from_numpy(self.written.copy()),
            "age": torch.from_numpy(self._age.copy()),
            "geometry": self.files.geometry,
            "history": self.files.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the positions in `state`.

        Raises:
            ConfigError: the files do not hold the slots that `state` refers to.
        """
        written = state["written"].numpy()
        key, directory = "ckpt_path", str(self.files.directory)
        remedy = "; resume from checkpoints/last.ckpt, or collect again with --data.refill_replay true"
        if state["geometry"] != self.files.geometry:
            raise ConfigError(key, directory, f"replay of another shape, {state['geometry']}{remedy}")
        self._history_began = bool(written.any())
        if self._history_began:  # without slots in the state, the files are left as they are until the first step
            written_in_files, largest_written = self.files.written
            if self.files.mapped and state.get("history") != self.files.history:
                raise ConfigError(key, directory, f"another replay was begun in place of this checkpoint's{remedy}")
            if (written_in_files < written).any():
                raise ConfigError(key, directory, f"the replay that this checkpoint refers to is not there{remedy}")
            if (largest_written - written > self.slots - self.ring).any():
                raise ConfigError(key, directory, f"the replay has moved on since this checkpoint{remedy}")
            self.files.written[0] = written
        self.written[:] = written
        self._age[:] = state["age"].numpy()
        self._read_episodes()

    def _read_episodes(self) -> None:
        """Count the last screens before each slot, and compute the realised returns, by the flags in the files."""
        self.returns.fill(np.nan)
        for ring, written in enumerate(self.written.tolist()):
            oldest = max(0, written - self.slots)
            slots = self._slot(np.full(1, ring), np.arange(oldest, written))
            last = (self.files.flags[slots] & LAST_SCREEN) > 0
            self._last_screens_before[slots] = np.cumsum(last) - last
            self._last_screens[ring] = last.sum()
            start = oldest
            for last_screen in (oldest + np.flatnonzero(last)).tolist():
                self._add_returns(ring, last_screen, last_screen - start)
                start = last_screen + 1
