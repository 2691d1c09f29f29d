"""Consolidation of finished tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_rl.bayes.kl import bayesian_layers
from bayes_rl.continual.ewc import ElasticWeightConsolidation
from bayes_rl.continual.fisher import Parameters, normalised, prefixes, twin_fisher
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.networks.actor_critic import TwinActorCritic

FROZEN = 0.01  # of its tensor's root mean square: a weight that cannot get further counts as frozen


SCALES = (1e-6, 1e3)  # ratios of penalty and |loss| beyond which one of them does not count


# ------------------------------------------------------------------ the module's partner
class Consolidator(nn.Module):
    """Keeps what a twin learned, as the settings say.

    Args:
        twin: the networks; only names and shapes are taken from it.
        settings: what to protect, and how.
    """

    _twin: TwinActorCritic | None  # whose parameters are known by name

    def __init__(self, twin: TwinActorCritic, settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ewc = ElasticWeightConsolidation(protected(twin, settings), settings)
        object.__setattr__(self, "_twin", None)  # known, but no part of this module
        self._named: dict[str, Tensor] = {}
        self._asked: int | None = None  # `out_of_scale` after the last consolidation, first at this update
        self._largest, self._warned = 0.0, False

    def penalty(self, twin: TwinActorCritic) -> Tensor:
        """(lambda / 2) sum_i F_i (w_i - w*_i)^2, a scalar in nats; see `ElasticWeightConsolidation.penalty`."""
        return self.ewc.penalty(self._by_name(twin))

    def add_gradients(self, twin: TwinActorCritic) -> None:
        """Add the gradient of `penalty` to that of the loss, where there is one: what rests has none."""
        self.ewc.add_gradients(self._by_name(twin))

    def _by_name(self, twin: TwinActorCritic) -> dict[str, Tensor]:
        if self._twin is not twin:  # walking the tree takes its time too
            object.__setattr__(self, "_twin", twin)
            self._named = dict(twin.named_parameters())
        return self._named

    def consolidate(
        self,
        twin: TwinActorCritic,
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
    def frozen_share(self, twin: TwinActorCritic, optimizer: torch.optim.Optimizer) -> float:
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


def protected(twin: TwinActorCritic, settings: ConsolidationSettings) -> Parameters:
    """What the penalty anchors, by name in the twin: means of Bayesian weights and all deterministic parameters.

    Not log-variances, and not factors of `low_rank`, on which nothing depends at mean weights: their Fisher would be 0.
    With `vcl` no Bayesian weights at all; nothing if there is no penalty.
    """
    if settings.method == "none" or not settings.ewc_lambda:
        return {}
    tasks = range(len(twin.actors) // 2)  # more than one where each has heads of its own
    own = tuple(p for network in settings.networks() for task in tasks for p in prefixes(twin, network, task))
    free = {f"{key}.{name}" for key, layer in bayesian_layers(twin).items() for name in layer.spread_parameters()}
    if settings.method == "vcl":
        free |= {f"{key}.weight_mu" for key in bayesian_layers(twin)}
    return {n: p for n, p in twin.named_parameters() if n.startswith(own) and n not in free}
