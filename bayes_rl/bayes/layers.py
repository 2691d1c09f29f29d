"""Variational Bayesian layers: local reparameterisation and closed-form KL divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.ops import add_noise, clamp_with_inward_gradient
from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.bayes.posteriors import KLTerms, PosteriorFamily, make_family
from bayes_rl.bayes.posteriors.base import square
from bayes_rl.bayes.settings import PosteriorSettings


class BayesLayer(nn.Module, ABC):
    """Layer whose weights have a distribution; biases are deterministic (one for each component of a mixture).

    `forward(x, weight_mode)` has three modes:

    * `"mean"` evaluates the layer by its mean weights;
    * `"sample"` draws every output afresh from its exact Gaussian, instead of drawing weights: the local
      reparameterisation of Kingma, Salimans and Welling (2015, arXiv:1506.02557);
    * `Draws` evaluates the layer by D given draws of the weights. Then x is `[D, B, ...]`, or `[1, B, ...]` if all
      draws have the same input, and the output is `[D, B, ...]`.

    Without a mode the layer samples in training (`layer.train()`) and takes the mean in evaluation (`layer.eval()`).

    Args:
        shape: of the weights, outputs first.
        settings: settings of the posterior.
        sequential: whether each weight has its own Gaussian prior, for variational continual learning.

    Attributes:
        family: family of the posterior.
        key: name of the layer in `Draws.noise`.
        prior_mean: mean of each weight's prior, `[*shape]`; only a `sequential` layer has the attribute.
        prior_precision: 1 / variance of each weight's prior, `[*shape]`; only a `sequential` layer has the attribute.
        evaluated: list that a network shares with its layers, or None; `forward` appends to the list if the evaluation
            has computed the divergence on the way (see `EvaluatedLayers`).
    """

    prior_mean: Tensor
    prior_precision: Tensor
    weight_mu: nn.Parameter
    weight_log_var: nn.Parameter
    bias: nn.Parameter

    def __init__(self, shape: tuple[int, ...], settings: PosteriorSettings, sequential: bool = False) -> None:
        super().__init__()
        self.settings, self.shape, self.key = settings, shape, ""
        self.family: PosteriorFamily = make_family(settings, sequential)
        self.evaluated: list[EvaluatedLayers] | None = None
        self.family.add_parameters(self)
        if sequential:
            self.register_buffer("prior_mean", torch.zeros(shape))
            self.register_buffer("prior_precision", torch.full(shape, float(settings.prior_precision)))

    def log_var(self) -> Tensor:
        """Return the log-variances in use, `[*shape]`, clamped so that neither exp nor its inverse overflows."""
        limit = self.settings.log_var_limit
        return clamp_with_inward_gradient(self.family.raw_log_var(self), -limit, limit)

    def parameters_in(self, weight_mode: WeightMode = "sample") -> PosteriorParameters:
        """Return the parameters that a forward pass in this mode needs, and the KL divergence if the mode samples."""
        return self.family.parameters([self], weight_mode)

    def spread_parameters(self) -> set[str]:
        """Return names of the parameters that do not change the mean prediction, such as log-variances."""
        return {name for name, _ in self.named_parameters(recurse=False)} - {*self.family.mean_parameters}

    def forward(self, x: Tensor, weight_mode: WeightMode | None = None) -> Tensor:
        """Evaluate the layer.

        Args:
            x: `[B, ...]`; with `Draws`, `[D or 1, B, ...]`.
            weight_mode: the mode; None samples in training and takes the mean in evaluation.
        """
        if weight_mode is None:
            weight_mode = "sample" if self.training else "mean"
        parameters = self.parameters_in(weight_mode)
        y = self.evaluate(x, weight_mode, parameters)
        if self.evaluated is not None and parameters.kl is not None:
            self.evaluated.append(EvaluatedLayers((self,), parameters))
        return y

    def evaluate(self, x: Tensor, weight_mode: WeightMode, parameters: PosteriorParameters) -> Tensor:
        """Evaluate the layer by the given parameters, which may be the concatenated parameters of several layers."""
        if isinstance(weight_mode, Draws):
            weight, bias = self.family.weights(parameters, weight_mode.index)
            if parameters.noise is not None:
                weight = weight + (0.5 * parameters.log_var).exp() * parameters.noise
            y = self.batched(x, weight, bias)
            y = y.expand(weight_mode.size, *y.shape[1:])
            if weight_mode.noise is not None:
                return y
            return add_noise(y, self.batched(square(x), parameters.variance[None], None))
        if weight_mode == "mean":
            return self.product(x, *self.family.mean(parameters))
        return self.family.sample_outputs(self, x, parameters)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply one weight `[*shape]` to `[B, ...]`."""

    @abstractmethod
    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weights `[D or 1, *shape]` and biases `[D or 1, out]` to `[D or 1, B, ...]`: `[D or 1, B, ...]`."""

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return KL(q || prior) by given parameters, in float32 under autocast; see `PosteriorFamily.kl_terms`.

        Args:
            parameters: with `kl` set if a forward pass has computed the divergence already.
        """
        if parameters.kl is not None:
            return KLTerms(parameters.kl)
        with torch.autocast(self.weight_mu.device.type, enabled=False):
            return self.family.kl_terms(parameters)

    def kl_divergence(self) -> Tensor:
        """Return KL(q || prior) of this layer alone, a scalar in nats: the sum over weights.

        With a Gaussian prior N(m, 1 / k) each weight adds (k ((mu - m)^2 + s^2) - 1 - log s^2 - log k) / 2. At first
        m = 0 and k = `prior_precision`; after `become_prior`, m and 1 / k are mean and variance of the last posterior.
        For `members` the result is the mean over members, an upper bound of the mixture's divergence. For `low_rank`,
        log s^2 becomes the log-determinant of s^2 I + C C^T. `log_uniform` has the formula of its class.
        """
        additive, shared = self.kl_terms(self.parameters_in())
        return additive if shared is None else additive + self.family.shared_kl([shared])

    def become_prior(self) -> None:
        """Make the posterior the prior of the next task, as variational continual learning does.

        The layer must be `sequential` (Nguyen et al. 2018, arXiv:1710.10628).
        """
        self.family.become_prior(self)


class BayesLinear(BayesLayer):
    """Linear layer y = x W^T + b with weights `[out, in]`; integer x `[..., 1]` stands for its one-hot vector.

    Args:
        in_features: length of x.
        out_features: length of y.
        settings: settings of the posterior.
        sequential: whether each weight has its own Gaussian prior, for variational continual learning.
    """

    def __init__(
        self, in_features: int, out_features: int, settings: PosteriorSettings | None = None, sequential: bool = False
    ) -> None:
        super().__init__((out_features, in_features), settings or PosteriorSettings(), sequential)

    def evaluate(
        self, x: Tensor, weight_mode: WeightMode, parameters: PosteriorParameters, detached_outputs: int = 0
    ) -> Tensor:
        """Evaluate the layer by given parameters.

        Args:
            x: `[B, in]`; with `Draws`, `[D or 1, B, in]`.
            weight_mode: the mode.
            parameters: parameters of this layer, or the concatenated parameters of several layers.
            detached_outputs: number of leading outputs whose gradient does not reach `x`.
        """
        if weight_mode == "sample" and x.is_floating_point() and x.ndim == 2:
            y = self.family.sample_linear(x, parameters, detached_outputs)
            if y is not None:
                return y
        if not detached_outputs:
            return super().evaluate(x, weight_mode, parameters)
        parts = parameters.split([detached_outputs, parameters.bias.shape[-1] - detached_outputs])
        inputs = zip((x.detach(), x), parts, strict=True)
        return torch.cat([super(BayesLinear, self).evaluate(part_x, weight_mode, part) for part_x, part in inputs], -1)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply one weight matrix to `[B, in]`."""
        return linear(x, weight, bias)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight matrices `[D or 1, out, in]` to `[D or 1, B, in]`."""
        if not x.is_floating_point():
            draw = torch.arange(len(weight), device=x.device)[:, None]
            y = weight[draw, :, x[..., 0].long()] if len(x) > 1 else weight[:, :, x[0, :, 0].long()].transpose(1, 2)
        elif len(x) == 1:  # one input for all draws: the draws are further outputs of one product
            y = (x[0] @ weight.flatten(0, 1).t()).unflatten(1, weight.shape[:2]).transpose(0, 1)
        else:
            y = x @ weight.transpose(1, 2)
        return y if bias is None else y + bias[:, None]


class BayesConv2d(BayesLayer):
    """Convolution of images `[B, C, H, W]` with weights `[out, in, kernel, kernel]`.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the output.
        kernel_size: side of the square kernel.
        stride: as in `nn.Conv2d`.
        padding: zeros at each edge, as in `nn.Conv2d`.
        settings: settings of the posterior.
        sequential: whether each weight has its own Gaussian prior, for variational continual learning.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        settings: PosteriorSettings | None = None,
        sequential: bool = False,
    ) -> None:
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, settings or PosteriorSettings(), sequential)
        self.stride, self.padding = stride, padding

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply one kernel to `[B, C, H, W]`."""
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    def batched(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply kernels `[D or 1, *shape]` to `[D or 1, B, C, H, W]`."""
        if len(weight) == 1:  # one weight for all draws
            y = self.product(x.flatten(0, 1), weight[0], None).unflatten(0, x.shape[:2])
        elif len(x) == 1:  # one input for all draws: the draws are output channels
            y = self.product(x[0], weight.flatten(0, 1), None).unflatten(1, weight.shape[:2]).transpose(0, 1)
        else:  # each draw is a group of channels
            images = x.transpose(0, 1).flatten(1, 2)
            y = F.conv2d(images, weight.flatten(0, 1), None, self.stride, self.padding, 1, len(weight))
            y = y.unflatten(1, weight.shape[:2]).transpose(0, 1)
        return y if bias is None else y + bias[:, None, :, None, None]


class EvaluatedLayers(NamedTuple):
    """Layers that a forward pass has evaluated as one, with the parameters that the forward pass has built.

    The divergence of the layers is computed from these parameters. Otherwise the parameters of the layers would be
    concatenated twice in an update, and all weights would be read twice from memory: measured in turns, an update of
    the MLP took 1.06 times as long, an update of the MinAtar network 1.15 times.

    Attributes:
        layers: layers with the same inputs, in the order in which their parameters are concatenated.
        parameters: joint parameters of the layers; their `kl` is set if the evaluation has computed the divergence.
    """

    layers: Sequence[BayesLayer]
    parameters: PosteriorParameters

    def kl_terms(self) -> KLTerms:
        """Return KL(q || prior) of the layers; see `BayesLayer.kl_terms`."""
        return self.layers[0].kl_terms(self.parameters)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b; an integer x `[..., 1]` is the position of the 1 in a one-hot vector."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    column = F.embedding(x[..., 0].long(), weight.t())
    return column if bias is None else column + bias


def joint_parameters(layers: Sequence[BayesLayer], weight_mode: WeightMode = "sample") -> PosteriorParameters:
    """Return the parameters of all `layers`, which have equal settings and inputs, concatenated along the outputs."""
    return layers[0].family.parameters(layers, weight_mode)


def joint_forward(layers: Sequence[BayesLinear], x: Tensor, weight_mode: WeightMode) -> list[Tensor]:
    """Evaluate several layers of equal settings on one input, by one matrix product.

    Returns:
        Output of each layer, `[..., B, out]`.
    """
    sizes = [layer.shape[0] for layer in layers]
    return list(layers[0].evaluate(x, weight_mode, joint_parameters(layers, weight_mode)).split(sizes, -1))
