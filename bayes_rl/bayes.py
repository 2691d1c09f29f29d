"""Variational Bayesian layers: Gaussian posteriors over weights, local reparameterisation, closed-form KL."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bounds import bounded
from bayes_rl.posterior import Draws, Variational, Weights

VARIANCE_FLOOR = 1e-8
# Molchanov, Ashukha and Vetrov (2017, arXiv:1701.05369), equation 14.
K1, K2, K3 = 0.63576, 1.87320, 1.48695


class Moments(NamedTuple):
    """Parameters of a layer's posterior; several layers with the same inputs make one by concatenation.

    Attributes:
        mean: `[*shape]`, or of every member, `[K, *shape]`.
        log_var: `[*shape]`, not clamped yet.
        factor: C of `low_rank`, `[d, *shape]`, or None.
        bias: `[out]`, or `[K, out]`.
        noise: of given `Draws`, `[D, *shape]`, or None.
    """

    mean: Tensor
    log_var: Tensor
    factor: Tensor | None
    bias: Tensor
    noise: Tensor | None


class BayesLayer(nn.Module, ABC):
    """What linear layers and convolutions have in common; the bias is deterministic (one for each member).

    `forward(x, weights)` has three modes. `"mean"`: by the mean weights. `"sample"`: by the local reparameterisation
    of Kingma, Salimans and Welling (2015, arXiv:1506.02557), a fresh draw of every output from its exact Gaussian
    instead of a draw of weights. `Draws`: by D fixed draws; x is then `[D, B, ...]`, or `[1, B, ...]` for all draws
    alike, and the result `[D, B, ...]`.

    Attributes:
        key: name by which `Draws.noise` knows the layer.
    """

    def __init__(self, shape: tuple[int, ...], settings: Variational) -> None:
        super().__init__()
        self.settings, self.key = settings, ""
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

    def log_var(self) -> Tensor:
        """Log-variances in use, `[*shape]`, clamped so that neither exp nor its inverse overflows."""
        return self._clamped(self.weight_log_var)

    def _clamped(self, log_var: Tensor) -> Tensor:
        return bounded(log_var, -self.settings.log_var_limit, self.settings.log_var_limit)

    def moments(self, weights: Weights) -> Moments:
        """Everything a forward pass needs."""
        noise = weights.noise.get(self.key) if isinstance(weights, Draws) and weights.noise is not None else None
        return Moments(self.weight_mu, self.weight_log_var, self.weight_factor, self.bias, noise)

    def forward(self, x: Tensor, weights: Weights = "mean") -> Tensor:
        return self.evaluate(x, weights, self.moments(weights))

    def evaluate(self, x: Tensor, weights: Weights, m: Moments) -> Tensor:
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
                weight = weight + (0.5 * self._clamped(m.log_var)).exp() * m.noise
            if weight.ndim == m.log_var.ndim:  # nothing drew on the index or the noise
                weight = weight[None]
            y = self.batched(x, weight, bias if members else bias[None])
            y = y.expand(weights.size, *y.shape[1:])
            if weights.noise is not None:
                return y
            variance = self.batched(_square(x), self._clamped(m.log_var).exp()[None], None)
            return y + variance.clamp_min(VARIANCE_FLOOR).sqrt() * torch.randn_like(y)
        if weights == "mean":
            return self.product(x, m.mean.mean(0), m.bias.mean(0)) if members else self.product(x, m.mean, m.bias)
        variance = self.product(_square(x), self._clamped(m.log_var).exp(), None)
        y = self._sampled_index(x, m)
        return y + variance.clamp_min(VARIANCE_FLOOR).sqrt() * torch.randn_like(y)

    def _sampled_index(self, x: Tensor, m: Moments) -> Tensor:
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

    def kl_terms(self, m: Moments) -> tuple[Tensor, Tensor | None]:
        """KL(q || prior) by given moments, in nats, without the part that layers share; then C^T S^-1 C `[d, d]` or
        None.
        """
        s = self.settings
        with torch.autocast(m.mean.device.type, enabled=False):
            log_var, factor = self._clamped(m.log_var), m.factor
            copies = len(m.mean) if s.posterior == "members" else 1
            if s.prior == "log_uniform":
                log_alpha = log_var - 2 * m.mean.abs().clamp_min(1e-8).log()
                kl = K1 * (1 - torch.sigmoid(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)
                return kl.sum() / copies, None
            second_moment = m.mean.square().sum() / copies + log_var.exp().sum()
            gram = None
            if factor is not None:
                second_moment = second_moment + factor.square().sum()
                scaled = (factor * (-0.5 * log_var).exp()).flatten(1)
                gram = scaled @ scaled.T
            constant = log_var.numel() * (1.0 + math.log(s.prior_precision))
            return 0.5 * (s.prior_precision * second_moment - log_var.sum() - constant), gram

    def kl_divergence(self) -> Tensor:
        """KL(q || prior) of this layer alone, a scalar in nats: the sum over weights, in float32 under autocast.

        Gaussian prior of precision k, per weight: (k (mu^2 + s^2) - 1 - log s^2 - log k) / 2, for `members` averaged
        over them (the KL of member and weights jointly), for `low_rank` with the determinant of s^2 I + C C^T.
        """
        part, gram = self.kl_terms(self.moments("mean"))
        return part if gram is None else part - _half_log_det(gram)


class BayesLinear(BayesLayer):
    """Linear layer y = x W^T + b with weights `[out, in]`; integer x `[..., 1]` stands for its one-hot vector."""

    def __init__(self, in_features: int, out_features: int, settings: Variational | None = None) -> None:
        super().__init__((out_features, in_features), settings or Variational())

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
        settings: Variational | None = None,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel_size, kernel_size), settings or Variational())
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


def joint_forward(layers: Sequence[BayesLinear], x: Tensor, weights: Weights) -> list[Tensor]:
    """Several layers of equal settings on the same input, by one matrix product; each one's output."""
    joint = _joint_moments(layers, weights)
    sizes = [len(layer.weight_log_var) for layer in layers]
    return list(layers[0].evaluate(x, weights, joint).split(sizes, -1))


def _joint_moments(layers: Sequence[BayesLayer], weights: Weights) -> Moments:
    """Those of one layer with all the outputs."""
    if len(layers) == 1:
        return layers[0].moments(weights)
    parts = [layer.moments(weights) for layer in layers]
    mean, log_var, factor, bias, noise = zip(*parts, strict=True)
    given = next((values for values in noise if values is not None), None)
    if given is not None:  # a layer without an entry has its mean
        noise = tuple(given.new_zeros(len(given), *p.log_var.shape) if p.noise is None else p.noise for p in parts)
    return Moments(
        torch.cat(mean, -2),
        torch.cat(log_var, -2),
        None if factor[0] is None else torch.cat(factor, -2),
        torch.cat(bias, -1),
        None if given is None else torch.cat(noise, -2),
    )


def _square(x: Tensor) -> Tensor:
    return x.square() if x.is_floating_point() else x  # a one-hot vector is its own square


def _half_log_det(gram: Tensor) -> Tensor:
    """log det(I + gram) / 2; by eigenvalues, because rounding can make a gram of wide spread indefinite."""
    return 0.5 * torch.linalg.eigvalsh(gram).clamp_min(0).log1p().sum()


def bayesian_layers(module: nn.Module) -> dict[str, BayesLayer]:
    """All variational layers in the tree below `module` by name, in registration order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BayesLayer)}


def kl_divergence(module: nn.Module) -> Tensor:
    """KL(q || prior) of the tree below `module`: a scalar in nats, summed over layers, 0 without any."""
    return joint_kl(bayesian_layers(module).values())


def joint_kl(layers: Iterable[BayesLayer]) -> Tensor:
    """KL(q || prior) of all `layers` jointly: a scalar in nats.

    `low_rank` layers share their index, so that their determinant is taken jointly: the whole exceeds the sum of the
    layers' own divergences by what they tell about each other.
    """
    groups: dict[Any, list[BayesLayer]] = {}
    for layer in layers:  # linear layers of equal inputs at once: many small operations take longer than few
        alone = not isinstance(layer, BayesLinear)
        groups.setdefault((layer.settings, layer.weight_mu.shape[-1], id(layer) if alone else 0), []).append(layer)
    parts = [group[0].kl_terms(_joint_moments(group, "mean")) for group in groups.values()]
    if not parts:
        return torch.zeros(())
    total = torch.stack([part for part, _ in parts]).sum() if len(parts) > 1 else parts[0][0]
    grams = [gram for _, gram in parts if gram is not None]
    return total - _half_log_det(torch.stack(grams).sum(0)) if grams else total
