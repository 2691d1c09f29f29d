"""Elastic Weight Consolidation, with an anchor for each task or with one decayed anchor."""

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

PIECE = 2**16
"""Numbers in a piece of a tensor, of which several fit into the cache of a processor core."""


@torch.no_grad()
def add_penalty_gradients(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], fishers: Sequence[Tensor], scale: float
) -> None:
    """Add scale * F (w - w*), the gradient of `scale` times each `quadratic_penalty`, to every `.grad` that is set.

    After the backward pass this reads and writes less memory than autograd, which would write a gradient of its own
    first and add it then.

    Args:
        parameters: w, tensors of any shapes.
        anchors: w*, shaped as the parameters.
        fishers: F >= 0, shaped as the parameters.
        scale: factor of all penalties.

    Raises:
        ValueError: if shapes do not agree.
    """
    for w, a, f in zip(parameters, anchors, fishers, strict=True):
        check_same_shape(parameter=w, anchor=a, fisher=f)
        if w.grad is not None:
            for piece, anchor, fisher, gradient in _pieces(w.detach(), a, f, w.grad):
                gradient.addcmul_(piece - anchor, fisher, value=scale)


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return views of tensors of one shape, small enough that temporary tensors stay in a core's cache."""
    if tensors[0].numel() <= PIECE or not all(x.is_cpu and x.is_contiguous() for x in tensors):
        return [tensors]
    return zip(*(x.view(-1).split(PIECE) for x in tensors), strict=True)


def sum_of_quadratics(
    fisher: Tensor, anchor: Tensor, new_fisher: Tensor, new_anchor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Write sum_i F_i (w_i - a_i)^2 + F'_i (w_i - a'_i)^2 as one such sum and a constant, by completing the square.

    Args:
        fisher: F >= 0.
        anchor: a, arbitrary where `fisher` is 0.
        new_fisher: F' >= 0.
        new_anchor: a'.

    Returns:
        F + F'; the common anchor a + s (a' - a) with s = F' / (F + F'), exactly a' where F is 0; and the constant
        sum_i F_i s_i (a_i - a'_i)^2, a scalar >= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    check_same_shape(fisher=fisher, anchor=anchor, new_fisher=new_fisher, new_anchor=new_anchor)
    total = fisher + new_fisher
    share = torch.where(fisher == 0, 1.0, new_fisher / total)
    constant = (fisher * share * (anchor - new_anchor).square()).sum()
    return total, torch.lerp(anchor, new_anchor, share), constant


class ElasticWeightConsolidation(nn.Module):
    """Anchor and Fisher diagonal of the protected parameters, in buffers keyed by parameter name.

    The quadratics of any number of tasks are one quadratic and a constant: two tensors for each parameter.

    Args:
        parameters: the parameters to protect, by name. Log-variances of Bayesian layers do not belong here:
            the penalty anchors means.
        strength: lambda, factor of the penalty, >= 0.
        decay: None to add up the quadratics of all tasks; a number in [0, 1] to keep one anchor, the latest, and to
            multiply the Fisher diagonal of earlier tasks by it at every consolidation.
    """

    consolidations: Tensor
    constant: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], strength: float, decay: float | None = None) -> None:
        super().__init__()
        self.strength, self.decay = strength, decay
        self.names = list(parameters)
        self._keys = [[_key(kind, name) for name in self.names] for kind in ("anchor", "fisher")]
        for name, p in parameters.items():
            self.register_buffer(_key("anchor", name), torch.zeros_like(p))
            self.register_buffer(_key("fisher", name), torch.zeros_like(p))
        like = next(iter(parameters.values()), torch.zeros(()))
        self.register_buffer("constant", like.detach().new_zeros(()))
        self.register_buffer("consolidations", torch.zeros((), dtype=torch.int64))
        self._consolidated = False  # `consolidations` > 0, without a synchronization with the device

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._consolidated = bool(self.consolidations > 0)

    @property
    def active(self) -> bool:
        """True once there is a penalty."""
        return self._consolidated and bool(self.names)

    def anchor(self, name: str) -> Tensor:
        """Return w* of one parameter."""
        return self.get_buffer(_key("anchor", name))

    def fisher(self, name: str) -> Tensor:
        """Return F of one parameter, summed over the tasks."""
        return self.get_buffer(_key("fisher", name))

    @torch.no_grad()
    def consolidate(self, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
        """Add a task.

        Args:
            parameters: name to parameter at the end of the task, for every protected name.
            fisher: name to Fisher diagonal there, for every protected name.
        """
        for name in self.names:
            old, anchor, new = self.fisher(name), self.anchor(name), fisher[name]
            if self.decay is None:
                merged = sum_of_quadratics(old, anchor, new, parameters[name])
            else:
                merged = self.decay * old + new, parameters[name], torch.zeros_like(self.constant)
            old.copy_(merged[0])
            anchor.copy_(merged[1])
            self.constant += merged[2]
        self.consolidations += 1
        self._consolidated = True

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return (lambda / 2) sum_tasks sum_i F_i (w_i - w*_i)^2 over all protected tensors: a scalar >= 0, in nats.

        With a decay there is one F and one w*. Before the first consolidation the penalty is a constant 0, of which no
        parameter has a gradient.
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
        """Return protected tensors, their anchors and Fisher diagonals."""
        # From the dictionary of buffers: `get_buffer` takes long.
        buffers: dict[str, Any] = self._buffers
        anchors, fishers = ([buffers[key] for key in keys] for keys in self._keys)
        return [parameters[name] for name in self.names], anchors, fishers


def _key(kind: str, name: str) -> str:
    return f"{kind}_{name.replace('.', '__')}"  # a buffer's name has no dots


@METHODS.register("ewc")
class EWC(ConsolidationMethod):
    """Elastic Weight Consolidation: an anchor and a Fisher diagonal for each task (arXiv:1612.00796).

    Args:
        twin: the networks.
        settings: of consolidation.

    Attributes:
        ewc: anchors and Fisher diagonals, and the penalty of them.
        protects_means: whether means of Bayesian weights have anchors. Their log-variances, and factors of `low_rank`,
            never have: nothing depends on them at mean weights, so that their Fisher would be 0.
        protected_kind: name of the protected parameters, for the user.
    """

    protects_means = True
    protected_kind = "weights"
    _twin: TwinActorCritic | None  # whose parameters are in `_named`

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__(twin, settings)
        self.ewc = ElasticWeightConsolidation(self.protected(twin), settings.strength, self._decay())
        self.monitor = PenaltyMonitor(settings.strength)
        object.__setattr__(self, "_twin", None)  # `nn.Module` would make it a submodule
        self._named: dict[str, Tensor] = {}

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian: str) -> None:
        """Raise `ConfigError` if there are Bayesian layers of a family that EWC cannot protect."""
        obstacle = POSTERIORS[posterior.family].anchoring_obstacle
        able = [name for name in POSTERIORS if not POSTERIORS[name].anchoring_obstacle]
        message = f"{obstacle}; choose --model.posterior.family {' or '.join(able)}"
        check(bayesian == "none" or not obstacle, "model.consolidation.method", method, message)

    def _decay(self) -> float | None:
        return None

    def protected(self, twin: TwinActorCritic) -> Parameters:
        """Return the anchored parameters by name in the twin: means of Bayesian weights, and deterministic parameters.

        Nothing is anchored if the penalty has no strength.
        """
        if not self.settings.strength:
            return {}
        tasks = range(len(twin.actors) // 2)  # more than one where each has heads of its own
        networks = self.settings.networks()
        names = tuple(prefix for network in networks for task in tasks for prefix in prefixes(twin, network, task))
        layers = bayesian_layers(twin)
        free = {f"{key}.{name}" for key, layer in layers.items() for name in layer.spread_parameters()}
        if not self.protects_means:
            free |= {f"{key}.weight_mu" for key in layers}
        return {n: p for n, p in twin.named_parameters() if n.startswith(names) and n not in free}

    @property
    def needs_targets(self) -> bool:
        """True if `end_task` needs the TD targets of its samples."""
        return self.settings.fisher == "empirical"

    @property
    def active(self) -> bool:
        """True once there is a penalty."""
        return self.ewc.active

    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Register the Fisher diagonal on the samples, and anchor the present weights.

        Args:
            twin: the networks at the end of the task.
            samples: transitions of the task.

        Raises:
            ValueError: those of `twin_fisher`.
        """
        s, fisher = self.settings, {}
        parameters = self.protected(twin)
        if parameters:
            fisher = twin_fisher(twin, s.networks(), parameters, s.fisher, *samples)
            fisher = normalised(fisher) if s.fisher_norm == "mean" else fisher
        self.ewc.consolidate(parameters, fisher)
        self.monitor.restart()

    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """Return (lambda / 2) sum_i F_i (w_i - w*_i)^2, a scalar in nats; see `ElasticWeightConsolidation.penalty`."""
        return self.ewc.penalty(self._by_name(twin))

    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Add the penalty's gradient to `.grad` of every protected parameter whose `.grad` is set."""
        self.ewc.add_gradients(self._by_name(twin))

    def _by_name(self, twin: TwinActorCritic) -> dict[str, Tensor]:
        if self._twin is not twin:  # walking the tree of modules at every update takes long
            object.__setattr__(self, "_twin", twin)
            self._named = dict(twin.named_parameters())
        return self._named

    def frozen_share(self, twin: TwinActorCritic, optimizer: torch.optim.Optimizer) -> float:
        """Return the share of the protected weights, in [0, 1], that the penalty holds in place.

        Args:
            twin: the networks.
            optimizer: Adam or AdamW of them.
        """
        named = self._by_name(twin)
        fisher = {name: self.ewc.fisher(name) for name in self.ewc.names}
        return frozen_share({name: named[name] for name in fisher}, fisher, self.ewc.strength, optimizer)

    def out_of_scale(self, penalty: float, loss: float, update: int, patience: int = 1000) -> str | None:
        """Return a message if lambda does not fit, once in the life of this object; see `PenaltyMonitor`.

        Args:
            penalty: of this update, in nats.
            loss: of this update without the penalty.
            update: number of this update.
            patience: updates from the first call after a consolidation.
        """
        if not self.active:
            return None
        movable = penalty - 0.5 * self.ewc.strength * float(self.ewc.constant)  # the part that weights can change
        return self.monitor.out_of_scale(movable, loss, update, patience)

    def describe(self) -> str:
        """Return one line for the user."""
        s, weights = self.settings, sum(self.ewc.anchor(name).numel() for name in self.ewc.names)
        if not weights:
            return f"consolidation: {s.method}, no penalty"
        owners = "actors and critics" if s.protected_networks == "both" else f"the {s.protected_networks}s"
        strength, size = f"lambda {s.strength:g}", f"{self.memory_bytes / 2**20:.1f} MiB"
        return f"consolidation: {s.method}, {strength}, protects {weights:,} {self.protected_kind} of {owners}, {size}"


@METHODS.register("online_ewc")
class OnlineEWC(EWC):
    """Elastic Weight Consolidation with one anchor and a decayed Fisher diagonal (arXiv:1805.06370).

    Args:
        twin: the networks.
        settings: of consolidation.
    """

    def _decay(self) -> float | None:
        return self.settings.online_decay
