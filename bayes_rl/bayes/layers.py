"""Variational Bayesian layers: local reparameterisation and closed-form KL divergence."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.ops import VARIANCE_FLOOR, clamp_with_inward_gradient, gaussian_kl, sampled_linear, standard_normal
from bayes_rl.bayes.settings import PosteriorSettings

# Molchanov, Ashukha and Vetrov (2017, arXiv:1701.05369), equation 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695


class _cached:  # noqa: N801, a decorator
    """`functools.cached_property` without the lock that this has in Python 3.11: `torch.compile` cannot take it."""

    def __init__(self, find: Callable[[Any], Tensor]) -> None:
        self.find, self.__doc__ = find, find.__doc__

    def __get__(self, of: Any, owner: type) -> Tensor:
        value = self.find(of)
        setattr(of, self.find.__name__, value)
        return value


@dataclass(eq=False)
class PosteriorParameters:
    """Parameters of a layer's posterior; several layers with the same inputs make one by concatenation.

    Attributes:
        means: of each layer, `[*shape]`, or of every member, `[K, *shape]`.
        biases: `[out]`, or `[K, out]`.
        raws: log-variances before they are clamped, `[*shape]`, or nothing where only means are asked for.
        limit: that they are clamped to.
        factor: C of `low_rank`, `[d, *shape]`, or None.
        prior: mean and precision of each weight's own prior, each `[*shape]`, or None.
        noise: of given `Draws`, `[D, *shape]`, or None.
        kl: divergence from the prior, a scalar in nats, where an evaluation has found it on its way.
    """

    means: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    raws: tuple[Tensor, ...] = ()
    limit: float = 0.0
    factor: Tensor | None = None
    prior: tuple[Tensor, Tensor] | None = None
    noise: Tensor | None = None
    kl: Tensor | None = None

    @_cached
    def mean(self) -> Tensor:
        """Of all layers together; only when asked for, like the next two: joining takes time."""
        return _joined(self.means)

    @_cached
    def bias(self) -> Tensor:
        """Likewise."""
        return _joined(self.biases, -1)

    @_cached
    def raw(self) -> Tensor:
        """Likewise."""
        return _joined(self.raws)

    @_cached
    def log_var(self) -> Tensor:
        """Clamped, `[*shape]`."""
        return clamp_with_inward_gradient(self.raw, -self.limit, self.limit)

    @_cached
    def variance(self) -> Tensor:
        """`[*shape]`."""
        return self.log_var.exp()

    def split(self, sizes: list[int]) -> list[PosteriorParameters]:
        """Those of linear layers with so many outputs each, by views; without their priors."""

        def parts(x: Tensor | None, axis: int = -2) -> Sequence[Any]:
            return [None] * len(sizes) if x is None else x.split(sizes, axis)

        raws = parts(self.raw if self.raws else None)
        columns = [parts(self.mean), parts(self.bias, -1), raws, parts(self.factor), parts(self.noise)]
        return [
            PosteriorParameters((mean,), (bias,), () if raw is None else (raw,), self.limit, factor, None, noise)
            for mean, bias, raw, factor, noise in zip(*columns, strict=True)
        ]


class BayesLayer(nn.Module, ABC):
    """What linear layers and convolutions have in common; the bias is deterministic (one for each member).

    `forward(x, weights)` has three modes. `"mean"`: by the mean weights. `"sample"`: by the local reparameterisation
    of Kingma, Salimans and Welling (2015, arXiv:1506.02557), a fresh draw of every output from its exact Gaussian
    instead of a draw of weights. `Draws`: by D fixed draws; x is then `[D, B, ...]`, or `[1, B, ...]` for all draws
    alike, and the result `[D, B, ...]`.

    Attributes:
        shape: of its weights.
        key: name by which `Draws.noise` knows the layer.
        prior_mean, prior_precision: of each weight's own prior, if the posterior can become the prior.
        found: where a forward pass puts the layer and its moments, if it found their divergence on its way.
    """

    prior_mean: Tensor
    prior_precision: Tensor

    def __init__(self, shape: tuple[int, ...], settings: PosteriorSettings) -> None:
        super().__init__()
        self.settings, self.shape, self.key = settings, shape, ""
        self.found: list[tuple[BayesLayer, PosteriorParameters]] | None = None
        scale = settings.init_scale / math.sqrt(math.prod(shape[1:]))
        members = (settings.index_dim,) if settings.posterior == "members" else ()
        self.weight_mu = nn.Parameter(scale * torch.randn(*members, *shape))
        self.weight_log_var = nn.Parameter(settings.init_log_var + 1e-3 * torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(*members, shape[0]))
        self.register_parameter("weight_factor", None)
        if settings.posterior == "low_rank":
            # So that a draw of C z is as large as an initial mean.
            factor = torch.randn(settings.index_dim, *shape)
            self.weight_factor = nn.Parameter(scale / math.sqrt(settings.index_dim) * factor)
        if settings.sequential:
            self.register_buffer("prior_mean", torch.zeros(shape))
            self.register_buffer("prior_precision", torch.full(shape, float(settings.prior_precision)))

    def log_var(self) -> Tensor:
        """Log-variances in use, `[*shape]`, clamped so that neither exp nor its inverse overflows."""
        return clamp_with_inward_gradient(
            self.weight_log_var, -self.settings.log_var_limit, self.settings.log_var_limit
        )

    def moments(self, weights: WeightMode = "sample") -> PosteriorParameters:
        """Everything a forward pass, or the KL, needs."""
        return joint_parameters([self], weights)

    def forward(self, x: Tensor, weights: WeightMode = "mean") -> Tensor:
        moments = self.moments(weights)
        y = self.evaluate(x, weights, moments)
        if self.found is not None and moments.kl is not None:
            self.found.append((self, moments))
        return y

    def evaluate(self, x: Tensor, weights: WeightMode, m: PosteriorParameters) -> Tensor:
        """The forward pass by given moments."""
        members = self.settings.posterior == "members"
        if isinstance(weights, Draws):
            weight, bias = m.mean, m.bias
            if members:
                member = weights.index.argmax(-1)
                weight, bias = weight[member], bias[member]
            elif m.factor is not None:
                weight = weight + torch.tensordot(weights.index, m.factor, 1)
            if m.noise is not None:
                weight = weight + (0.5 * m.log_var).exp() * m.noise
            if weight.ndim == len(self.shape):  # nothing drew on the index or the noise
                weight = weight[None]
            y = self.batched(x, weight, bias if members else bias[None])
            y = y.expand(weights.size, *y.shape[1:])
            if weights.noise is not None:
                return y
            return _noisy(y, self.batched(_square(x), m.variance[None], None))
        if weights == "mean":
            return self.product(x, m.mean.mean(0), m.bias.mean(0)) if members else self.product(x, m.mean, m.bias)
        return _noisy(self._sampled_index(x, m), self.product(_square(x), m.variance, None))

    def _sampled_index(self, x: Tensor, m: PosteriorParameters) -> Tensor:
        """The outputs with a fresh index for every row, before the noise of the diagonal part."""
        members = self.settings.posterior == "members"
        if m.factor is None and not members:
            return self.product(x, m.mean, m.bias)
        parts = m.mean if members else m.factor
        assert parts is not None
        z = x.new_zeros(len(x), len(parts), dtype=m.mean.dtype)
        z = z.scatter(1, torch.randint(len(parts), (len(x), 1), device=x.device), 1) if members else z.normal_()
        each = self.product(x, parts.flatten(0, 1), None).unflatten(1, (len(parts), -1))
        mixed = torch.einsum("bk...,bk->b...", each, z)
        if not members:
            return self.product(x, m.mean, m.bias) + mixed
        bias = z @ m.bias
        return mixed + bias.reshape(*bias.shape, *[1] * (mixed.ndim - 2))

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply one weight `[*shape]` to `[B, ...]`."""

    @abstractmethod
    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weights `[D or 1, *shape]` to `[D or 1, B, ...]`: `[D or 1, B, ...]`."""

    def kl_terms(self, m: PosteriorParameters) -> tuple[Tensor, Tensor | None]:
        """KL(q || prior) by given moments, in nats, without the part that layers share; then C^T S^-1 C `[d, d]` or
        None.
        """
        if m.kl is not None:
            return m.kl, None
        s = self.settings
        with torch.autocast(m.mean.device.type, enabled=False):
            copies = len(m.mean) if s.posterior == "members" else 1
            if s.prior == "log_uniform":
                log_alpha = m.log_var - 2 * m.mean.abs().clamp_min(1e-8).log()
                kl = K1 * (1 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)
                return kl.sum() / copies, None
            if m.prior is not None:
                mean, precision = m.prior
                second_moment = (precision * ((m.mean - mean).square() + m.variance)).sum()
                return 0.5 * (second_moment - (m.log_var + precision.log() + 1).sum()), None
            kl = gaussian_kl(m.mean, m.raw, s.prior_precision, m.limit, copies)
            if m.factor is None:
                return kl, None
            scaled = (m.factor * (-0.5 * m.log_var).exp()).flatten(1)
            return kl + 0.5 * s.prior_precision * m.factor.square().sum(), scaled @ scaled.T

    def kl_divergence(self) -> Tensor:
        """KL(q || prior) of this layer alone, a scalar in nats: the sum over weights, in float32 under autocast.

        Gaussian prior N(m, 1 / k), per weight: (k ((mu - m)^2 + s^2) - 1 - log s^2 - log k) / 2 with m = 0 and k the
        prior precision until `become_prior`; for `members` averaged over them (the KL of member and weights jointly),
        for `low_rank` with the determinant of s^2 I + C C^T.
        """
        part, gram = self.kl_terms(self.moments())
        return part if gram is None else part - half_log_det(gram)

    @torch.no_grad()
    def become_prior(self) -> None:
        """What was learned so far is what is believed before the next data: the posterior becomes the prior.

        Variational continual learning (Nguyen et al. 2018, arXiv:1710.10628); of `sequential` layers only.
        """
        self.prior_mean.copy_(self.weight_mu)
        self.prior_precision.copy_((-self.log_var()).exp())


def joint_parameters(layers: Sequence[BayesLayer], weights: WeightMode = "sample") -> PosteriorParameters:
    """Those of one layer with the outputs of all `layers`, of equal settings and inputs."""
    first = layers[0]
    noise = _joined_noise(layers, weights.noise) if isinstance(weights, Draws) and weights.noise else None
    certain = weights == "mean" or (isinstance(weights, Draws) and weights.noise is not None and noise is None)
    factor, prior = None, None
    if first.weight_factor is not None:
        factor = _joined([layer.weight_factor for layer in layers])
    if first.settings.sequential and weights == "sample":
        prior = _joined([layer.prior_mean for layer in layers]), _joined([layer.prior_precision for layer in layers])
    means, biases = tuple(layer.weight_mu for layer in layers), tuple(layer.bias for layer in layers)
    raws = () if certain else tuple(layer.weight_log_var for layer in layers)
    return PosteriorParameters(means, biases, raws, first.settings.log_var_limit, factor, prior, noise)


def _joined(parts: Sequence[Tensor], axis: int = -2) -> Tensor:
    """Of several layers' tensors, one with all their outputs."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _joined_noise(layers: Sequence[BayesLayer], noise: dict[str, Tensor]) -> Tensor | None:
    """The noise of all `layers`; one without an entry has its mean."""
    given = [noise.get(layer.key) for layer in layers]
    size = next((len(values) for values in given if values is not None), None)
    if size is None:
        return None
    zero = layers[0].bias.new_zeros
    parts = [zero(size, *layer.shape) if v is None else v for v, layer in zip(given, layers, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _noisy(mean: Tensor, variance: Tensor) -> Tensor:
    """A fresh draw of every output."""
    return torch.addcmul(mean, (variance + VARIANCE_FLOOR).sqrt(), standard_normal(mean))


def _square(x: Tensor) -> Tensor:
    return x.square() if x.is_floating_point() else x  # a one-hot vector is its own square


def half_log_det(gram: Tensor) -> Tensor:
    """log det(I + gram) / 2; by eigenvalues, because rounding can make a gram of wide spread indefinite."""
    return 0.5 * torch.linalg.eigvalsh(gram).clamp_min(0).log1p().sum()


class BayesLinear(BayesLayer):
    """Linear layer y = x W^T + b with weights `[out, in]`; integer x `[..., 1]` stands for its one-hot vector."""

    def __init__(self, in_features: int, out_features: int, settings: PosteriorSettings | None = None) -> None:
        super().__init__((out_features, in_features), settings or PosteriorSettings())

    def evaluate(self, x: Tensor, weights: WeightMode, m: PosteriorParameters, blocked: int = 0) -> Tensor:
        """The forward pass by given moments; so many of the first outputs have no gradient with respect to `x`."""
        plain = x.is_floating_point() and x.ndim == 2
        if weights == "sample" and self.settings.posterior == "mean_field" and plain:
            precision = self.settings.prior_precision
            y, kl = sampled_linear(x, m.means, m.raws, m.biases, m.limit, precision, blocked)
            if self.settings.prior == "gaussian" and m.prior is None:
                m.kl = kl
            return y
        if not blocked:
            return super().evaluate(x, weights, m)
        parts = zip((x.detach(), x), m.split([blocked, m.bias.shape[-1] - blocked]), strict=True)
        return torch.cat([super(BayesLinear, self).evaluate(f, weights, part) for f, part in parts], -1)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not x.is_floating_point():
            draw = torch.arange(len(weight), device=x.device)[:, None]
            y = weight[draw, :, x[..., 0].long()] if len(x) > 1 else weight[:, :, x[0, :, 0].long()].transpose(1, 2)
        else:
            y = x @ weight.transpose(1, 2)
        return y if bias is None else y + bias[:, None]


class BayesConv2d(BayesLayer):
    """Convolution of images `[B, C, H, W]` with weights `[out, in, kernel, kernel]`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        settings: PosteriorSettings | None = None,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), settings or PosteriorSettings())
        self.stride, self.padding = stride, padding

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(weight) == 1:  # one weight for all draws
            y = self.product(x.flatten(0, 1), weight[0], None).unflatten(0, x.shape[:2])
        elif len(x) == 1:  # one image for all draws: the draws are so many output channels
            y = self.product(x[0], weight.flatten(0, 1), None).unflatten(1, weight.shape[:2]).transpose(0, 1)
        else:  # each draw is a group of channels
            images = x.transpose(0, 1).flatten(1, 2)
            y = F.conv2d(images, weight.flatten(0, 1), None, self.stride, self.padding, 1, len(weight))
            y = y.unflatten(1, weight.shape[:2]).transpose(0, 1)
        return y if bias is None else y + bias[:, None, :, None, None]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b; an integer x `[..., 1]` is the place of the one in a one-hot vector."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    column = F.embedding(x[..., 0].long(), weight.t())
    return column if bias is None else column + bias


def joint_forward(layers: Sequence[BayesLinear], x: Tensor, weights: WeightMode) -> list[Tensor]:
    """Several layers of equal settings on the same input, by one matrix product; each one's output."""
    sizes = [len(layer.weight_log_var) for layer in layers]
    return list(layers[0].evaluate(x, weights, joint_parameters(layers, weights)).split(sizes, -1))
