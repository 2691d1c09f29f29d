"""Interface and registry of posterior families."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode, draws_by_seed
from bayes_rl.bayes.ops import add_noise
from bayes_rl.bayes.parameters import PosteriorParameters, join
from bayes_rl.bayes.priors import PRIORS, Prior, WeightwiseGaussianPrior
from bayes_rl.errors import ConfigError, check
from bayes_rl.utils.registry import Registry

if TYPE_CHECKING:
    from bayes_rl.bayes.layers import BayesLayer
    from bayes_rl.bayes.settings import PosteriorSettings


class KLTerms(NamedTuple):
    """KL divergence of layers from their prior, before what layers share is added.

    Attributes:
        own: part that adds up over layers, a scalar in nats.
        shared: what the layers contribute to `PosteriorFamily.shared_kl`, or None without such a part.
    """

    own: Tensor
    shared: Tensor | None = None


class PosteriorFamily(ABC):
    """Family of distributions q over the weights of layers, and the index that names a draw.

    A weight is w = g(index) + s eps. The index is a random vector that all layers of a network share: it makes
    weights depend on each other, also across layers. The diagonal part, s times a standard normal eps, is independent
    for each weight, so that outputs can be drawn instead of weights (local reparameterisation).

    A family of one's own is a subclass that is registered by name:

    ```python
    @register_posterior("my_family")
    class MyFamily(PosteriorFamily): ...
    ```

    It implements `add_parameters`, `weights` and `kl_terms`, and whatever else differs from the defaults here.
    `tests/bayes/posterior_case.py` is a base class of tests that every family should pass.

    Args:
        settings: of the posterior.
        sequential: keep a Gaussian prior for each weight, which the posterior can become (see `become_prior`).

    Attributes:
        index_size: d, the length of an index, 0 if layers share nothing.
        prior: of every layer.
        mean_parameters: names of a layer's parameters that the mean prediction depends on. EWC anchors these alone.
        extra_parameters: names of a layer's parameters that `weights` or `kl_terms` need besides mean, bias and
            log-variance, each `[..., *shape]`.
        priors: values of `model.posterior.prior` for which `kl_terms` has a closed form.
        anchoring_obstacle: why EWC cannot protect the family, put behind the name of the method; empty if it can.
        cuda_graph_obstacle: why an update cannot be recorded as a CUDA graph; empty if it can.
    """

    index_size: int = 0
    mean_parameters: tuple[str, ...] = ("weight_mu", "bias")
    extra_parameters: tuple[str, ...] = ()
    priors: tuple[str, ...] = ("gaussian", "log_uniform")
    anchoring_obstacle: str = ""
    cuda_graph_obstacle: str = ""

    def __init__(self, settings: PosteriorSettings, sequential: bool = False) -> None:
        self.settings, self.sequential = settings, sequential
        self.prior: Prior = PRIORS[settings.prior](settings)

    @classmethod
    def check(cls, settings: PosteriorSettings) -> None:
        """Raise `ConfigError` unless the family can have these settings."""
        able = [name for name in POSTERIORS if settings.prior in POSTERIORS[name].priors]
        rule = f"has a closed form for single weights only: choose posterior {' or '.join(able)}, or prior gaussian"
        check(settings.prior in cls.priors, "model.posterior.prior", settings.prior, rule)

    # ------------------------------------------------------------------ parameters
    @abstractmethod
    def add_parameters(self, layer: BayesLayer) -> None:
        """Create the parameters of a layer with weights `[*layer.shape]`."""

    def raw_log_var(self, layer: BayesLayer) -> Tensor:
        """Return log s^2 of a layer's weights before it is clamped, `[*shape]`."""
        return layer.weight_log_var

    def parameters(self, layers: Sequence[BayesLayer], weights: WeightMode = "sample") -> PosteriorParameters:
        """Return the parameters of one layer that has the outputs of all `layers`.

        Args:
            layers: of equal settings and inputs.
            weights: how they will be used. Log-variances and priors are left out where nothing needs them.
        """
        noise = _joined_noise(layers, weights.noise) if isinstance(weights, Draws) and weights.noise else None
        certain = weights == "mean" or (isinstance(weights, Draws) and weights.noise is not None and noise is None)
        return PosteriorParameters(
            tuple(layer.weight_mu for layer in layers),
            tuple(layer.bias for layer in layers),
            () if certain else tuple(self.raw_log_var(layer) for layer in layers),
            self.settings.log_var_limit,
            self._prior_of(layers) if weights == "sample" else self.prior,
            {name: join([layer.get_parameter(name) for layer in layers]) for name in self.extra_parameters},
            noise,
        )

    def _prior_of(self, layers: Sequence[BayesLayer]) -> Prior:
        if not self.sequential:
            return self.prior
        means, precisions = [layer.prior_mean for layer in layers], [layer.prior_precision for layer in layers]
        return WeightwiseGaussianPrior(join(means), join(precisions))

    def become_prior(self, layer: BayesLayer) -> None:
        """Make the layer's posterior its prior, for variational continual learning.

        Raises:
            ConfigError: if the family does not implement it.
        """
        raise ConfigError("model.consolidation.method", "vcl", VCL_NEEDS)

    # ------------------------------------------------------------------ draws
    def draw_index(self, generator: torch.Generator) -> Tensor:
        """Return the index of one draw, `[d]` float32 on the CPU: standard normal numbers."""
        return torch.randn(self.index_size, generator=generator)

    def fresh_draws(self, count: int, device: torch.device) -> Draws:
        """Return `count` draws of the index, whose diagonal part is drawn for every output (`noise` None)."""
        return Draws(torch.randn(count, self.index_size, device=device))

    def training_mode(self, device: torch.device) -> WeightMode:
        """Return how an update evaluates the networks.

        Value and target share the draws of an index. Without an index a fresh sample of every output is enough.
        """
        return self.fresh_draws(self.settings.num_draws, device) if self.index_size else "sample"

    def value_draws(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> Draws:
        """Return the draws that estimates of values and their uncertainty are averaged over, on the CPU.

        Args:
            shapes: key to weight shape of every Bayesian layer; one draw is enough if there is none.
            count: draws of a family with infinitely many, named by the seeds 0, 1, ...
        """
        return draws_by_seed(self, shapes, list(range(count))) if shapes else Draws(torch.zeros(1, 0), {})

    def mean_draws(self, device: torch.device) -> Draws | None:
        """Return the draws whose mean output is the mean prediction, or None if the mean weights give it."""
        return None

    def index_second_moment(self) -> float:
        """Return E |index|^2, by which the scale of a function that is linear in the index is divided."""
        return float(self.index_size)

    # ------------------------------------------------------------------ weights and outputs
    @abstractmethod
    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and biases at given indices, without the diagonal part.

        Args:
            parameters: of a layer.
            index: `[D, d]`.

        Returns:
            Weights `[D or 1, *shape]` and biases `[D or 1, out]`, 1 if they do not depend on the index.
        """

    def mean(self, parameters: PosteriorParameters) -> tuple[Tensor, Tensor]:
        """Return mean weights `[*shape]` and biases `[out]`."""
        return parameters.mean, parameters.bias

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs of `[B, ...]` with a fresh index for every row, without the diagonal part.

        The default draws a weight for each row. A family whose weights are linear in the index can do it faster.
        """
        index = self.fresh_draws(len(x), x.device).index.to(parameters.mean.dtype)
        weight, bias = self.weights(parameters, index)
        return layer.batched(x[:, None], weight, bias).squeeze(1)

    def sample_outputs(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs of `[B, ...]`, a fresh draw of every output (local reparameterisation)."""
        mean = self.outputs_without_noise(layer, x, parameters)
        return add_noise(mean, layer.product(square(x), parameters.variance, None))

    def sample_linear(self, x: Tensor, parameters: PosteriorParameters, blocked: int) -> Tensor | None:
        """Return what `sample_outputs` of a linear layer returns, by one fused operation, or None without one.

        Args:
            x: `[B, in]` floating point.
            parameters: of a linear layer; their `kl` may be set on the way.
            blocked: number of leading outputs that pass no gradient on to `x`.
        """
        return None

    # ------------------------------------------------------------------ divergence
    @abstractmethod
    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return KL(q || prior) of a layer in nats, summed over weights, and what is shared with other layers."""

    def shared_kl(self, shared: Sequence[Tensor]) -> Tensor:
        """Return the part of KL(q || prior) that depends on all layers together, a scalar in nats.

        Args:
            shared: `KLTerms.shared` of all layers (or groups of layers).
        """
        raise NotImplementedError(f"{type(self).__name__} has no shared part of its divergence")


VCL_NEEDS = "is learned from task to task: only posterior mean_field with prior gaussian can become a prior"

POSTERIORS: Registry[type[PosteriorFamily]] = Registry("model.posterior.family")
"""Posterior families by the value of the option `model.posterior.family`."""

register_posterior = POSTERIORS.register
"""Decorator of a `PosteriorFamily` that makes it a value of the option `model.posterior.family`."""


def make_family(settings: PosteriorSettings, sequential: bool = False) -> PosteriorFamily:
    """Return the family that the settings name.

    Args:
        settings: of the posterior.
        sequential: keep a Gaussian prior for each weight, which the posterior can become.

    Raises:
        ConfigError: if the family cannot be sequential.
    """
    kind = POSTERIORS[settings.family]
    able = kind.become_prior is not PosteriorFamily.become_prior and settings.prior == "gaussian"
    check(able or not sequential, "model.consolidation.method", "vcl", VCL_NEEDS)
    return kind(settings, sequential)


# ------------------------------------------------------------------ helpers for families
def add_gaussian_parameters(layer: BayesLayer, settings: PosteriorSettings, *components: int) -> float:
    """Create means, log-variances and biases of a layer; a mixture has one mean and bias for each component.

    Returns:
        Standard deviation of the initial means.
    """
    shape, scale = layer.shape, settings.init_scale / math.sqrt(math.prod(layer.shape[1:]))
    layer.weight_mu = nn.Parameter(scale * torch.randn(*components, *shape))
    layer.weight_log_var = nn.Parameter(settings.init_log_var + 1e-3 * torch.randn(shape))
    layer.bias = nn.Parameter(torch.zeros(*components, shape[0]))
    return scale


def square(x: Tensor) -> Tensor:
    """Return x^2; the integer that stands for a one-hot vector is its own square."""
    return x.square() if x.is_floating_point() else x


def _joined_noise(layers: Sequence[BayesLayer], noise: Mapping[str, Tensor]) -> Tensor | None:
    """Return the noise of all `layers`, zeros for a layer without an entry, or None if no layer has one."""
    given = [noise.get(layer.key) for layer in layers]
    size = next((len(values) for values in given if values is not None), None)
    if size is None:
        return None
    zero = layers[0].bias.new_zeros
    return join([zero(size, *layer.shape) if v is None else v for v, layer in zip(given, layers, strict=True)])
