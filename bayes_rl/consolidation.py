"""What is kept of earlier tasks: Elastic Weight Consolidation, separate for each task or online."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.fisher import Network, Parameters, normalised, prefixes, twin_fisher
from bayes_rl.losses import add_penalty_gradients, quadratic_penalty, sum_of_quadratics
from bayes_rl.networks import Twin
from bayes_rl.types import check, check_choice

METHODS = ("none", "ewc", "online_ewc", "vcl")
FROZEN = 0.01  # of its tensor's root mean square: a weight that cannot get further counts as frozen
SCALES = (1e-6, 1e3)  # ratios of penalty and |loss| beyond which one of them does not count


@dataclass(frozen=True)
class ConsolidationSettings:
    """What is done at the end of a task.

    Args:
        method: `none`; `ewc`, an anchor and a Fisher diagonal for each task (Kirkpatrick et al. 2017,
            arXiv:1612.00796); `online_ewc`, one anchor and a decayed Fisher diagonal (Schwarz et al. 2018,
            arXiv:1805.06370); `vcl`, the posterior of Bayesian weights becomes their prior, and only deterministic
            parameters are anchored, as by `ewc`.
        ewc_lambda: strength of the penalty, >= 0, in nats per squared unit of weight and unit of Fisher; 0: none.
        protect: whose weights: of the `actor`s, the `critic`s or `both`.
        fisher: expectation over what the network says (`true`), or at what was done and observed (`empirical`).
        fisher_samples: transitions of a task that the Fisher is averaged over, >= 1.
        fisher_norm: `none`, or `mean`: a task's Fisher is divided by its mean over all protected weights.
        online_decay: what a task leaves of the Fisher of those before it, in [0, 1], for `online_ewc`.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    method: str = "none"
    ewc_lambda: float = 0.0
    protect: str = "both"
    fisher: str = "true"
    fisher_samples: int = 2000
    fisher_norm: str = "none"
    online_decay: float = 1.0

    def __post_init__(self) -> None:
        check_choice("model.consolidation", self.method, METHODS)
        rule = "must be zero or positive, and finite"
        check(0 <= self.ewc_lambda < math.inf, "model.ewc_lambda", self.ewc_lambda, rule)
        check_choice("model.protect", self.protect, ("actor", "critic", "both"))
        check_choice("model.fisher", self.fisher, ("true", "empirical"))
        check(self.fisher_samples >= 1, "model.fisher_samples", self.fisher_samples, "must be at least 1 transition")
        check_choice("model.fisher_norm", self.fisher_norm, ("none", "mean"))
        check(0 <= self.online_decay <= 1, "model.online_decay", self.online_decay, "must lie within 0 and 1")

    def networks(self) -> list[Network]:
        """Those that are protected."""
        return [(kind, pair) for kind in ("actor", "critic") if self.protect in (kind, "both") for pair in range(2)]


class ElasticWeightConsolidation(nn.Module):
    """Anchor and Fisher diagonal of the protected parameters, in buffers keyed by parameter name.

    The quadratics of any number of tasks are one quadratic and a constant, two tensors in all.

    Args:
        parameters: the parameters to protect, by name. Log-variances of Bayesian layers do not belong here:
            the penalty anchors means.
        settings: strength of the penalty, and how tasks add up.
    """

    consolidations: Tensor
    constant: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.names = list(parameters)
        self._keys = [[_key(what, name) for name in self.names] for what in ("anchor", "fisher")]
        for name, p in parameters.items():
            self.register_buffer(_key("anchor", name), torch.zeros_like(p))
            self.register_buffer(_key("fisher", name), torch.zeros_like(p))
        like = next(iter(parameters.values()), torch.zeros(()))
        self.register_buffer("constant", like.detach().new_zeros(()))
        self.register_buffer("consolidations", torch.zeros((), dtype=torch.int64))
        self._any = False  # a consolidation, known without asking the device

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._any = bool(self.consolidations > 0)

    @property
    def active(self) -> bool:
        """Whether there is a penalty yet."""
        return self._any and bool(self.names)

    def anchor(self, name: str) -> Tensor:
        """w* of one parameter."""
        return self.get_buffer(_key("anchor", name))

    def fisher(self, name: str) -> Tensor:
        """F of one parameter, summed over the tasks."""
        return self.get_buffer(_key("fisher", name))

    @torch.no_grad()
    def consolidate(self, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
        """Add a task: its last `parameters` and the Fisher diagonal there; both must name every protected tensor."""
        for name in self.names:
            old, anchor, new = self.fisher(name), self.anchor(name), fisher[name]
            if self.settings.method == "online_ewc":
                merged = self.settings.online_decay * old + new, parameters[name], torch.zeros_like(self.constant)
            else:
                merged = sum_of_quadratics(old, anchor, new, parameters[name])
            old.copy_(merged[0])
            anchor.copy_(merged[1])
            self.constant += merged[2]
        self.consolidations += 1
        self._any = True

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(lambda / 2) sum_tasks sum_i F_i (w_i - w*_i)^2 over all protected tensors: a scalar >= 0, in nats.

        Of the online method there is one F and one w*. Before the first consolidation it is a constant 0, and no
        parameter has a gradient of it.
        """
        if not self.active:
            return torch.zeros_like(self.constant)
        parts = [quadratic_penalty(*three) for three in zip(*self._tensors(parameters), strict=True)]
        return self.settings.ewc_lambda * (torch.stack(parts).sum() + 0.5 * self.constant)

    def add_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the gradient of `penalty` to `.grad` of every protected tensor that has one."""
        if self.active:
            add_penalty_gradients(*self._tensors(parameters), self.settings.ewc_lambda)

    def _tensors(self, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Any], list[Any]]:
        """Protected tensors, their anchors and Fisher diagonals."""
        # Straight from the dictionary: a module takes long to find a buffer.
        kept: dict[str, Any] = self._buffers
        anchors, fishers = ([kept[key] for key in keys] for keys in self._keys)
        return [parameters[name] for name in self.names], anchors, fishers


def _key(what: str, name: str) -> str:
    return f"{what}_{name.replace('.', '__')}"  # a buffer's name has no dots


# ------------------------------------------------------------------ the module's partner
class Consolidator(nn.Module):
    """Keeps what a twin learned, as the settings say.

    Args:
        twin: the networks; only names and shapes are taken from it.
        settings: what to protect, and how.
    """

    _twin: Twin | None  # whose parameters are known by name

    def __init__(self, twin: Twin, settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ewc = ElasticWeightConsolidation(protected(twin, settings), settings)
        object.__setattr__(self, "_twin", None)  # known, but no part of this module
        self._named: dict[str, Tensor] = {}
        self._asked: int | None = None  # `out_of_scale` after the last consolidation, first at this update
        self._largest, self._warned = 0.0, False

    def penalty(self, twin: Twin) -> Tensor:
        """(lambda / 2) sum_i F_i (w_i - w*_i)^2, a scalar in nats; see `ElasticWeightConsolidation.penalty`."""
        return self.ewc.penalty(self._by_name(twin))

    def add_gradients(self, twin: Twin) -> None:
        """Add the gradient of `penalty` to that of the loss, where there is one: what rests has none."""
        self.ewc.add_gradients(self._by_name(twin))

    def _by_name(self, twin: Twin) -> dict[str, Tensor]:
        if self._twin is not twin:  # walking the tree takes its time too
            object.__setattr__(self, "_twin", twin)
            self._named = dict(twin.named_parameters())
        return self._named

    def consolidate(
        self,
        twin: Twin,
        observation: Tensor,
        action: Tensor,
        targets: Tensor | None,
        generator: torch.Generator,
        task: int = 0,
    ) -> None:
        """End a task: register the Fisher diagonal on samples of it, and anchor the present weights.

        No network is changed and nothing drawn from the global generator; arguments and errors are `twin_fisher`'s.
        """
        s = self.settings
        if s.method == "none":
            return
        parameters, fisher = protected(twin, s), {}
        if parameters:
            samples = observation, action, targets
            fisher = twin_fisher(twin, s.networks(), parameters, s.fisher, *samples, generator, task)
            fisher = normalised(fisher) if s.fisher_norm == "mean" else fisher
        self.ewc.consolidate(parameters, fisher)
        self._asked, self._largest = None, 0.0
        if s.method == "vcl":
            twin.become_prior(task)

    @torch.no_grad()
    def frozen_share(self, twin: Twin, optimizer: torch.optim.Optimizer) -> float:
        """Share of the protected weights, in [0, 1], that the penalty keeps where they are.

        A weight's reach is d_i = rms gradient_i / (lambda F_i), the distance from the anchor at which the penalty pulls
        as strongly as gradients usually do. Frozen is where that is below `FROZEN` rms weight of the tensor.

        Args:
            twin: the networks.
            optimizer: Adam or AdamW of them. The rms gradient is the root of its `exp_avg_sq`, bias-corrected; it
                includes the penalty's own part. Where it is 0 nothing is held back: such a weight counts as free.
        """
        named, frozen, weights = dict(twin.named_parameters()), 0.0, 0
        decay = {id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
        for name in self.ewc.names:
            p = named[name]
            weights += p.numel()
            state = optimizer.state.get(p)
            if state:
                correction = 1 - decay[id(p)] ** float(state["step"])
                pull = self.settings.ewc_lambda * self.ewc.fisher(name) * FROZEN * p.square().mean().sqrt()
                rms = (state["exp_avg_sq"] / correction).sqrt()
                frozen += float(((rms > 0) & (rms < pull)).sum())
        return frozen / max(1, weights)

    def out_of_scale(self, penalty: float, loss: float, update: int, patience: int = 1000) -> str | None:
        """A message if lambda does not fit, once in the life of this object.

        That is so if the penalty exceeds `SCALES[1]` |loss|, or if it was below `SCALES[0]` |loss| each time this was
        asked since a consolidation, `patience` updates long.

        Args:
            penalty: of this update, in nats.
            loss: the rest of the loss.
            update: number of this update; not every one has to be asked about.
            patience: updates from the first question after a consolidation.
        """
        if self._warned or not self.ewc.active:
            return None
        self._asked = update if self._asked is None else self._asked
        movable = penalty - 0.5 * self.settings.ewc_lambda * float(self.ewc.constant)  # what weights can change
        ratio = movable / max(abs(loss), 1e-12)
        self._largest = max(self._largest, ratio)
        weak = self._largest < SCALES[0] and update - self._asked >= patience
        self._warned = weak or ratio > SCALES[1]
        if not self._warned:
            return None
        advice = "nothing is protected, raise it" if weak else "nothing else is learned, lower it"
        return f"--model.ewc_lambda {self.settings.ewc_lambda:g}: the penalty is {ratio:.1g} of the loss: {advice}"

    @property
    def memory_bytes(self) -> int:
        """What anchors and Fisher diagonals take."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def describe(self) -> str:
        """One line for the user."""
        s, weights = self.settings, sum(self.ewc.anchor(name).numel() for name in self.ewc.names)
        if not weights:
            return f"consolidation: {s.method}, no penalty"
        whose = "actors and critics" if s.protect == "both" else f"the {s.protect}s"
        kind = "deterministic weights" if s.method == "vcl" else "weights"
        size = f"{self.memory_bytes / 2**20:.1f} MiB"
        return f"consolidation: {s.method}, lambda {s.ewc_lambda:g}, protects {weights:,} {kind} of {whose}, {size}"


def protected(twin: Twin, settings: ConsolidationSettings) -> Parameters:
    """What the penalty anchors, by name in the twin: means of Bayesian weights and all deterministic parameters.

    Not log-variances, and not factors of `low_rank`, on which nothing depends at mean weights: their Fisher would be 0.
    With `vcl` no Bayesian weights at all; nothing if there is no penalty.
    """
    if settings.method == "none" or not settings.ewc_lambda:
        return {}
    tasks = range(len(twin.actors) // 2)  # more than one where each has heads of its own
    own = tuple(p for network in settings.networks() for task in tasks for p in prefixes(twin, network, task))
    free = ("weight_log_var", "weight_factor", *(["weight_mu"] if settings.method == "vcl" else []))
    return {n: p for n, p in twin.named_parameters() if n.startswith(own) and not n.endswith(free)}
