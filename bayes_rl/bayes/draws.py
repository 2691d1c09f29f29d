"""Draws of all weights of a network, each named by its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.utils.device import to_device_async


@dataclass(frozen=True, eq=False)
class Draws:
    """D draws of all weights of a network, each the same wherever it is used.

    Attributes:
        index: `[D, d]` float32, shared by all layers: standard normal numbers (`low_rank`), rows of the identity
            (`members`), nothing `[D, 0]` (`mean_field`).
        noise: key of a layer to standard normal numbers `[D, *weight shape]`, the draw of its diagonal part; a layer
            without an entry has its mean there. None draws that part afresh for every output instead (local
            reparameterisation).
    """

    index: Tensor
    noise: dict[str, Tensor] | None = None

    @property
    def size(self) -> int:
        """D."""
        return self.index.shape[0]


WeightMode = Literal["mean", "sample"] | Draws
"""How a forward pass treats weight distributions: their `mean`, a fresh `sample` of every output, or fixed `Draws`."""


def draws_by_seed(settings: PosteriorSettings, shapes: Mapping[str, tuple[int, ...]], seeds: list[int]) -> Draws:
    """Draws named by their seeds, on the CPU: the same seed is the same draw, whatever the others.

    Args:
        settings: of the posterior.
        shapes: key to weight shape of every Bayesian layer.
        seeds: D of them, one for each draw.
    """
    index, noise = (
        torch.zeros(len(seeds), index_size(settings)),
        {k: torch.empty(len(seeds), *s) for k, s in shapes.items()},
    )
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        if settings.posterior == "members":
            index[row, torch.randint(settings.index_dim, (), generator=generator)] = 1
        else:
            index[row].normal_(generator=generator)
        for values in noise.values():
            values[row].normal_(generator=generator)
    return Draws(index, noise)


def every_member(settings: PosteriorSettings, device: torch.device) -> Draws:
    """Each member of a mixture once, at its mean weights."""
    return Draws(torch.eye(settings.index_dim, device=device), {})


def index_draws(settings: PosteriorSettings, count: int, device: torch.device) -> Draws:
    """Draws for learning, their diagonal part local: `count` fresh ones, or every member once."""
    if settings.posterior == "members":
        return replace(every_member(settings, device), noise=None)
    return Draws(torch.randn(count, index_size(settings), device=device))


def index_size(settings: PosteriorSettings) -> int:
    """Length of a draw's index."""
    return 0 if settings.posterior == "mean_field" else settings.index_dim


class EpisodeDraws:
    """One draw for each of E environments, made anew where its seed changes."""

    def __init__(self, settings: PosteriorSettings, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._settings, self._shapes = settings, dict(shapes)
        self._seeds: list[int] = []
        self._draws = Draws(torch.zeros(0, 0))

    @torch.inference_mode(False)  # what evaluation made, training may change
    def __call__(self, seeds: list[int], device: torch.device) -> Draws:
        """The draws named by `seeds` `[E]`, on `device`."""
        if len(seeds) != len(self._seeds):
            self._draws = to_device(draws_by_seed(self._settings, self._shapes, seeds), device)
        else:
            self._draws = to_device(self._draws, device)
            changed = [row for row, (old, new) in enumerate(zip(self._seeds, seeds, strict=True)) if old != new]
            if changed:
                fresh = to_device(draws_by_seed(self._settings, self._shapes, [seeds[r] for r in changed]), device)
                rows = to_device_async(torch.tensor(changed), device)
                self._draws.index.index_copy_(0, rows, fresh.index)
                for key, values in (fresh.noise or {}).items():
                    self._draws.noise[key].index_copy_(0, rows, values)  # type: ignore[index]
        self._seeds = list(seeds)
        return self._draws


def to_device(draws: Draws, device: torch.device) -> Draws:
    """The same draws on `device`."""
    noise = draws.noise
    there = None if noise is None else {k: to_device_async(v, device) for k, v in noise.items()}
    return Draws(to_device_async(draws.index, device), there)
