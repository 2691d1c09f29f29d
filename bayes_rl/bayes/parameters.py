"""Parameters of the posterior of one or several layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayes_rl.bayes.ops import clamp_with_inward_gradient
from bayes_rl.bayes.priors import Prior


class _cached:  # noqa: N801, a decorator
    """`functools.cached_property` without the lock of Python 3.11, which `torch.compile` cannot trace."""

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Tensor:
        value = self.compute(instance)
        setattr(instance, self.compute.__name__, value)
        return value


@dataclass(eq=False)
class PosteriorParameters:
    """Parameters of a layer's posterior; several layers with the same inputs make one by concatenation.

    The concatenated tensors `mean`, `bias` and `raw` are computed on first use, because concatenation takes time.

    Attributes:
        means: of each layer, `[*shape]`, or of all components of a mixture, `[K, *shape]`.
        biases: of each layer, `[out]`, or `[K, out]`.
        raws: log-variances of each layer before they are clamped, `[*shape]`; empty where only means are needed.
        limit: log-variances are clamped to +- this.
        prior: of the weights, or None where no divergence is computed.
        extras: further parameters of the family by name, `[..., *shape]`, concatenated.
        noise: draw of the diagonal part by given `Draws`, `[D, *shape]` standard normal numbers, or None.
        kl: divergence from the prior, a scalar in nats, if a forward pass has computed it already.
    """

    means: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    raws: tuple[Tensor, ...] = ()
    limit: float = 0.0
    prior: Prior | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None
    kl: Tensor | None = None

    @_cached
    def mean(self) -> Tensor:
        """Means of all layers, `[*shape]` or `[K, *shape]`."""
        return join(self.means)

    @_cached
    def bias(self) -> Tensor:
        """Biases of all layers, `[out]` or `[K, out]`."""
        return join(self.biases, -1)

    @_cached
    def raw(self) -> Tensor:
        """Log-variances of all layers before they are clamped, `[*shape]`."""
        return join(self.raws)

    @_cached
    def log_var(self) -> Tensor:
        """Log-variances of all layers, clamped, `[*shape]`."""
        return clamp_with_inward_gradient(self.raw, -self.limit, self.limit)

    @_cached
    def variance(self) -> Tensor:
        """Variances of the diagonal part, `[*shape]`."""
        return self.log_var.exp()

    def split(self, sizes: list[int]) -> list[PosteriorParameters]:
        """Return parameters of linear layers with these numbers of outputs, as views and without their priors."""

        def parts(x: Tensor | None, axis: int = -2) -> Sequence[Any]:
            return [None] * len(sizes) if x is None else x.split(sizes, axis)

        raws = parts(self.raw if self.raws else None)
        columns = [parts(self.mean), parts(self.bias, -1), raws, parts(self.noise)]
        extras = {name: parts(x) for name, x in self.extras.items()}
        return [
            PosteriorParameters(
                (mean,),
                (bias,),
                () if raw is None else (raw,),
                self.limit,
                extras={name: values[i] for name, values in extras.items()},
                noise=noise,
            )
            for i, (mean, bias, raw, noise) in enumerate(zip(*columns, strict=True))
        ]


def join(parts: Sequence[Tensor], axis: int = -2) -> Tensor:
    """Concatenate tensors of several layers along their outputs."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
