"""States that a game cannot produce, or that its agent has not visited, against which its uncertainty is tested."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayes_rl.envs.atari import AtariKind
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import find_kind, game_name

RECORDINGS = Path(__file__).parent / "recordings"
"""Files of recorded states, made by `python -m benchmarks.learning.record_states`."""

KINDS = ("noise", "shuffled", "other_game", "unvisited")
"""Kinds of novel states."""

OTHER_GAMES = ("pong", "breakout")
"""Recordings of random play that serve agents of other games."""

UNVISITED = {"breakout": "breakout_later", "MinAtar/Breakout-v0": "minatar_breakout_later"}
UNVISITED["MinAtar/Breakout-v1"] = UNVISITED["MinAtar/Breakout-v0"]
"""Recording of states beyond the usual scores, by the name of the game."""


def noise_states(observations: Tensor, rng: np.random.Generator) -> Tensor:
    """Return states without any structure: the values of each channel are redistributed over all states and positions.

    Every value is drawn at random, without replacement, from the values of its channel in all states and at all
    positions. So each channel has exactly the values of the played states. A component of a vector is a channel of one
    position. Components that depend on each other become independent.

    Args:
        observations: played states, `[M, C, H, W]` or `[M, N]`.
        rng: generator of the draws.

    Returns:
        States, shaped as `observations`.
    """
    channels = observations.movedim(1, 0).flatten(1).numpy()
    noise = torch.from_numpy(rng.permuted(channels, axis=1))
    count, num_channels, *size = observations.shape
    return noise.view(num_channels, count, *size).movedim(0, 1).contiguous()


def shuffled_states(observations: Tensor, frame_stack: int, rng: np.random.Generator) -> Tensor:
    """Return each state with its positions in a random order, one order for all channels of a state.

    A position is a pixel or cell of an image, or a component of a vector. The screens of a stack have one order.

    Args:
        observations: played states, `[M, frame_stack * C, H, W]` or `[M, frame_stack * N]`.
        frame_stack: screens per observation.
        rng: generator of the orders.

    Returns:
        States, shaped as `observations`.
    """
    count, channels = observations.shape[:2]
    flat = observations.reshape(count, channels if observations.dim() == 4 else frame_stack, -1)
    positions = np.broadcast_to(np.arange(flat.shape[2]), (count, flat.shape[2]))
    order = torch.from_numpy(rng.permuted(positions, axis=1))
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(observations)


def load_recording(name: str) -> tuple[Tensor, float]:
    """Return recorded states `[M, C, H, W]` uint8, and the least score of the game in these states."""
    with np.load(RECORDINGS / f"{name}.npz", allow_pickle=False) as file:
        shape, states = tuple(file["shape"].tolist()), file["states"]
        # Planes of zeros and ones are stored as bits.
        states = np.unpackbits(states, count=int(np.prod(shape))).reshape(shape) if states.ndim == 1 else states
        return torch.from_numpy(states), float(file["least_score"])


class NovelStates:
    """Novel states of a task, made from the states that were played, or recorded.

    A kind that is impossible or meaningless for the observations is left out: `noise` and `shuffled` for numbered
    states, every one of which is possible, and `shuffled` for a single number; `other_game` for all but grey Atari
    screens; `unvisited` for games without a recording, and for screens that are made in another way.

    Args:
        settings: of the game.
        observation_shape: of one observation.
        frame_stack: screens per observation.
        num_categories: number of states of an environment with numbered states, 0 for arrays.
        trained: names of all games that the agent learns; none of them is another game.

    Attributes:
        kinds: kinds of novel states of this task, among `KINDS`.
    """

    def __init__(
        self,
        settings: EnvSettings,
        observation_shape: tuple[int, ...],
        frame_stack: int,
        num_categories: int,
        trained: Collection[str],
    ) -> None:
        self.frame_stack = frame_stack
        positions = observation_shape[0] // frame_stack if len(observation_shape) == 1 else 2
        is_atari = isinstance(find_kind(settings.env), AtariKind)
        recorded = {
            "other_game": next((game for game in OTHER_GAMES if is_atari and game not in trained), ""),
            "unvisited": _unvisited(settings),
        }
        self._recorded = {kind: name for kind, name in recorded.items() if name and _fits(name, observation_shape)}
        made = () if num_categories else ("noise", "shuffled")[: 1 + (positions > 1)]
        self.kinds = tuple(kind for kind in KINDS if kind in (*made, *self._recorded))

    def make(self, observations: Tensor, mean_score: float, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return novel states by kind, at most as many of each kind as there are observations.

        Args:
            observations: states of the games just played, `[M, *observation_shape]`.
            mean_score: of these games. If it reaches the least score of the states of `unvisited`, the agent visits
                them, and there are none.
            rng: generator of all draws.
        """
        made: dict[str, Tensor] = {}
        for kind in self.kinds:
            if kind == "noise":
                made[kind] = noise_states(observations, rng)
            elif kind == "shuffled":
                made[kind] = shuffled_states(observations, self.frame_stack, rng)
            else:
                states, least_score = load_recording(self._recorded[kind])
                visited = kind == "unvisited" and mean_score >= least_score
                chosen = rng.permutation(len(states))[: 0 if visited else len(observations)]
                made[kind] = states[torch.from_numpy(chosen)]
        return made


def _unvisited(settings: EnvSettings) -> str:
    """Return the recording of states beyond the usual scores of a game; an empty string without one."""
    unchanged = settings.crop is None and not settings.screen_shape and not settings.env_kwargs
    return UNVISITED.get(game_name(settings.env), "") if unchanged else ""


def _fits(name: str, observation_shape: tuple[int, ...]) -> bool:
    with np.load(RECORDINGS / f"{name}.npz", allow_pickle=False) as file:
        return tuple(file["shape"].tolist()[1:]) == observation_shape
