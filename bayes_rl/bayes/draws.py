"""Draws of all weights of a network, each named by its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bayes_rl.utils.device import to_device_async

if TYPE_CHECKING:
    from bayes_rl.bayes.posteriors.base import PosteriorFamily


@dataclass(frozen=True, eq=False)
class Draws:
    """D draws of all weights of a network; a draw is the same in all layers and in every forward pass.

    Attributes:
        index: index of each draw, `[D, d]` float32, shared by all layers. Its meaning depends on the posterior family.
        noise: key of a layer to standard normal numbers `[D, *weight shape]`, the draw of the layer's diagonal part.
            A layer without an entry has no noise. None draws the diagonal part afresh for every output instead
            (local reparameterisation).
    """

    index: Tensor
    noise: dict[str, Tensor] | None = None

    @property
    def size(self) -> int:
        """Number of draws, D."""
        return self.index.shape[0]


WeightMode = Literal["mean", "sample"] | Draws
"""How a forward pass treats distributions over weights.

`"mean"` uses the mean weights, `"sample"` samples every output afresh, and `Draws` uses the given draws of all weights.
"""


def draws_by_seed(family: PosteriorFamily, shapes: Mapping[str, tuple[int, ...]], seeds: list[int]) -> Draws:
    """Return draws named by their seeds, on the CPU: a draw depends on its own seed alone.

    Args:
        family: of the posterior.
        shapes: key to weight shape of every Bayesian layer.
        seeds: D of them, one for each draw.
    """
    index = torch.zeros(len(seeds), family.index_size)
    noise = {key: torch.empty(len(seeds), *shape) for key, shape in shapes.items()}
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        index[row] = family.draw_index(generator)
        for values in noise.values():
            values[row].normal_(generator=generator)
    return Draws(index, noise)


class EpisodeDraws:
    """One draw for each of E environments, replaced when the environment's seed changes.

    Args:
        family: of the posterior.
        shapes: key to weight shape of every Bayesian layer.
    """

    def __init__(self, family: PosteriorFamily, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._family, self._shapes = family, dict(shapes)
        self._seeds: list[int] = []
        self._draws = Draws(torch.zeros(0, 0))

    @torch.inference_mode(False)  # training may replace rows of draws that evaluation has made
    def __call__(self, seeds: list[int], device: torch.device) -> Draws:
        """Return the draws named by `seeds`, E of them, on `device`."""
        if len(seeds) != len(self._seeds):
            self._draws = to_device(draws_by_seed(self._family, self._shapes, seeds), device)
        else:
            self._draws = to_device(self._draws, device)
            changed = [row for row, (old, new) in enumerate(zip(self._seeds, seeds, strict=True)) if old != new]
            if changed:
                fresh = to_device(draws_by_seed(self._family, self._shapes, [seeds[r] for r in changed]), device)
                rows = to_device_async(torch.tensor(changed), device)
                self._draws.index.index_copy_(0, rows, fresh.index)
                for key, values in (fresh.noise or {}).items():
                    self._draws.noise[key].index_copy_(0, rows, values)  # type: ignore[index]
        self._seeds = list(seeds)
        return self._draws


def to_device(draws: Draws, device: torch.device) -> Draws:
    """Return the draws on `device`."""
    noise = draws.noise
    noise = None if noise is None else {key: to_device_async(values, device) for key, values in noise.items()}
    return Draws(to_device_async(draws.index, device), noise)
