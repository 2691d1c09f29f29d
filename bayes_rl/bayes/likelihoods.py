"""Likelihoods p(y | s, a, w) of a return y, whose parameters a critic's head outputs for each action.

Every method takes `raw`, the outputs of the head for each action, `[..., n]`, of any float type, and computes in
float32 (call it outside autocast). Values, standard deviations and quantiles are in units of the return. Shapes that
would broadcast raise `ValueError`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayes_rl.bayes.ops import clamp_with_inward_gradient
from bayes_rl.errors import check, check_choice, check_same_shape
from bayes_rl.utils.registry import Registry


def gaussian_nll(q: Tensor, td_target: Tensor, noise_std: Tensor | float) -> Tensor:
    """Return -log N(td_target | q, noise_std^2) in nats, shaped as `q`.

    It is half the squared TD error over the noise variance, with its normalising constant, because a bare squared
    error is not a likelihood; `noise_std` may be learned.
    """
    check_same_shape(q=q, td_target=td_target)
    log_std = noise_std.log() if isinstance(noise_std, Tensor) else math.log(noise_std)
    return 0.5 * ((td_target - q) / noise_std).square() + (log_std + 0.5 * math.log(2 * math.pi))


def sampled_log_prob(logits: Tensor, u: Tensor) -> Tensor:
    """Return log p_b of a class b ~ p = softmax(logits), drawn by the inverse of p's distribution function at `u`.

    Args:
        logits: `[..., n]`.
        u: `[...]`, uniform in [0, 1): the randomness of the draw, through which no gradient flows.

    Returns:
        `[...]` in nats, <= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    check_same_shape(logits=logits[..., 0], u=u)
    cdf = logits.detach().softmax(-1).cumsum(-1)
    # Rounding can make the last sum differ from 1, and u equal to 1. Scaled by the last sum and limited to the largest
    # float below 1, u always falls into a class of positive probability.
    below_one = 1 - torch.finfo(cdf.dtype).eps / 2
    drawn = (cdf <= u.to(cdf.dtype).clamp_max(below_one)[..., None] * cdf[..., -1:]).sum(-1, keepdim=True)
    return logits.log_softmax(-1).gather(-1, drawn).squeeze(-1)


NOISE_STD_RANGE = (1e-3, 1e3)
"""Bounds of a learned standard deviation, in units of the return."""


NOISE_GRADIENT = 0.01
"""Factor of the gradient of a noise that shares the features of the value."""


class Likelihood(nn.Module, ABC):
    """Interface of likelihoods: one predictive distribution of the return for each action.

    Attributes:
        outputs: n, the number of outputs of the critic's head for an action.
        bounds: smallest and largest return that the family holds; a target beyond them counts as the nearest bound.
        ignored_settings: fields of `LikelihoodSettings` that the family does not read.
        bootstraps_variance: whether the family learns the variance of returns, for which an update calls
            `return_nll` with the variance of the next state's returns.
    """

    outputs: int
    bounds: tuple[float, float] = (-math.inf, math.inf)
    ignored_settings: tuple[str, ...] = ()
    bootstraps_variance: bool = False

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: LikelihoodSettings) -> Likelihood:
        """Return a likelihood with those of the settings that it uses.

        Raises:
            ConfigError: if one of them cannot work.
        """

    @abstractmethod
    def value(self, raw: Tensor) -> Tensor:
        """Return the expected return: `[..., n]` to `[...]`."""

    @abstractmethod
    def std(self, raw: Tensor) -> Tensor:
        """Return the standard deviation of the return given the weights: `[..., n]` to `[...]`, > 0."""

    @abstractmethod
    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        """Return -log p(target) in nats: `[..., n]` and `[...]` to `[...]`; no gradient flows through the target."""

    def return_nll(self, raw: Tensor, target: Tensor, variance: Tensor, realised: Tensor | None) -> Tensor:
        """Return -log p(y) in nats of the return y, whose mean learns from the TD target: `[...]`.

        Only families with `bootstraps_variance` implement it.

        Args:
            raw: `[..., n]`.
            target: TD targets `[...]`, without gradient.
            variance: variances of the return around the targets `[...]`, without gradient.
            realised: realised returns `[...]`, NaN where they are not known; None if none is known.
        """
        raise NotImplementedError(f"{type(self).__name__} does not learn the variance of returns")

    @abstractmethod
    def fisher_score(self, raw: Tensor, u: Tensor) -> Tensor:
        """Return a scalar whose squared gradient, in expectation over `u`, is the Fisher diagonal.

        It can be differentiated by `vmap(grad(...))`.

        Args:
            raw: `[n]` (or `[..., n]`, one score for each).
            u: `[]` (or `[...]`), uniform in [0, 1): the randomness of a draw y ~ p(. | w), where one is needed.
        """

    @abstractmethod
    def quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """Return quantiles given the weights: `[..., n]` and levels `[L]` in [0, 1] to `[..., L]`."""

    def _read(self, raw: Tensor) -> Tensor:
        # Without this check, 1 output would broadcast to n bins, and a Gaussian would ignore all outputs but the first.
        if raw.shape[-1:] != (self.outputs,):
            raise ValueError(f"the last axis must have {self.outputs} numbers, got raw {tuple(raw.shape)}")
        return raw.float()

    def _read_pair(self, raw: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        if raw.shape[:-1] != other.shape:
            shapes = f"raw {tuple(raw.shape)} and {tuple(other.shape)}"
            raise ValueError(f"shapes must be equal but for raw's last axis, got {shapes}")
        return self._read(raw), other.detach().float()

    def _read_levels(self, raw: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        if levels.ndim != 1:
            raise ValueError(f"levels must have one axis, got {tuple(levels.shape)}")
        return self._read(raw), levels.detach().float()


LIKELIHOODS: Registry[type[Likelihood]] = Registry("model.likelihood.family")
"""Likelihoods by the value of the option `model.likelihood.family`."""

register_likelihood = LIKELIHOODS.register
"""Decorator of a `Likelihood` that makes it a value of the option `model.likelihood.family`."""


# ------------------------------------------------------------------ Gaussians
class _Gaussian(Likelihood):
    """N(y | raw, exp(log_noise)^2), with one noise for all states and actions."""

    outputs = 1
    ignored_settings = ("value_range", "num_bins")
    log_noise: Tensor

    def log_std(self) -> Tensor:
        return self.log_noise

    def value(self, raw: Tensor) -> Tensor:
        return self._read(raw)[..., 0]

    def std(self, raw: Tensor) -> Tensor:
        return self.log_std().exp().expand(self._read(raw).shape[:-1])

    def noise(self) -> Tensor | float:
        """Return the standard deviation in units of the return; if fixed as a number, which costs no operation."""
        return self.log_std().exp()

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        raw, target = self._read_pair(raw, target)
        return gaussian_nll(raw[..., 0], target, self.noise())

    def fisher_score(self, raw: Tensor, u: Tensor) -> Tensor:
        # value / std: E[(d log p / dw)^2] = (d value / dw)^2 / std^2 exactly, so nothing is drawn. The noise is no
        # function of the protected weights, hence a constant here.
        raw, _ = self._read_pair(raw, u)
        return raw[..., 0] * (-self.log_std().detach()).exp()

    def quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        raw, levels = self._read_levels(raw, levels)
        return raw + self.log_std().exp() * torch.special.ndtri(levels)  # [..., 1] + [L]


@register_likelihood("gaussian")
class GaussianLikelihood(_Gaussian):
    """N(y | raw, noise_std^2): the noise is fixed, > 0, in units of the return."""

    def __init__(self, noise_std: float) -> None:
        super().__init__()
        check(0 < noise_std < math.inf, "model.likelihood.noise_std", noise_std, "must be positive and finite")
        self.noise_std = noise_std  # a number, so that `nll` need not compute the exponential of `log_noise`
        self.register_buffer("log_noise", torch.tensor(math.log(noise_std)), persistent=False)

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> GaussianLikelihood:
        """Return a likelihood with those of the settings that it uses."""
        return cls(settings.noise_std)

    def noise(self) -> float:
        """Return the fixed standard deviation as a number."""
        return self.noise_std

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"noise_std={self.noise_std:g}"


@register_likelihood("learned_gaussian")
class LearnedGaussianLikelihood(_Gaussian):
    """N(y | raw, exp(log_noise)^2): the noise is learned by maximum likelihood, starting from `noise_std`.

    `log_noise` is a scalar parameter, used clamped to the logarithms of `NOISE_STD_RANGE`.
    """

    def __init__(self, noise_std: float) -> None:
        super().__init__()
        low, high = NOISE_STD_RANGE
        check(
            low <= noise_std <= high,
            "model.likelihood.noise_std",
            noise_std,
            f"must lie within {low:g} and {high:g} to learn",
        )
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise_std)))

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> LearnedGaussianLikelihood:
        """Return a likelihood with those of the settings that it uses."""
        return cls(settings.noise_std)

    def log_std(self) -> Tensor:
        """Return the logarithm of the clamped standard deviation."""
        low, high = NOISE_STD_RANGE
        return clamp_with_inward_gradient(self.log_noise, math.log(low), math.log(high))


@register_likelihood("return_gaussian")
class ReturnGaussianLikelihood(Likelihood):
    """N(y | q, s^2) with a learned standard deviation s of the return for each action, a function of the state.

    The mean q learns from TD targets, s from realised returns. The likelihood is greatest where s is the root mean
    square of y - q, in which errors of q count as well as chance. Where the end of a return is not known, the square of
    y - q is replaced by its expectation over returns y whose mean is the TD target, with a bootstrapped variance
    (Sobel 1982).

    s is the exponential of the second output, times `noise_std`, clamped to `NOISE_STD_RANGE`.
    """

    outputs = 2
    bootstraps_variance = True
    ignored_settings = ("value_range", "num_bins")

    def __init__(self, noise_std: float) -> None:
        super().__init__()
        low, high = NOISE_STD_RANGE
        problem = f"must lie within {low:g} and {high:g} to learn"
        check(low <= noise_std <= high, "model.likelihood.noise_std", noise_std, problem)
        self.first_log_std = math.log(noise_std)

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> ReturnGaussianLikelihood:
        """Return a likelihood with those of the settings that it uses."""
        return cls(settings.noise_std)

    def value(self, raw: Tensor) -> Tensor:
        """Return the expected return: `[..., 2]` to `[...]`."""
        return self._read(raw)[..., 0]

    def log_std(self, raw: Tensor) -> Tensor:
        """Return the logarithm of the standard deviation: `[..., 2]` to `[...]`."""
        low, high = NOISE_STD_RANGE
        return clamp_with_inward_gradient(self.first_log_std + self._read(raw)[..., 1], math.log(low), math.log(high))

    def std(self, raw: Tensor) -> Tensor:
        """Return the standard deviation of the return: `[..., 2]` to `[...]`."""
        return self.log_std(raw).exp()

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        """Return -log N(target | q, s^2) in nats: `[..., 2]` and `[...]` to `[...]`."""
        raw, target = self._read_pair(raw, target)
        return gaussian_nll(raw[..., 0], target, self.std(raw))

    def return_nll(self, raw: Tensor, target: Tensor, variance: Tensor, realised: Tensor | None) -> Tensor:
        """Return -log N(y | q, s^2) of the return y: `[...]`, with the gradient of a TD target by q.

        The gradient by q is that of noise 1. The exact gradient is divided by s^2, so that states of little noise,
        which are states of small values, would outweigh all others (Stirn et al. 2023, arXiv:2212.09184).

        The gradient by s is multiplied by `NOISE_GRADIENT`. The features learn from both gradients. That by the
        logarithm of s, 1 - (y - q)^2 / s^2, is of order one whatever the units of the return, and would hide the
        gradient by q, a TD error of a tenth. With plain heads, Adam's steps for the weights of s
        hardly depend on the factor. With Bayesian heads, the KL divergence of these weights counts 1 / `NOISE_GRADIENT`
        times as much.

        Args:
            raw: `[..., 2]`.
            target: TD targets `[...]`.
            variance: variances of the return around the targets `[...]`, >= 0.
            realised: realised returns `[...]`, NaN where they are not known; None if none is known.
        """
        raw, target = self._read_pair(raw, target)
        check_same_shape(target=target, variance=variance)
        q, log_std = raw[..., 0], self.log_std(raw)
        squared_error = (target - q).square()
        second_moment = squared_error.detach() + variance.detach()
        if realised is not None:
            check_same_shape(target=target, realised=realised)
            squares = (realised - q.detach()).square()
            second_moment = torch.where(squares.isnan(), second_moment, squares)
        nll = 0.5 * second_moment * (-2 * log_std).exp() + (log_std + 0.5 * math.log(2 * math.pi))
        # Each difference is zero, and has the gradient by s or by q.
        of_noise, of_value = nll - nll.detach(), 0.5 * (squared_error - squared_error.detach())
        return nll.detach() + NOISE_GRADIENT * of_noise + of_value

    def fisher_score(self, raw: Tensor, u: Tensor) -> Tensor:
        """Return q / s, whose squared derivative by q is the Fisher information of q."""
        # Of q alone, as for the other Gaussians: the noise is a constant here.
        raw, _ = self._read_pair(raw, u)
        return raw[..., 0] * (-self.log_std(raw).detach()).exp()

    def quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        """Return quantiles of the return: `[..., 2]` and levels `[L]` to `[..., L]`."""
        raw, levels = self._read_levels(raw, levels)
        return raw[..., :1] + self.std(raw)[..., None] * torch.special.ndtri(levels)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"noise_std={math.exp(self.first_log_std):g}"


# ------------------------------------------------------------------ histograms
class _Histogram(Likelihood):
    """Masses softmax(raw) of n equal bins, each mass spread uniformly over its bin.

    Within, returns are positions, counted in bins from the first bin's centre: `first + width * position`. Sums over
    bins are written out, as a matrix product may run in TF32.

    `nll` is the cross-entropy from the projected target, in nats of masses: add log `width` to compare it with a
    density. Targets beyond `low` and `high` count as these.
    """

    ignored_settings = ("noise_std",)
    index: Tensor
    first: float
    width: float

    def __init__(self, low: float, high: float, num_bins: int) -> None:
        super().__init__()
        ordered = -math.inf < low < high < math.inf
        check(ordered, "model.likelihood.value_range", (low, high), "must be two finite numbers, the smaller one first")
        check(num_bins >= 2, "model.likelihood.num_bins", num_bins, "must be 2 or more")
        self.low, self.high, self.outputs = low, high, num_bins
        self.bounds = (low, high)
        self.register_buffer("index", torch.arange(num_bins, dtype=torch.float32), persistent=False)

    def project(self, target: Tensor) -> Tensor:
        """Project returns `[...]` to the masses `[..., n]` that the softmax should match; they sum to 1."""
        return self._masses((target.detach().float().clamp(self.low, self.high) - self.first) / self.width)

    @abstractmethod
    def _masses(self, position: Tensor) -> Tensor:
        """Return masses of returns at positions `[...]`, `[..., n]`, summing to 1."""

    def value(self, raw: Tensor) -> Tensor:
        return self.first + self.width * (self._read(raw).softmax(-1) * self.index).sum(-1)

    def std(self, raw: Tensor) -> Tensor:
        probs = self._read(raw).softmax(-1)
        offset = self.index - (probs * self.index).sum(-1, keepdim=True)
        within = 1 / 12  # variance of a uniform density, over a bin
        return self.width * ((probs * offset.square()).sum(-1) + within).sqrt()

    def nll(self, raw: Tensor, target: Tensor) -> Tensor:
        raw, target = self._read_pair(raw, target)
        return -(self.project(target) * raw.log_softmax(-1)).sum(-1)

    def fisher_score(self, raw: Tensor, u: Tensor) -> Tensor:
        return sampled_log_prob(*self._read_pair(raw, u))  # log p_b of a bin b ~ p

    def quantiles(self, raw: Tensor, levels: Tensor) -> Tensor:
        raw, levels = self._read_levels(raw, levels)
        cdf = raw.softmax(-1).cumsum(-1)
        cdf = cdf / cdf[..., -1:]  # ends at 1 exactly
        # The left inverse: the first bin at whose end the level is reached.
        reached = (cdf[..., None, :] < levels[:, None]).sum(-1)
        below = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], -1).gather(-1, reached)
        mass = (cdf.gather(-1, reached) - below).clamp_min(torch.finfo(cdf.dtype).tiny)  # 0 only at level 0
        return self.first + self.width * (reached - 0.5 + (levels - below) / mass)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"low={self.low:g}, high={self.high:g}, num_bins={self.outputs}"


@register_likelihood("hl_gauss")
class HLGaussLikelihood(_Histogram):
    """Histogram on [low, high] fitted to a Gaussian around the target: HL-Gauss.

    Imani and White (2018, arXiv:1806.04613), Farebrother et al. (2024, arXiv:2403.03950).

    Bin i should have the mass of N(target, sigma^2) between its edges, normalised over [low, high]. The mean of these
    masses is the target except within some 3 sigma of an end, where it is drawn inward (by 0.8 sigma at the end
    itself): leave that margin. A perfectly known return keeps a standard deviation of about sigma.

    Args:
        low: smallest return, the lower edge of the first bin.
        high: largest return, the upper edge of the last bin.
        num_bins: n, at least 2.
        sigma_ratio: sigma in bin widths, > 0.

    Raises:
        ConfigError: if the range or the number of bins cannot work.
        ValueError: if `sigma_ratio` is not positive and finite.
    """

    edges: Tensor

    def __init__(self, low: float, high: float, num_bins: int, sigma_ratio: float = 0.75) -> None:
        super().__init__(low, high, num_bins)
        if not 0 < sigma_ratio < math.inf:  # no option of the command line
            raise ValueError(f"sigma_ratio must be positive and finite, got {sigma_ratio}")
        self.sigma_ratio = sigma_ratio
        self.width = (high - low) / num_bins
        self.first = low + self.width / 2
        self.register_buffer("edges", torch.arange(num_bins + 1, dtype=torch.float32) - 0.5, persistent=False)

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> HLGaussLikelihood:
        """Return a likelihood with those of the settings that it uses."""
        return cls(*settings.value_range, settings.num_bins)

    def _masses(self, position: Tensor) -> Tensor:
        # 2 Phi(z) - 1 = erf(z / sqrt 2) rounds both tails alike. The target lies within, so the sum does not vanish.
        mass = torch.erf((self.edges - position[..., None]) / (math.sqrt(2) * self.sigma_ratio)).diff(dim=-1)
        return mass / mass.sum(-1, keepdim=True)


@register_likelihood("two_hot")
class TwoHotLikelihood(_Histogram):
    """Histogram around the atoms linspace(low, high, num_bins), fitted to the two neighbours of the target.

    The neighbours' masses are in the proportion whose mean is the target.

    Args:
        low: smallest return, the first atom (its bin reaches half a width below).
        high: largest return, the last atom (its bin reaches half a width above).
        num_bins: n, at least 2.
    """

    def __init__(self, low: float, high: float, num_bins: int) -> None:
        super().__init__(low, high, num_bins)
        self.width = (high - low) / (num_bins - 1)
        self.first = low

    @classmethod
    def from_settings(cls, settings: LikelihoodSettings) -> TwoHotLikelihood:
        """Return a likelihood with those of the settings that it uses."""
        return cls(*settings.value_range, settings.num_bins)

    def _masses(self, position: Tensor) -> Tensor:
        return (1 - (self.index - position[..., None]).abs()).clamp_min(0.0)


# ------------------------------------------------------------------ settings
@dataclass(frozen=True)
class LikelihoodSettings:
    """Likelihood of a return; each family uses the settings that it needs.

    Args:
        family: `gaussian` of fixed noise_std, `learned_gaussian` of one learned noise, `return_gaussian` of a noise
            learned for each state and action, or categorical over bins: `hl_gauss`, `two_hot`. Or a likelihood
            registered by the user.
        noise_std: standard deviation of the Gaussians, the initial one if it is learned, in units of the return, > 0.
        value_range: smallest and largest return of the categorical families.
        num_bins: of the categorical families, >= 2.

    Raises:
        ConfigError: if there is no such family. Its own settings are checked by the family.
    """

    family: str = "gaussian"
    noise_std: float = 1.0
    value_range: tuple[float, float] = (-10.0, 10.0)
    num_bins: int = 51

    def __post_init__(self) -> None:
        check_choice(LIKELIHOODS.key, self.family, LIKELIHOODS)


def make_likelihood(settings: LikelihoodSettings) -> Likelihood:
    """Return the likelihood that the settings name.

    Raises:
        ConfigError: if one of the settings that it uses cannot work.
    """
    return LIKELIHOODS[settings.family].from_settings(settings)
