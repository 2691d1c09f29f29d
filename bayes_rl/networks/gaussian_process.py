"""Gaussian process of the deviations of Q from its mean, with a covariance in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode, draws_by_seed
from bayes_rl.bayes.posteriors import MeanField
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.networks.random_features import RandomFourierFeatures
from bayes_rl.utils.ranks import average_over_ranks
from bayes_rl.utils.seeds import Domain, derived_seed

SLOWEST_RATE = 1e-3
"""Weight of the newest minibatch in the moments of the features, after the first 1000 minibatches."""
WEIGHT_OF_MEAN_NOISE = 0.1
"""Weight of the mean noise relative to that of the network's noise, in a state with v = v' (see `GaussianProcess`)."""
ROUNDING = 1e-7
"""Bound of the errors of the moments' eigenvalues in float32, relative to their sum. It is added to the eigenvalues."""


class GaussianProcess(nn.Module):
    """Gaussian process f(s, a) of the deviations of Q from its mean.

    f(s, a) = scale noise(s, a) w_a . phi(s). The features phi are fixed random Fourier features of the state, so that
    w_a . phi with w_a ~ N(0, I) is a Gaussian process whose kernel is Gaussian (Rahimi and Recht 2007). The target of
    each of the N transitions of the replay is Q + f plus Gaussian noise, whose standard deviation noise(s, a) the
    likelihood has learned. As in the conjugate prior of a regression, f is measured in units of this noise: in these
    units every transition has noise 1, and Q is less certain where returns scatter more. The posterior of w_a is
    Gaussian. Its mean is fixed at 0, because the critics learn the mean of Q. Its precision is

        I + scale^2 (N / T) E[1(a_i = a) phi_i phi_i^T],

    where E is the mean over the transitions of the replay and T the temperature of the KL divergence. The covariance of
    w_a is full, and exact for given E. Different actions are independent. E is estimated by a moving average over
    minibatches, as in SNGP (Liu et al. 2020, arXiv:2006.10108). Nothing is learned by gradients, so that the networks
    learn exactly as plain ones.

    Two corrections use v, the variance of w_a . phi(s), and v', its mean over the replay:

    * A network's noise says nothing in states that are unlike all others. The logarithm of noise(s, a) is therefore a
      weighted mean: the network's log noise has the weight v', and `mean_log_noise` has the weight
      `WEIGHT_OF_MEAN_NOISE` v. With n data near (s, a), v is about 1 / (1 + scale^2 n / T).
    * The features cannot express all that states differ by. Each state has an error of its own, whose variance is
      taken to be v': the standard deviation of Q has v + v' in the place of v. A draw is without these errors,
      because they would change its actions at random from one state to the next.

    Args:
        observation_shape: shape of one observation.
        num_actions: A.
        num_features: m, >= 1.
        length_scale: see `RandomFourierFeatures`.
        scale: prior standard deviation of f in units of the noise, > 0.

    Attributes:
        moments: moving average of 1(a_i = a) phi_i phi_i^T, `[A, m, m]`.
        count: number of minibatches since the units of the features were chosen.
        mean_log_noise: moving average of log noise_i, a scalar.
        root: L_a^-1, `[A, m, m]`, where L_a is the lower Cholesky factor of the precision L_a L_a^T of w_a. A draw of
            w_a is root_a^T z with z ~ N(0, I).
        mean_variance: v', a scalar; 0 before the first datum.
        divergence: KL(posterior || prior) of all w_a in nats, a scalar.
    """

    moments: Tensor
    count: Tensor
    mean_log_noise: Tensor
    root: Tensor
    mean_variance: Tensor
    divergence: Tensor

    def __init__(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        num_features: int,
        length_scale: float,
        scale: float,
    ) -> None:
        super().__init__()
        self.features = RandomFourierFeatures(observation_shape, num_features, length_scale)
        self.scale = scale
        self.register_buffer("moments", torch.zeros(num_actions, num_features, num_features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean_log_noise", torch.zeros(()))
        self.register_buffer("root", torch.eye(num_features).repeat(num_actions, 1, 1))
        self.register_buffer("mean_variance", torch.zeros(()))
        self.register_buffer("divergence", torch.zeros(()))

    @torch.no_grad()
    def restart(self, states: Sequence[Tensor]) -> None:
        """Choose the units of the features by states of the replay. The next observation replaces the moments.

        Args:
            states: prepared observations, `[B, ...]` each.
        """
        self.features.measure(states)
        self.count.zero_()
        self.moments.zero_()  # otherwise a NaN would stay

    @torch.no_grad()
    def observe(self, x: Tensor, action: Tensor, noise_std: Tensor) -> None:
        """Add a minibatch to the moments. The parts of all ranks are one minibatch.

        Args:
            x: observations that `TwinActorCritic.prepare` returned, `[B, ...]`.
            action: actions, `[B]`.
            noise_std: standard deviation of a return under the likelihood, `[B]`, in return units. The mean is that of
                the finite logarithms.
        """
        with torch.autocast(x.device.type, enabled=False):
            features = self.features(x)
            chosen = action == torch.arange(len(self.moments), device=x.device)[:, None]  # `[A, B]`
            log_noise = noise_std.float().log()
            finite = log_noise.isfinite()
            moments, total, known = average_over_ranks(
                (features.t() * chosen[:, None]) @ features / len(x),
                log_noise.where(finite, 0.0).sum(),
                finite.sum(dtype=log_noise.dtype),
            )
            self.count += 1
            rate = self.count.reciprocal().clamp_min(SLOWEST_RATE)
            self.moments.lerp_(moments, rate)
            self.mean_log_noise.lerp_(torch.where(known > 0, total / known, self.mean_log_noise), rate)

    @torch.no_grad()
    def update_posterior(self, data_weight: float) -> None:
        """Compute the posterior from the moments.

        Args:
            data_weight: N / T.
        """
        size = self.moments.shape[-1]
        # MPS has no float64.
        device = torch.device("cpu") if self.moments.device.type == "mps" else self.moments.device
        identity = torch.eye(size, dtype=torch.float64, device=device)
        moments = self.moments.to(identity)
        moments = moments + ROUNDING * moments.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None] * identity
        precision = identity + self.scale**2 * data_weight * moments
        # The factor exists, because no eigenvalue is below 1. `cholesky`, which looks, would wait for a GPU.
        factor = torch.linalg.cholesky_ex(precision).L
        root = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()  # of the precision
        self.mean_variance.copy_((root @ moments * root).sum())
        self.divergence.copy_(0.5 * (root.square().sum() - len(self.moments) * size + log_det))
        self.root.copy_(root)

    def _projections(self, x: Tensor) -> Tensor:
        """Map prepared observations `[B, ...]` to root_a phi for every action, `[B, A, m]`.

        The square of the norm over the last axis is the variance of w_a . phi.
        """
        with torch.autocast(x.device.type, enabled=False):
            return (self.features(x) @ self.root.flatten(0, 1).t()).unflatten(1, self.root.shape[:2])

    def unit(self, noise_std: Tensor, variance: Tensor) -> Tensor:
        """Return the units of the deviations, scale noise(s, a): `[..., A]` in return units.

        Args:
            noise_std: standard deviation of a return under the likelihood, `[..., A]`, in return units, > 0.
            variance: variance of w_a . phi(s), `[..., A]`.
        """
        of_mean = WEIGHT_OF_MEAN_NOISE * variance
        return self.scale * noise_std.log().lerp(self.mean_log_noise, of_mean / (of_mean + self.mean_variance)).exp()

    def total_std(self, unit: Tensor, variance: Tensor) -> Tensor:
        """Return the standard deviation of f with the error of each state, `[..., A]` in return units.

        Args:
            unit: result of `unit`, `[..., A]`.
            variance: variance of w_a . phi(s), `[..., A]`.
        """
        return unit * (variance + self.mean_variance).sqrt()

    def forward(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the deviations of every draw in their units (see `unit`), and their variances.

        Args:
            x: observations that `TwinActorCritic.prepare` returned: `[D, B, ...]` with an own batch for each draw, or
                `[1, B, ...]` with one batch for all draws.
            draws: D draws, whose index `[D, A * m]` holds standard normal numbers, ordered by action.

        Returns:
            w_a . phi(s) of every draw, `[D, B, A]` float32, and its variance over draws, `[D or 1, B, A]` float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            projections = self._projections(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            variance = projections.square().sum(-1)
            index = draws.index.unflatten(1, self.root.shape[:2])
            if len(x) == len(index):  # a state for each draw
                return (index[:, None] * projections).sum(-1), variance
            return torch.einsum("dam,bam->dba", index, projections[0]), variance


class NormalIndex(MeanField):
    """Posterior of networks with plain layers and a Gaussian process: a vector of normal numbers identifies a draw.

    Args:
        size: length of this vector, A * m.
    """

    def __init__(self, size: int) -> None:
        super().__init__(PosteriorSettings())
        self.index_size = size

    def training_mode(self, device: torch.device) -> WeightMode:
        """Return `mean`: an update needs no draws."""
        return "mean"

    def value_draws(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> Draws:
        """Return `count` draws from fixed seeds, with index `[count, size]`; no layer has noise."""
        return draws_by_seed(self, {}, [derived_seed(Domain.VALUE_DRAW, number) for number in range(count)])
