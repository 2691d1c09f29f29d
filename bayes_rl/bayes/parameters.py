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
    """Parameters of the posterior of one layer, or of several layers with the same inputs, evaluated as one layer.

    The concatenated tensors `mean`, `bias` and `raw_log_var` are computed on first use, because concatenation takes
    time. In shapes, K is the number of components of a mixture, D the number of draws.

    Attributes:
        means: means of the weights of each layer, `[*shape]`, or `[K, *shape]` for a mixture.
        biases: biases of each layer, `[out]`, or `[K, out]` for a mixture.
        raw_log_vars: log-variances of each layer before they are clamped, `[*shape]`; empty if only means are needed.
        log_var_limit: log-variances are clamped to +- this.
        prior: prior of the weights, or None if no divergence is computed.
        extras: further parameters of the family by name, `[..., *shape]`, concatenated over layers.
        noise: draw of the diagonal part by given `Draws`, `[D, *shape]` standard normal numbers, or None.
        kl: KL divergence from the prior, a scalar in nats, or None. A forward pass stores it here if its fused
            operation has computed it, so that the loss need not compute it again.
    """

    means: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    raw_log_vars: tuple[Tensor, ...] = ()
    log_var_limit: float = 0.0
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
    def raw_log_var(self) -> Tensor:
        """Log-variances of all layers before they are clamped, `[*shape]`."""
        return join(self.raw_log_vars)

    @_cached
    def log_var(self) -> Tensor:
        """Log-variances of all layers, clamped, `[*shape]`."""
        return clamp_with_inward_gradient(self.raw_log_var, -self.log_var_limit, self.log_var_limit)

    @_cached
    def variance(self) -> Tensor:
        """Variances of the diagonal part, `[*shape]`."""
        return self.log_var.exp()

    def split(self, sizes: list[int]) -> list[PosteriorParameters]:
        """Return parameters of linear layers with these numbers of outputs, as views and without their priors."""

        def split_outputs(x: Tensor | None, axis: int = -2) -> Sequence[Any]:
            return [None] * len(sizes) if x is None else x.split(sizes, axis)

        raw_log_vars = split_outputs(self.raw_log_var if self.raw_log_vars else None)
        columns = [split_outputs(self.mean), split_outputs(self.bias, -1), raw_log_vars, split_outputs(self.noise)]
        extras = {name: split_outputs(x) for name, x in self.extras.items()}
        return [
            PosteriorParameters(
                (mean,),
                (bias,),
                () if raw_log_var is None else (raw_log_var,),
                self.log_var_limit,
                extras={name: values[i] for name, values in extras.items()},
                noise=noise,
            )
            for i, (mean, bias, raw_log_var, noise) in enumerate(zip(*columns, strict=True))
        ]


def join(parts: Sequence[Tensor], axis: int = -2) -> Tensor:
    """Concatenate tensors of several layers along their outputs."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
