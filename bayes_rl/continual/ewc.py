"""Elastic Weight Consolidation (EWC): quadratic penalties that hold weights near their values at the end of a task.

The penalty of a task is (lambda / 2) sum_i F_i (w_i - a_i)^2. The anchor a is the value of the weights at the end of
the task, and F is the diagonal of the Fisher information at these weights. The sum of the penalties of several tasks is
again one quadratic of each weight and a constant (`sum_of_quadratics`). Any number of tasks therefore takes the memory
of one task: one anchor and one Fisher entry for each weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.bayes.posteriors import POSTERIORS
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import METHODS, ConsolidationMethod, TaskSamples
from bayes_rl.continual.fisher import Parameters, normalised, prefixes, twin_fisher
from bayes_rl.continual.penalty_monitor import PenaltyMonitor, frozen_share
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.errors import check, check_same_shape
from bayes_rl.losses import quadratic_penalty
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.networks.layer_factory import PLAIN

PIECE_SIZE = 2**16
"""Numbers in a piece of a tensor. Several pieces fit into the cache of a processor core."""


@torch.no_grad()
def add_penalty_gradients(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], fishers: Sequence[Tensor], strength: float
) -> None:
    """Add the gradient strength * F (w - a) of the penalties (strength / 2) F (w - a)^2 to every `.grad` that is set.

    Autograd would write the gradient to a new tensor first and then add the new tensor. This function reads and writes
    less memory.

    Args:
        parameters: w, tensors of any shapes.
        anchors: a, shaped as the parameters.
        fishers: F >= 0, shaped as the parameters.
        strength: lambda, factor of all penalties.

    Raises:
        ValueError: if shapes do not agree.
    """
    for parameter, anchor, fisher in zip(parameters, anchors, fishers, strict=True):
        check_same_shape(parameter=parameter, anchor=anchor, fisher=fisher)
        if parameter.grad is not None:
            for pieces in _pieces(parameter.detach(), anchor, fisher, parameter.grad):
                parameter_piece, anchor_piece, fisher_piece, gradient_piece = pieces
                gradient_piece.addcmul_(parameter_piece - anchor_piece, fisher_piece, value=strength)


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return views of tensors of one shape, so small that temporary tensors stay in the cache of a processor core."""
    if tensors[0].numel() <= PIECE_SIZE or not all(x.is_cpu and x.is_contiguous() for x in tensors):
        return [tensors]
    return zip(*(x.view(-1).split(PIECE_SIZE) for x in tensors), strict=True)


def sum_of_quadratics(
    fisher: Tensor, anchor: Tensor, new_fisher: Tensor, new_anchor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one sum of quadratics, and a constant, that equal the two sums F (w - a)^2 and F' (w - a')^2 for all w.

    The method is completing the square, for each weight w_i alone.

    Args:
        fisher: F >= 0.
        anchor: a, arbitrary where `fisher` is 0.
        new_fisher: F' >= 0.
        new_anchor: a'.

    Returns:
        Fisher entries F + F'; anchors a + s (a' - a) with s = F' / (F + F'), exactly a' where F is 0; and the constant
        sum_i F_i s_i (a_i - a'_i)^2, a scalar >= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    check_same_shape(fisher=fisher, anchor=anchor, new_fisher=new_fisher, new_anchor=new_anchor)
    total = fisher + new_fisher
    share = torch.where(fisher == 0, 1.0, new_fisher / total)
    constant = (fisher * share * (anchor - new_anchor).square()).sum()
    return total, torch.lerp(anchor, new_anchor, share), constant


class QuadraticPenalties(nn.Module):
    """Quadratic penalty (lambda / 2) F (w - a)^2 of each protected parameter, for all tasks together.

    Each parameter has two buffers, whatever the number of tasks: the anchor a and the Fisher diagonal F. A further
    buffer holds a constant. Without a decay, the penalty is exactly the sum of the penalties of all tasks. With a
    decay, as in online EWC, a is the latest anchor, F = decay * F + F of the new task, and the constant is 0.

    Args:
        parameters: the parameters to protect, by name. Log-variances of Bayesian layers do not belong here:
            the penalty anchors means.
        strength: lambda, factor of the penalty, >= 0.
        decay: None for the exact sum over tasks, or the factor of the Fisher diagonal of earlier tasks, in [0, 1].

    Attributes:
        consolidations: number of calls of `consolidate`: one for each finished task, more with `consolidate_every`.
        constant: part of 2 / lambda times the penalty that does not depend on the weights.
    """

    consolidations: Tensor
    constant: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], strength: float, decay: float | None = None) -> None:
        super().__init__()
        self.strength, self.decay = strength, decay
        self.names = list(parameters)
        self._keys = [[_key(kind, name) for name in self.names] for kind in ("anchor", "fisher")]
        for name, parameter in parameters.items():
            self.register_buffer(_key("anchor", name), torch.zeros_like(parameter))
            self.register_buffer(_key("fisher", name), torch.zeros_like(parameter))
        first = next(iter(parameters.values()), torch.zeros(()))  # decides dtype and device of the constant
        self.register_buffer("constant", first.detach().new_zeros(()))
        self.register_buffer("consolidations", torch.zeros((), dtype=torch.int64))
        self._consolidated = False  # whether `consolidations` > 0, known without waiting for the device

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._consolidated = bool(self.consolidations > 0)

    @property
    def active(self) -> bool:
        """True once there is a penalty."""
        return self._consolidated and bool(self.names)

    def anchor(self, name: str) -> Tensor:
        """Return the anchor a of one parameter."""
        return self.get_buffer(_key("anchor", name))

    def fisher(self, name: str) -> Tensor:
        """Return F of one parameter: the sum of the tasks' Fisher diagonals, in which a decay scales earlier tasks."""
        return self.get_buffer(_key("fisher", name))

    @torch.no_grad()
    def consolidate(self, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
        """Add the penalty of a task.

        Args:
            parameters: name to parameter at the end of the task, for every protected name.
            fisher: name to Fisher diagonal of these parameters, for every protected name.
        """
        for name in self.names:
            fisher_buffer, anchor_buffer = self.fisher(name), self.anchor(name)
            new_fisher, new_anchor = fisher[name], parameters[name]
            if self.decay is None:
                total, anchor, constant = sum_of_quadratics(fisher_buffer, anchor_buffer, new_fisher, new_anchor)
                self.constant += constant
            else:
                total, anchor = self.decay * fisher_buffer + new_fisher, new_anchor
            fisher_buffer.copy_(total)
            anchor_buffer.copy_(anchor)
        self.consolidations += 1
        self._consolidated = True

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return (lambda / 2) (sum_i F_i (w_i - a_i)^2 + constant) over all protected weights: a scalar >= 0, in nats.

        Without a decay, this is the sum of the penalties of all tasks. Before the first task the penalty is a constant
        0, of which no parameter has a gradient.
        """
        if not self.active:
            return torch.zeros_like(self.constant)
        parts = [quadratic_penalty(*tensors) for tensors in zip(*self._tensors(parameters), strict=True)]
        return self.strength * (torch.stack(parts).sum() + 0.5 * self.constant)

    def add_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the gradient of `penalty` to `.grad` of every protected tensor whose `.grad` is set."""
        if self.active:
            add_penalty_gradients(*self._tensors(parameters), self.strength)

    def _tensors(self, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Any], list[Any]]:
        """Return the protected parameters, their anchors and their Fisher diagonals."""
        # Reading the dictionary is faster than `get_buffer`, and this runs at every update.
        buffers: dict[str, Any] = self._buffers
        anchors, fishers = ([buffers[key] for key in keys] for keys in self._keys)
        return [parameters[name] for name in self.names], anchors, fishers


def _key(kind: str, name: str) -> str:
    """Return the name of the buffer of a parameter."""
    return f"{kind}_{name.replace('.', '__')}"  # the name of a buffer must not contain a dot


@METHODS.register("ewc")
class EWC(ConsolidationMethod):
    """Elastic Weight Consolidation: the exact sum of a quadratic penalty for each task (arXiv:1612.00796).

    Args:
        twin: the networks.
        settings: settings of consolidation.

    Attributes:
        ewc: penalties with their anchors and Fisher diagonals. Keys of checkpoints contain this name.
        protects_means: whether means of Bayesian weights have anchors. Log-variances, and the factors of `low_rank`,
            never have anchors: the outputs by mean weights do not depend on them, so that their Fisher would be 0.
        protected_kind: words for the protected parameters, in the line that the user reads.
        num_weights: number of all trained weights that the mean prediction depends on.
        num_bayesian_weights: number of weights with a distribution; a mixture counts those of all members.
    """

    protects_means = True
    protected_kind = "weights"
    _twin: TwinActorCritic | None  # the networks whose parameters `_named` holds

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__(twin, settings)
        self.ewc = QuadraticPenalties(self.protected(twin), settings.strength, self._decay())
        self.monitor = PenaltyMonitor(settings.strength)
        layers = bayesian_layers(twin)
        spreads = {f"{prefix}.{name}" for prefix, layer in layers.items() for name in layer.spread_parameters()}
        self.num_weights = sum(p.numel() for n, p in twin.named_parameters() if p.requires_grad and n not in spreads)
        self.num_bayesian_weights = sum(layer.weight_mu.numel() for layer in layers.values())
        object.__setattr__(self, "_twin", None)  # `nn.Module.__setattr__` would make the networks a submodule
        self._named: dict[str, Tensor] = {}

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian_part: str) -> None:
        """Raise `ConfigError` if there are Bayesian layers of a family that EWC cannot protect.

        A Gaussian process has no trained parameters: it goes on observing, beside plain networks that EWC protects.
        """
        obstacle = POSTERIORS[posterior.family].anchoring_obstacle
        protectable = [name for name in POSTERIORS if not POSTERIORS[name].anchoring_obstacle]
        message = f"{obstacle}; choose --model.posterior.family {' or '.join(protectable)}"
        check(bayesian_part in PLAIN or not obstacle, "model.consolidation.method", method, message)

    @classmethod
    def ignored_settings(cls, settings: ConsolidationSettings) -> tuple[str, ...]:
        """Return the decay of `online_ewc`, and without a strength all settings of the penalty."""
        penalty = ("protected_networks", "fisher", "fisher_samples", "fisher_newest", "fisher_norm")
        return ("online_decay",) if settings.strength else ("online_decay", *penalty)

    def _decay(self) -> float | None:
        """Return the decay of `QuadraticPenalties`."""
        return None

    def protected(self, twin: TwinActorCritic) -> Parameters:
        """Return the protected parameters by name in the twin: means of Bayesian weights, and deterministic parameters.

        No parameter is protected if the strength is 0.
        """
        if not self.settings.strength:
            return {}
        tasks = range(len(twin.actors) // 2)  # more than one task where each task has heads
        networks = self.settings.networks()
        network_prefixes = tuple(
            prefix for network in networks for task in tasks for prefix in prefixes(twin, network, task)
        )
        layers = bayesian_layers(twin)
        unprotected = {f"{prefix}.{name}" for prefix, layer in layers.items() for name in layer.spread_parameters()}
        if not self.protects_means:
            unprotected |= {f"{prefix}.weight_mu" for prefix in layers}
        return {
            name: parameter
            for name, parameter in twin.named_parameters()
            if name.startswith(network_prefixes) and name not in unprotected
        }

    @property
    def needs_targets(self) -> bool:
        """True if `end_task` needs the TD targets of its samples."""
        return self.settings.fisher == "empirical"

    @property
    def active(self) -> bool:
        """True once there is a penalty."""
        return self.ewc.active

    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Add the penalty of a task, with the present weights as anchor and the Fisher diagonal of the samples.

        Args:
            twin: the networks at the end of the task.
            samples: transitions of the task.

        Raises:
            ValueError: see `twin_fisher`.
        """
        settings, fisher = self.settings, {}
        parameters = self.protected(twin)
        if parameters:
            fisher = twin_fisher(twin, settings.networks(), parameters, settings.fisher, *samples)
            fisher = normalised(fisher) if settings.fisher_norm == "mean" else fisher
        self.ewc.consolidate(parameters, fisher)
        self.monitor.restart()

    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """Return the penalty of the present weights, a scalar in nats; see `QuadraticPenalties.penalty`."""
        return self.ewc.penalty(self._by_name(twin))

    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Add the penalty's gradient to `.grad` of every protected parameter whose `.grad` is set."""
        self.ewc.add_gradients(self._by_name(twin))

    def _by_name(self, twin: TwinActorCritic) -> dict[str, Tensor]:
        """Return the parameters of the networks by name."""
        if self._twin is not twin:  # `named_parameters` is too slow for every update
            object.__setattr__(self, "_twin", twin)
            self._named = dict(twin.named_parameters())
        return self._named

    def frozen_share(self, twin: TwinActorCritic, optimizer: torch.optim.Optimizer) -> float:
        """Return the share of the protected weights, in [0, 1], that the penalty keeps from changing.

        Args:
            twin: the networks.
            optimizer: Adam or AdamW of the networks.
        """
        named = self._by_name(twin)
        fisher = {name: self.ewc.fisher(name) for name in self.ewc.names}
        return frozen_share({name: named[name] for name in fisher}, fisher, self.ewc.strength, optimizer)

    def strength_warning(self, penalty: float, loss: float, update: int, min_updates: int = 1000) -> str | None:
        """Return a warning if the penalty is far above or below the loss, at most once; see `PenaltyMonitor`.

        Args:
            penalty: penalty of this update, in nats.
            loss: negative log likelihood of this update, in nats.
            update: number of this update.
            min_updates: see `PenaltyMonitor.strength_warning`.
        """
        if not self.active:
            return None
        changeable = penalty - 0.5 * self.ewc.strength * float(self.ewc.constant)  # the part that weights can change
        return self.monitor.strength_warning(changeable, loss, update, min_updates)

    def describe(self) -> str:
        """Return one line for the user."""
        count, size = self._num_protected(), f"{self.memory_bytes / 2**20:.1f} MiB"
        if not count:
            return f"consolidation: {self.settings.method}, no penalty"
        return f"consolidation: {self.settings.method}, {self._describe_penalty(count)}, {size}"

    def _num_protected(self) -> int:
        """Return the number of weights with an anchor."""
        return sum(self.ewc.anchor(name).numel() for name in self.ewc.names)

    def _describe_penalty(self, count: int) -> str:
        """Return words for the strength of the penalty and for the `count` weights that it protects."""
        networks = self.settings.protected_networks
        networks = "actors and critics" if networks == "both" else f"the {networks}s"
        protected = f"{count:,} {self.protected_kind} of {networks} ({self._share(count)})"
        return f"lambda {self.settings.strength:g}, protects {protected}"

    def _share(self, count: int) -> str:
        """Return the share of `count` in all weights that the mean prediction depends on."""
        return f"{100 * count / max(1, self.num_weights):.1f} % of all weights"


@METHODS.register("online_ewc")
class OnlineEWC(EWC):
    """Online EWC: the latest anchor, and a Fisher diagonal in which earlier tasks decay (arXiv:1805.06370).

    Args:
        twin: the networks.
        settings: settings of consolidation; `online_decay` is the decay.
    """

    @classmethod
    def ignored_settings(cls, settings: ConsolidationSettings) -> tuple[str, ...]:
        """Return all settings of the penalty if the penalty has no strength."""
        return () if settings.strength else super().ignored_settings(settings)

    def _decay(self) -> float | None:
        """Return the decay of `QuadraticPenalties`."""
        return self.settings.online_decay
