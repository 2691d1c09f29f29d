"""Interface and registry of posterior families, the distributions q over the weights of Bayesian layers."""

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
from bayes_rl.utils.seeds import Domain, derived_seed

if TYPE_CHECKING:
    from bayes_rl.bayes.layers import BayesLayer
    from bayes_rl.bayes.settings import PosteriorSettings


class KLTerms(NamedTuple):
    """Terms of KL(q || prior) from one layer (or from several layers that are evaluated as one).

    The divergence of a network is the sum of `additive` over its layers, plus `PosteriorFamily.shared_kl` of the
    `shared` tensors of its layers.

    Attributes:
        additive: term that is summed over layers, a scalar in nats.
        shared: tensor of the layer from which `shared_kl` computes the term that depends on all layers together, or
            None if the divergence has no such term.
    """

    additive: Tensor
    shared: Tensor | None = None


class PosteriorFamily(ABC):
    """Family of distributions q over the weights of layers.

    A weight is w = g(index) + s eps. The index is a random vector that all layers of a network share. The function g,
    which is the method `weights`, maps the index to a weight: it is the mean in `mean_field`, the mean plus C index in
    `low_rank`, and the mean of one member in `members`. The index makes weights depend on each other, also across
    layers. The diagonal part, s times a standard normal eps, is independent for each weight. Given the index, the
    outputs of a layer are therefore Gaussian and can be drawn instead of its weights (local reparameterisation).

    A new family is a subclass that is registered by name:

    ```python
    @register_posterior("my_family")
    class MyFamily(PosteriorFamily): ...
    ```

    The subclass implements `add_parameters`, `weights` and `kl_terms`, and overrides the defaults that do not fit it.
    `tests/bayes/posterior_case.py` is a base class of tests that every family should pass.

    Args:
        settings: settings of the posterior.
        sequential: whether each weight has a Gaussian prior with its own mean and precision. Variational continual
            learning needs it: after each task the posterior becomes the prior of the next task (`become_prior`).

    Attributes:
        index_size: d, the length of an index; 0 if weights are independent and draws need no index.
        prior: prior that all weights have at first; without `sequential` they keep it.
        mean_parameters: names of a layer's parameters that the mean prediction depends on. EWC anchors these alone.
        extra_parameters: names of a layer's parameters that `weights` or `kl_terms` need besides mean, bias and
            log-variance, each `[..., *shape]`.
        priors: values of `model.posterior.prior` for which `kl_terms` has a closed form.
        value_draws_are_complete: whether `value_draws` holds every index equally often instead of a random sample.
        anchoring_obstacle: end of an error message that begins with the name of the method and says why EWC cannot
            protect the family; empty if EWC can.
        cuda_graph_obstacle: why an update cannot be recorded as a CUDA graph; empty if it can.
        ignored_settings: fields of `PosteriorSettings` that the family does not read.
    """

    index_size: int = 0
    mean_parameters: tuple[str, ...] = ("weight_mu", "bias")
    extra_parameters: tuple[str, ...] = ()
    priors: tuple[str, ...] = ("gaussian", "log_uniform")
    value_draws_are_complete: bool = False
    anchoring_obstacle: str = ""
    cuda_graph_obstacle: str = ""
    ignored_settings: tuple[str, ...] = ()

    def __init__(self, settings: PosteriorSettings, sequential: bool = False) -> None:
        self.settings, self.sequential = settings, sequential
        self.prior: Prior = PRIORS[settings.prior](settings)

    @classmethod
    def check(cls, settings: PosteriorSettings) -> None:
        """Raise `ConfigError` unless the divergence from the prior of the settings has a closed form."""
        families = " or ".join(name for name, family in POSTERIORS.items() if settings.prior in family.priors)
        priors = " or ".join(cls.priors)
        problem = f"has no closed-form divergence for {settings.family}: choose posterior {families}, or prior {priors}"
        check(settings.prior in cls.priors, "model.posterior.prior", settings.prior, problem)

    @classmethod
    def can_become_prior(cls) -> bool:
        """Return whether the family implements `become_prior`."""
        return cls.become_prior is not PosteriorFamily.become_prior

    # ------------------------------------------------------------------ parameters
    @abstractmethod
    def add_parameters(self, layer: BayesLayer) -> None:
        """Create the parameters of a layer with weights `[*layer.shape]`."""

    def raw_log_var(self, layer: BayesLayer) -> Tensor:
        """Return log s^2 of a layer's weights before it is clamped, `[*shape]`."""
        return layer.weight_log_var

    def parameters(self, layers: Sequence[BayesLayer], weight_mode: WeightMode = "sample") -> PosteriorParameters:
        """Return the parameters of all `layers`, concatenated along the outputs.

        The parameters are those of a single layer whose outputs are the outputs of all `layers`, one after another.

        Args:
            layers: layers of equal settings and inputs.
            weight_mode: mode of the forward pass that uses the parameters. Log-variances that the mode does not need
                are left out. The weights' own priors are joined for `sample` only, because no family whose updates use
                `Draws` can be `sequential`.
        """
        draws = weight_mode if isinstance(weight_mode, Draws) else None
        noise = _joined_noise(layers, draws.noise) if draws is not None and draws.noise else None
        diagonal_part_is_zero = weight_mode == "mean" or (
            draws is not None and draws.noise is not None and noise is None
        )
        return PosteriorParameters(
            tuple(layer.weight_mu for layer in layers),
            tuple(layer.bias for layer in layers),
            () if diagonal_part_is_zero else tuple(self.raw_log_var(layer) for layer in layers),
            self.settings.log_var_limit,
            self._prior_of(layers) if weight_mode == "sample" else self.prior,
            {name: join([layer.get_parameter(name) for layer in layers]) for name in self.extra_parameters},
            noise,
        )

    def _prior_of(self, layers: Sequence[BayesLayer]) -> Prior:
        """Return the prior of all `layers`: with `sequential`, the concatenation of their weights' own priors."""
        if not self.sequential:
            return self.prior
        means, precisions = [layer.prior_mean for layer in layers], [layer.prior_precision for layer in layers]
        return WeightwiseGaussianPrior(join(means), join(precisions))

    def become_prior(self, layer: BayesLayer) -> None:
        """Make the layer's posterior its prior, for variational continual learning.

        Raises:
            ConfigError: if the family does not implement it.
        """
        raise ConfigError("model.consolidation.method", "vcl", _requirement_of_vcl())

    # ------------------------------------------------------------------ draws
    def draw_index(self, generator: torch.Generator) -> Tensor:
        """Return the index of one draw, `[d]` float32 on the CPU: standard normal numbers."""
        return torch.randn(self.index_size, generator=generator)

    def fresh_draws(self, count: int, device: torch.device) -> Draws:
        """Return `count` draws of the index. The diagonal part is drawn afresh for every output (`noise` is None)."""
        return Draws(torch.randn(count, self.index_size, device=device))

    def training_mode(self, device: torch.device) -> WeightMode:
        """Return the weight mode by which an update evaluates the networks.

        A family with an index returns draws, because values and their targets must have the same indices. A family
        without an index samples every output afresh.
        """
        return self.fresh_draws(self.settings.num_draws, device) if self.index_size else "sample"

    def value_draws(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> Draws:
        """Return the draws from which values and their uncertainty are estimated, on the CPU.

        Args:
            shapes: key to weight shape of every Bayesian layer. Without Bayesian layers the result is one draw.
            count: number of draws, always the same. A family with finitely many indices may return a few more.
        """
        if not shapes:
            return Draws(torch.zeros(1, 0), {})
        return draws_by_seed(self, shapes, [derived_seed(Domain.VALUE_DRAW, number) for number in range(count)])

    def mean_draws(self, device: torch.device) -> Draws | None:
        """Return the draws over which a network averages its outputs in mode `mean`, or None.

        None means that one evaluation by the mean weights is the mean prediction.
        """
        return None

    def index_second_moment(self) -> float:
        """Return E |index|^2.

        It is the variance of sum_k index_k f_k for functions f_k with variance 1. The prior function is divided by its
        root, so that the scale of the prior function does not depend on the family.
        """
        return float(self.index_size)

    # ------------------------------------------------------------------ weights and outputs
    @abstractmethod
    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(index), the weights and biases at given indices without the diagonal part.

        Args:
            parameters: parameters of a layer.
            index: D indices, `[D, d]`.

        Returns:
            Weights `[D, *shape]` and biases `[D, out]`; the first axis has length 1 if they do not depend on the index.
        """

    def mean(self, parameters: PosteriorParameters) -> tuple[Tensor, Tensor]:
        """Return mean weights `[*shape]` and biases `[out]`."""
        return parameters.mean, parameters.bias

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs of `[B, ...]` with a fresh index for every row, without the diagonal part.

        The default computes weights for each row. A family whose weights are linear in the index can save that time.

        Args:
            layer: layer to evaluate.
            x: inputs, `[B, ...]`.
            parameters: parameters of the layer.
        """
        index = self.fresh_draws(len(x), x.device).index.to(parameters.mean.dtype)
        weight, bias = self.weights(parameters, index)
        return layer.batched(x[:, None], weight, bias).squeeze(1)

    def sample_outputs(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return outputs of `[B, ...]`, each with a fresh draw of its weights (local reparameterisation)."""
        mean = self.outputs_without_noise(layer, x, parameters)
        return add_noise(mean, layer.product(square(x), parameters.variance, None))

    def sample_linear(self, x: Tensor, parameters: PosteriorParameters, detached_outputs: int) -> Tensor | None:
        """Return outputs like `sample_outputs` of a linear layer, by one fused operation; None if there is none.

        Args:
            x: inputs, `[B, in]` floating point.
            parameters: parameters of a linear layer. If the operation computes the KL divergence too, it stores the
                divergence in `parameters.kl`, so that the loss need not compute it again.
            detached_outputs: number of leading outputs whose gradient does not reach `x`.
        """
        return None

    # ------------------------------------------------------------------ divergence
    @abstractmethod
    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the terms of KL(q || prior) of a layer, summed over its weights, in nats."""

    def shared_kl(self, shared: Sequence[Tensor]) -> Tensor:
        """Return the term of KL(q || prior) that depends on all layers together, a scalar in nats.

        Args:
            shared: `KLTerms.shared` of all layers (or groups of layers).
        """
        raise NotImplementedError(f"{type(self).__name__} has no shared term of its divergence")


POSTERIORS: Registry[type[PosteriorFamily]] = Registry("model.posterior.family")
"""Posterior families by the value of the option `model.posterior.family`."""

register_posterior = POSTERIORS.register
"""Decorator of a `PosteriorFamily` that makes it a value of the option `model.posterior.family`."""


def make_family(settings: PosteriorSettings, sequential: bool = False) -> PosteriorFamily:
    """Return the family that the settings name.

    Args:
        settings: settings of the posterior.
        sequential: whether each weight has its own Gaussian prior, for variational continual learning.

    Raises:
        ConfigError: if `sequential`, and the posterior of these settings cannot become a prior.
    """
    family_class = POSTERIORS[settings.family]
    can_become_prior = family_class.can_become_prior() and settings.prior == "gaussian"
    check(can_become_prior or not sequential, "model.consolidation.method", "vcl", _requirement_of_vcl())
    return family_class(settings, sequential)


def _requirement_of_vcl() -> str:
    families = " or ".join(name for name, family_class in POSTERIORS.items() if family_class.can_become_prior())
    return f"needs a posterior that can become the next task's prior: choose posterior {families} with prior gaussian"


# ------------------------------------------------------------------ helpers for families
def add_gaussian_parameters(layer: BayesLayer, settings: PosteriorSettings, *components: int) -> float:
    """Create means, log-variances and biases of a layer.

    Means and biases are initialised like weights and biases of `nn.Linear` and `nn.Conv2d`: uniformly within
    +- 1 / sqrt(fan-in), the means times `init_scale`.

    Args:
        layer: layer that gets the parameters.
        settings: settings of the posterior, with the initial values.
        components: number of components of a mixture, each with its own means and biases; nothing for other families.

    Returns:
        Standard deviation of the initial means.
    """
    shape, bound = layer.shape, 1 / math.sqrt(math.prod(layer.shape[1:]))
    layer.weight_mu = nn.Parameter(settings.init_scale * torch.empty(*components, *shape).uniform_(-bound, bound))
    layer.weight_log_var = nn.Parameter(settings.init_log_var + 1e-3 * torch.randn(shape))
    layer.bias = nn.Parameter(torch.empty(*components, shape[0]).uniform_(-bound, bound))
    return settings.init_scale * bound / math.sqrt(3)


def square(x: Tensor) -> Tensor:
    """Return x^2. An integer stands for a one-hot vector, whose square is the vector itself."""
    return x.square() if x.is_floating_point() else x


def _joined_noise(layers: Sequence[BayesLayer], noise: Mapping[str, Tensor]) -> Tensor | None:
    """Return the noise of all `layers`, zeros for a layer without an entry, or None if no layer has one."""
    num_draws = next((len(noise[layer.key]) for layer in layers if layer.key in noise), None)
    if num_draws is None:
        return None
    zeros = layers[0].bias.new_zeros
    return join([noise[layer.key] if layer.key in noise else zeros(num_draws, *layer.shape) for layer in layers])
