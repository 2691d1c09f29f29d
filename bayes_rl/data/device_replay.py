"""A replay that is sampled where the learner is: a copy of the ring in a GPU's memory, read by vectorised code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_rl.data.replay import LIFE_LOST, TERMINATED, TRUNCATED, ReplayBuffer
from bayes_rl.types import Transition
from bayes_rl.utils.device import to_device_async

ACTION, REWARD, FLAGS, AGE = range(4)


NUMBERS = 4
"""Numbers of a slot beside its screen, as float64: each kind of them is exact in it, and one copy brings all."""


def copy_bytes(num_envs: int, slots: int, screen_shape: tuple[int, ...], screen_dtype: np.dtype[Any]) -> int:
    """What the copy of E rings of so many slots takes."""
    return num_envs * slots * (math.prod(screen_shape) * screen_dtype.itemsize + 8 * NUMBERS)


class DeviceReplay(ReplayBuffer):
    """The same replay, with a copy on `device` that minibatches are made of there, to the same bits.

    Everything is written to the arrays or files of a `ReplayBuffer` first: checkpoints refer to those, and the copy is
    made from them again when a run goes on. Slots to sample are chosen on the CPU, from counters alone, so the
    generator needs nothing from the device and nothing waits for it.

    Args:
        arguments: of a `ReplayBuffer`.
        device: where the copy is.
        settings: of a `ReplayBuffer`.
    """

    _screens_there: Tensor  # `[slots of all rings, numbers of a screen]`
    _numbers_there: Tensor  # `[slots of all rings, NUMBERS]`

    def __init__(self, *arguments: Any, device: torch.device, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.device = device
        self._fresh: list[NDArray[np.int64]] = []  # slots that were written in this step
        self._powers: tuple[tuple[int, float], Tensor] | None = None

    def _write(self, envs: slice | NDArray[np.int64], screens: NDArray[Any], flags: Any) -> NDArray[np.int64]:
        slots = super()._write(envs, screens, flags)
        self._fresh.append(slots)
        return slots

    def add(self, *step: Any, **named: Any) -> None:
        """As `ReplayBuffer.add`; then what is new goes to the device."""
        super().add(*step, **named)
        self._copy(np.concatenate(self._fresh))
        self._fresh.clear()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `ReplayBuffer.load_state_dict`; then everything that was ever written goes to the device."""
        super().load_state_dict(state)
        used = np.minimum(self.written, self.slots)
        for base, count in zip(self._base.tolist(), used.tolist(), strict=True):
            for start in range(0, count, 4096):  # as many as page-locked memory is taken for
                self._copy(base + np.arange(start, min(start + 4096, count)))

    def _copy(self, slots: NDArray[np.int64]) -> None:
        """Bring these slots to the device: their screens by one transfer, everything else by another."""
        if not hasattr(self, "_screens_there"):  # not before it is needed: another task's copy may still be there
            screens = torch.from_numpy(self._screens[:0])
            self._screens_there = torch.zeros(self._screens.shape, dtype=screens.dtype, device=self.device)
            self._numbers_there = torch.zeros(len(self._screens), NUMBERS, dtype=torch.float64, device=self.device)
        columns = (slots, self._actions[slots], self._rewards[slots], self._flags[slots], self._ages[slots])
        numbers = to_device_async(torch.from_numpy(np.stack(columns, 1).astype(np.float64)), self.device)
        index = numbers[:, 0].long()
        self._screens_there.index_copy_(0, index, to_device_async(torch.from_numpy(self._screens[slots]), self.device))
        self._numbers_there.index_copy_(0, index, numbers[:, 1:])

    def transitions(self, env: NDArray[np.int64], number: NDArray[np.int64]) -> Transition:
        """As `ReplayBuffer.transitions`, with tensors on the device."""
        base, first = to_device_async(torch.from_numpy(np.stack([self._base[env], number])), self.device)
        steps = torch.arange(self.n_step, device=self.device)
        window = self._numbers_there[self._place(base[:, None], first[:, None] + steps)]
        reward, flags = window[..., REWARD], window[..., FLAGS].to(torch.uint8)
        if self.reward_clip is not None:
            reward = reward.clamp(-self.reward_clip, self.reward_clip)
        if self.life_loss == "penalty":
            reward = reward - ((flags & (LIFE_LOST | TERMINATED)) > 0).to(reward.dtype)
        absorbing = (flags & (TERMINATED | (LIFE_LOST if self.life_loss == "discount" else 0))) > 0
        ends = (absorbing | ((flags & TRUNCATED) > 0)).long()
        taken = ends.cumsum(1) - ends == 0
        k = taken.sum(1)
        powers = self._discounts()
        n_step_return = sum((reward * taken * powers[:-1]).unbind(1), torch.zeros_like(reward[:, 0]))
        discount = powers[k] * ~absorbing.gather(1, k[:, None] - 1)[:, 0]
        return Transition(
            self._stacks(base, first),
            window[:, 0, ACTION].long(),
            n_step_return.float(),
            discount.float(),
            self._stacks(base, first + k),
        )

    def _place(self, base: Tensor, number: Tensor) -> Tensor:
        return base + number % self.slots

    def _discounts(self) -> Tensor:
        """gamma^0, ..., gamma^n, those of the CPU."""
        key = self.n_step, self.gamma
        if self._powers is None or self._powers[0] != key:
            self._powers = key, to_device_async(torch.from_numpy(self.gamma ** np.arange(self.n_step + 1)), self.device)
        return self._powers[1]

    def _stacks(self, base: Tensor, number: Tensor) -> Tensor:
        """Stacks `[B, frame_stack * C, ...]` that end at slot `number`, zeros before the episode's start."""
        back = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
        ages = self._numbers_there[self._place(base, number), AGE]
        stack = self._screens_there[self._place(base[:, None], number[:, None] - back)]
        stack.masked_fill_((ages[:, None] < back)[..., None], 0)  # always: to ask whether there is any would wait
        channels, *rest = self.screen_shape
        return stack.view(len(base), self.frame_stack * channels, *rest)
