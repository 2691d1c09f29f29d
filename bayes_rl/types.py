"""Data types that environments, replay and learner exchange."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor


class Transition(NamedTuple):
    """A minibatch of n-step transitions.

    Attributes:
        observation: s_t, `[B, *observation_shape]`, uint8 (pixels) or float32 (vectors).
        action: a_t as executed, `[B]` int64.
        reward: r^(n) = sum_{i<k} gamma^i r_{t+i}, `[B]` float32; k <= n stops at an episode's end.
        discount: gamma^k, `[B]` float32; 0 if the episode terminated, kept if it was truncated.
        next_observation: s_{t+k}, shaped as `observation`.
        realised_return: discounted sum of all rewards from step t to the end of the return, `[B]` float32; NaN where
            the end is not known, because the episode runs or was truncated. None if no return is known.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Tensor
    realised_return: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Transition:
        """Return the transitions with `function` applied to every tensor."""
        realised = None if self.realised_return is None else function(self.realised_return)
        observations = {key: function(getattr(self, key)) for key in ("observation", "next_observation")}
        numbers = {key: function(getattr(self, key)) for key in ("action", "reward", "discount")}
        return Transition(**observations, **numbers, realised_return=realised)

    def split(self, size: int) -> list[Transition]:
        """Return the transitions in minibatches of `size`, the last of which may be smaller."""
        starts = range(0, len(self.action), size)
        return [self.map(operator.itemgetter(slice(start, start + size))) for start in starts]

    @classmethod
    def cat(cls, parts: Sequence[Transition]) -> Transition:
        """Return the transitions of all parts, one after the other. All parts know realised returns, or none does."""
        known = [part.realised_return for part in parts if part.realised_return is not None]
        named = {key: torch.cat([getattr(part, key) for part in parts]) for key in cls._fields[:-1]}
        return cls(**named, realised_return=torch.cat(known) if known else None)


class Batch(NamedTuple):
    """One element of the training stream.

    Attributes:
        transition: the minibatch.
        num_data: N of the ELBO: transitions that the minibatches are drawn from.
        frames: environment frames collected so far, over all ranks.
        task: number of the task that the minibatch comes from.
        learning_frames: environment frames collected since learning began, without the random prefills.
        num_newest: number of transitions, at the end of the minibatch, that were drawn from the newest alone. The
            others were drawn from all.
    """

    transition: Transition
    num_data: int
    frames: int
    task: int = 0
    learning_frames: int = 0
    num_newest: int = 0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`. Lightning calls this; without it, it would search batches for tensors."""
        is_gpu = device.type == "cuda"
        return self._replace(transition=self.transition.map(lambda x: x.to(device, non_blocking=is_gpu)))


class Policy(Protocol):
    """Greedy behaviour: a function of observations."""

    def __call__(self, observations: Tensor) -> Tensor:
        """Map observations `[E, *observation_shape]` to actions `[E]` int64 on the CPU."""


class DrawPolicy(Protocol):
    """Behaviour by posterior draws: a function of observations and of the seeds that name the draws."""

    def __call__(self, observations: Tensor, seeds: list[int]) -> Tensor:
        """Map observations `[E, *observation_shape]` and E seeds, one a draw, to actions `[E]` int64 on the CPU."""


class ValueEstimate(NamedTuple):
    """Estimates of the value of states and of their uncertainty; of a single state, without the axis E.

    Attributes:
        q_mean: mean of Q(s, .) over posterior draws and critics, `[E, A]`.
        q_std: standard deviation of Q(s, .) over posterior draws and critics, `[E, A]`: epistemic uncertainty.
        noise_std: standard deviation of the return under the likelihood, `[E, A]`: aleatoric uncertainty.
        value: the greatest `q_mean`, `[E]`.
    """

    q_mean: Tensor
    q_std: Tensor
    noise_std: Tensor
    value: Tensor


class ValueEstimator(Protocol):
    """Estimator of values: a function of observations."""

    def __call__(self, observations: Tensor) -> ValueEstimate:
        """Map observations `[E, *observation_shape]` to a `ValueEstimate` on the CPU."""


class AgentArguments(TypedDict):
    """Arguments of `VariationalActorCritic` that the data module decides.

    Attributes:
        game: short name of the game, or the Gymnasium id.
        observation_shape: of one observation, stacked screens first: `(frame_stack * C, ...)`.
        num_actions: A.
        pixel_scale: number that observations are divided by before the networks.
        num_categories: number of states of an environment with numbered states, 0 for arrays.
        num_tasks: T, 1 without a curriculum.
        task_conditioning: part of the networks that is task-specific: none, gains or heads.
    """

    game: str
    observation_shape: tuple[int, ...]
    num_actions: int
    pixel_scale: float
    num_categories: int
    num_tasks: int
    task_conditioning: str


AGENT_ARGUMENTS = tuple(AgentArguments.__annotations__)
"""Names of the arguments in `AgentArguments`."""
