"""Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bayes_rl.losses import quadratic_penalty
from bayes_rl.networks import Twin
from bayes_rl.types import Transition, check

FISHER_CHUNK = 16  # per-sample gradients held at once
Parameters = dict[str, Tensor]
Score = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
"""A log-likelihood of one sample (no batch axis) as a function of the parameters: a scalar."""


def fisher_diagonal(score: Score, parameters: Parameters, samples: tuple[Tensor, ...], chunk_size: int) -> Parameters:
    """Mean over samples of the squared **per-sample** gradient of `score`; does not depend on `chunk_size`.

    Args:
        score: log-likelihood of one sample, in nats.
        parameters: name to tensor.
        samples: tensors whose first axis counts the samples `[M, ...]`.
        chunk_size: samples whose gradients are held at once; memory is `chunk_size` times the parameters.

    Returns:
        Name to tensor >= 0, shaped as `parameters`.
    """
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    per_sample = vmap(grad(score), in_dims=(None, 0), randomness="error")
    count = samples[0].shape[0]
    for start in range(0, count, chunk_size):
        chunk = tuple(s[start : start + chunk_size] for s in samples)
        for name, g in per_sample(parameters, chunk).items():
            total[name] += g.square().sum(0)
    return {name: t / count for name, t in total.items()}


class _SingleCritic(nn.Module):
    """One critic of the twin as a module of its own, for `functional_call`."""

    def __init__(self, twin: Twin, pair: int) -> None:
        super().__init__()
        self.twin, self.pair = twin, pair

    def forward(self, prepared: Tensor) -> Tensor:
        return self.twin.critic(self.pair, prepared)


def critic_score(twin: Twin, pair: int) -> Score:
    """Score of Q_pair(s, a) under the critics' likelihood, whose squared gradient is the Fisher diagonal on average.

    A sample is (prepared observation, action, uniform number in [0, 1)), without a batch axis.
    """
    critic = _SingleCritic(twin, pair)

    def score(parameters: Parameters, sample: tuple[Tensor, ...]) -> Tensor:
        state, action, u = sample
        named = {f"twin.{name}": p for name, p in parameters.items()}
        raw = functional_call(critic, named, (state[None],))[0]
        taken = raw.gather(0, action.expand(1, raw.shape[-1])).squeeze(0)
        return twin.likelihood.fisher_score(taken, u)

    return score


class ElasticWeightConsolidation(nn.Module):
    """Anchor and Fisher diagonal of the protected parameters, kept in buffers, keyed by parameter name.

    Args:
        parameters: the parameters to protect, by name. Log-variances of Bayesian layers do not belong here:
            the penalty anchors means.
        ewc_lambda: strength of the penalty, >= 0, in nats per squared unit of weight and unit of Fisher.
    """

    consolidations: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], ewc_lambda: float) -> None:
        super().__init__()
        check(ewc_lambda >= 0, "model.ewc_lambda", ewc_lambda, "must be zero or positive")
        self.ewc_lambda = ewc_lambda
        self._keys = {name: name.replace(".", "__") for name in parameters}
        for name, key in self._keys.items():
            self.register_buffer(f"anchor_{key}", torch.zeros_like(parameters[name]))
            self.register_buffer(f"fisher_{key}", torch.zeros_like(parameters[name]))
        self.register_buffer("consolidations", torch.zeros((), dtype=torch.int64))

    def consolidate(self, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
        """Move the anchor to `parameters` and replace the Fisher diagonal; both must name every protected tensor."""
        for name, key in self._keys.items():
            self.get_buffer(f"anchor_{key}").copy_(parameters[name].detach())
            self.get_buffer(f"fisher_{key}").copy_(fisher[name].detach())
        self.consolidations += 1

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(lambda / 2) sum_i F_i (w_i - w*_i)^2 over all protected tensors: a scalar >= 0, 0 before the first
        consolidation (the Fisher is zero then).
        """
        parts = [
            quadratic_penalty(parameters[name], self.get_buffer(f"anchor_{key}"), self.get_buffer(f"fisher_{key}"))
            for name, key in self._keys.items()
        ]
        return self.ewc_lambda * torch.stack(parts).sum()


class Consolidator(nn.Module):
    """EWC of a twin's critics: remembers the latest minibatches, and registers the Fisher diagonal on them.

    Args:
        twin: whose critics are protected: the means of Bayesian weights and all deterministic ones.
        ewc_lambda: strength of the penalty.
        every: updates between registrations; 0 never registers.
        batches: latest minibatches the Fisher is averaged over.
    """

    def __init__(self, twin: Twin, ewc_lambda: float, every: int, batches: int) -> None:
        super().__init__()
        self.ewc = ElasticWeightConsolidation(protected(twin), ewc_lambda)
        self.every = every
        self.samples: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)  # observation, action
        self.registered_at = 0  # the update of the last registration

    def penalty(self, twin: Twin, transition: Transition, update: int) -> Tensor:
        """Remember the minibatch, register if it is time, and return the penalty."""
        self.samples.append((transition.observation, transition.action))
        if self.every and update % self.every == 0 and update > self.registered_at:
            self.consolidate(twin)
            self.registered_at = update
        return self.ewc.penalty(protected(twin))

    @torch.no_grad()
    def consolidate(self, twin: Twin) -> None:
        """Register the critics' Fisher diagonal on the latest minibatches, and anchor the present weights."""
        if not self.samples:
            return
        device, parameters = twin.device, protected(twin)
        fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        with torch.autocast(device.type, enabled=False):
            observation = twin.prepare(torch.cat([o.to(device) for o, _ in self.samples]))
            action = torch.cat([a.to(device) for _, a in self.samples])
            u = torch.rand(len(action), device=device)
            for pair in range(2):
                mine = protected(twin, (pair,))
                part = fisher_diagonal(critic_score(twin, pair), mine, (observation, action, u), FISHER_CHUNK)
                for name, value in part.items():
                    fisher[name] += value
        self.ewc.consolidate(parameters, fisher)


def protected(twin: Twin, pairs: tuple[int, ...] = (0, 1)) -> Parameters:
    """What EWC anchors of the given critics, by name in the twin."""
    prefixes = tuple(prefix for pair in pairs for prefix in twin.critic_prefixes(pair))
    parameters = twin.named_parameters()
    return {n: p for n, p in parameters if n.startswith(prefixes) and not n.endswith("weight_log_var")}
