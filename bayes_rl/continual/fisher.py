"""Fisher diagonals of the twin's networks: what each weight matters for what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bayes_rl.bayes.likelihoods import sampled_log_prob
from bayes_rl.networks.actor_critic import TwinActorCritic

FISHER_CHUNK = 2**23
"""Derivatives held at once, 32 MiB in float32; those of one sample where that has more."""


Parameters = dict[str, Tensor]


Score = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
"""A log-likelihood of one sample (no batch axis) as a function of the parameters: a scalar."""


Network = tuple[str, int]
"""One of the twin's four: its kind, `actor` or `critic`, and its pair, 0 or 1."""


def fisher_diagonal(score: Score, parameters: Parameters, chunks: Iterable[tuple[Tensor, ...]]) -> Parameters:
    """Mean over samples of the squared **per-sample** gradient of `score`; does not depend on the chunks' sizes.

    Args:
        score: log-likelihood of one sample, in nats.
        parameters: name to tensor.
        chunks: samples, in tensors whose first axis counts them, `[m, ...]`. The derivatives of a chunk take m times
            the memory of the parameters.

    Returns:
        Name to tensor >= 0, shaped as `parameters`.
    """
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    per_sample = vmap(grad(score), in_dims=(None, 0), randomness="error")
    count = 0
    for chunk in chunks:
        count += len(chunk[0])
        for name, gradients in per_sample(parameters, chunk).items():
            for g in gradients:  # one by one: the squares of a whole chunk would have to go through memory
                total[name].addcmul_(g, g)
    return {name: t / count for name, t in total.items()}


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), one in each of `count` equal intervals, in random order: `[count]` float64."""
    order = torch.randperm(count, generator=generator)
    return (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count


def normalised(fisher: Parameters) -> Parameters:
    """Divided by the mean over all weights, so that a strength means the same for every task; zeros stay zeros."""
    mean = sum(float(f.sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
    return {name: f / mean for name, f in fisher.items()} if mean else fisher


def prefixes(twin: TwinActorCritic, network: Network, task: int = 0) -> tuple[str, str]:
    """Names of a network's trunk and head in the twin, as prefixes of parameter names."""
    kind, pair = network
    return twin.critic_prefixes(pair, task) if kind == "critic" else twin.actor_prefixes(pair, task)


class _Alone(nn.Module):
    """One network of the twin as a module of its own, for `functional_call`."""

    def __init__(self, twin: TwinActorCritic, network: Network, task: int) -> None:
        super().__init__()
        self.twin, self.network, self.task = twin, network, task

    def forward(self, prepared: Tensor) -> Tensor:
        kind, pair = self.network
        network = self.twin.actor if kind == "actor" else self.twin.critic
        return network(pair, prepared, self.task)


def network_score(twin: TwinActorCritic, network: Network, fisher: str, task: int = 0) -> Score:
    """Score of one network at mean weights, whose squared gradient is the Fisher diagonal on average.

    A sample is (prepared observation, action, uniform number in [0, 1), TD target), without a batch axis.

    Args:
        twin: the networks.
        network: whose score. An actor's is that of the policy softmax(logits), also as a function of a shared trunk
            (that training stops its gradient there does not matter: the policy is what is to be kept); a critic's
            that of the likelihood of Q(s, a).
        fisher: `true`, of what the network itself says (drawn by the uniform number), or `empirical`, of the action
            that was taken and its TD target.
        task: whose heads.
    """
    alone, likelihood = _Alone(twin, network, task), twin.likelihood

    def score(parameters: Parameters, sample: tuple[Tensor, ...]) -> Tensor:
        state, action, u, target = sample
        named = {f"twin.{name}": p for name, p in parameters.items()}
        output = functional_call(alone, named, (state[None],))[0]
        if network[0] == "actor":
            if fisher == "true":
                return sampled_log_prob(output, u)
            return output.log_softmax(-1).gather(0, action[None]).squeeze(0)
        taken = output.gather(0, action.expand(1, output.shape[-1])).squeeze(0)
        return likelihood.fisher_score(taken, u) if fisher == "true" else -likelihood.nll(taken, target)

    return score


@torch.no_grad()
def twin_fisher(
    twin: TwinActorCritic,
    networks: Sequence[Network],
    parameters: Parameters,
    fisher: str,
    observation: Tensor,
    action: Tensor,
    targets: Tensor | None,
    generator: torch.Generator,
    task: int = 0,
) -> Parameters:
    """Sum of the Fisher diagonals of several of a twin's networks.

    Args:
        twin: the networks.
        networks: which of them.
        parameters: those to find a Fisher of, by name in the twin.
        fisher: `true` or `empirical`, see `network_score`.
        observation: `[M, *observation_shape]`, as stored, on any device.
        action: as executed, `[M]` int64.
        targets: TD targets of both pairs, `[2, M]`, without the prior function's part; None if no score needs them.
        generator: of the CPU; nothing is drawn from the global one.
        task: whose heads.

    Returns:
        Name to tensor, as `parameters`.

    Raises:
        ValueError: if there is no sample, shapes do not agree, targets are missing, or a result is not finite.
    """
    count, device = len(action), twin.device
    if targets is None:
        if fisher == "empirical" and any(kind == "critic" for kind, _ in networks):
            raise ValueError("the empirical Fisher of critics needs TD targets")
        targets = torch.zeros(2, count)
    if not count or action.ndim != 1 or len(observation) != count or targets.shape != (2, count):
        shapes = ", ".join(str(tuple(x.shape)) for x in (observation, action, targets))
        raise ValueError(f"shapes must be [M, ...], [M] and [2, M] with M > 0, got {shapes}")

    def chunks(u: Tensor, target: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
        for samples in zip(*(x.split(size) for x in (observation, action, u, target)), strict=True):
            state, *others = (x.to(device) for x in samples)
            yield twin.prepare(state), *others

    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with torch.autocast(device.type, enabled=False):
        for network in networks:
            mine = {name: p for name, p in parameters.items() if name.startswith(prefixes(twin, network, task))}
            size = max(1, FISHER_CHUNK // sum(p.numel() for p in mine.values()))
            samples = chunks(stratified(count, generator).float(), targets[network[1]], size)
            for name, f in fisher_diagonal(network_score(twin, network, fisher, task), mine, samples).items():
                total[name] += f
    for name, f in total.items():
        if not f.isfinite().all():
            raise ValueError(f"the Fisher of {name} is not finite")
    return total
