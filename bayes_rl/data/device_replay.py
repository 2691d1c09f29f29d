"""Replay with a copy in a GPU's memory, where minibatches are made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.data.n_step import discount_powers, n_step_return_torch
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.types import Transition
from bayes_rl.utils.device import to_device_async

ACTION, REWARD, FLAGS, AGE, RETURN = range(5)


NUMBERS = 5
"""Numbers of a slot beside its screen. All numbers are exact in float64, so that one transfer copies them."""


def copy_bytes(num_envs: int, slots: int, screen_shape: tuple[int, ...], screen_dtype: np.dtype[Any]) -> int:
    """Return the bytes that the copy of `num_envs` rings of `slots` slots takes."""
    return num_envs * slots * (math.prod(screen_shape) * screen_dtype.itemsize + 8 * NUMBERS)


class DeviceReplay(ReplayBuffer):
    """Replay with a copy on `device`, where the minibatches of `ReplayBuffer` are made to the same bits.

    Every step is written to the arrays or files of a `ReplayBuffer` first. Checkpoints refer to the files, and the
    copy is made from them again when a run resumes. The slots of a sample are chosen on the CPU, from counters and
    flags in its memory, so the CPU never waits for the device.

    Args:
        arguments: positional arguments of `ReplayBuffer`.
        device: device of the copy.
        settings: keyword arguments of `ReplayBuffer`.
    """

    _device_screens: Tensor  # `[slots of all rings, numbers of a screen]`
    _device_numbers: Tensor  # `[slots of all rings, NUMBERS]`

    def __init__(self, *arguments: Any, device: torch.device, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.device = device
        self._new_slots: list[NDArray[np.int64]] = []  # written in this step, not yet copied
        self._new_returns: list[NDArray[np.int64]] = []  # whose returns were computed in this step, not yet copied
        self._powers: tuple[tuple[float, int], Tensor] | None = None

    def _write(self, envs: slice | NDArray[np.int64], screens: NDArray[Any], flags: Any) -> NDArray[np.int64]:
        slots = super()._write(envs, screens, flags)
        self._new_slots.append(slots)
        return slots

    def _add_returns(self, env: int, last_screen: int, steps: int) -> NDArray[np.int64]:
        slots = super()._add_returns(env, last_screen, steps)
        self._new_returns.append(slots)
        return slots

    def add(self, *step: Any, **named: Any) -> None:
        """Append one step of every environment, as `ReplayBuffer.add`, and copy it to the device."""
        super().add(*step, **named)
        self._copy(np.concatenate(self._new_slots))
        self._copy_returns()

    def truncate_episodes(self, screens: NDArray[Any]) -> NDArray[np.int64]:
        """Truncate unfinished episodes, as `ReplayBuffer.truncate_episodes`, and copy the changes to the device."""
        changed = super().truncate_episodes(screens)
        self._copy(changed)
        self._copy_returns()
        return changed

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to `state`, as `ReplayBuffer.load_state_dict`, and copy all written slots to the device."""
        super().load_state_dict(state)
        used = np.minimum(self.written, self.slots)
        for base, count in zip(self._base.tolist(), used.tolist(), strict=True):
            for start in range(0, count, 4096):  # limits the page-locked memory of a transfer
                self._copy(base + np.arange(start, min(start + 4096, count)))
        self._forget_new()

    def _copy(self, slots: NDArray[np.int64]) -> None:
        """Copy `slots` to the device: their screens in one transfer, all other numbers in another."""
        # The copy is made at its first use, because the copy of the previous task takes memory until then.
        if not hasattr(self, "_device_screens"):
            screens = torch.from_numpy(self.files.screens[:0])
            self._device_screens = torch.zeros(self.files.screens.shape, dtype=screens.dtype, device=self.device)
            shape = (len(self.files.screens), NUMBERS)
            self._device_numbers = torch.zeros(shape, dtype=torch.float64, device=self.device)
        files = self.files
        columns = (slots, *(c[slots] for c in (files.actions, files.rewards, files.flags, files.ages, self.returns)))
        numbers = to_device_async(torch.from_numpy(np.stack(columns, 1).astype(np.float64)), self.device)
        index = numbers[:, 0].long()
        screens = to_device_async(torch.from_numpy(files.screens[slots]), self.device)
        self._device_screens.index_copy_(0, index, screens)
        self._device_numbers.index_copy_(0, index, numbers[:, 1:])

    def _copy_returns(self) -> None:
        """Copy the returns of episodes that ended in this step to the device."""
        if self._new_returns:
            slots = np.concatenate(self._new_returns)
            columns = np.stack([slots, self.returns[slots]], 1).astype(np.float64)
            index, returns = to_device_async(torch.from_numpy(columns), self.device).unbind(1)
            self._device_numbers[:, RETURN].index_copy_(0, index.long(), returns)
        self._forget_new()

    def _forget_new(self) -> None:
        self._new_slots.clear()
        self._new_returns.clear()

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        """Return the transitions of `ReplayBuffer.transitions`, made on the device."""
        base, first = to_device_async(torch.from_numpy(np.stack([self._base[env], number])), self.device)
        steps = torch.arange(self.n_step, device=self.device)
        window = self._device_numbers[self._place(base[:, None], first[:, None] + steps)]
        rewards, flags = window[..., REWARD], window[..., FLAGS].to(torch.uint8)
        reward, discount, steps = n_step_return_torch(
            rewards, flags, self._discounts(), self.life_loss, self.reward_clip
        )
        return Transition(
            self._stacks(base, first),
            window[:, 0, ACTION].long(),
            reward.float(),
            discount.float(),
            self._stacks(base, first + steps),
            window[:, 0, RETURN].float(),
        )

    def _place(self, base: Tensor, number: Tensor) -> Tensor:
        """Return the index of slot `number` of the ring that begins at `base`."""
        return base + number % self.slots

    def _discounts(self) -> Tensor:
        """Return gamma^0, ..., gamma^n, computed on the CPU and copied once."""
        key = self.gamma, self.n_step
        if self._powers is None or self._powers[0] != key:
            self._powers = key, to_device_async(torch.from_numpy(discount_powers(*key)), self.device)
        return self._powers[1]

    def _stacks(self, base: Tensor, number: Tensor) -> Tensor:
        """Return stacks `[B, frame_stack * C, ...]` that end at slot `number`, zeros before the episode's start."""
        back = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
        ages = self._device_numbers[self._place(base, number), AGE]
        stack = self._device_screens[self._place(base[:, None], number[:, None] - back)]
        # Without a test for missing screens, because the test would wait for the device.
        stack.masked_fill_((ages[:, None] < back)[..., None], 0)
        channels, *height_and_width = self.screen_shape
        return stack.view(len(base), self.frame_stack * channels, *height_and_width)
