"""Fisher diagonals of the twin's networks: the importance of each weight for the networks' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bayes_rl.bayes.likelihoods import sampled_log_prob
from bayes_rl.networks.actor_critic import TwinActorCritic

FISHER_CHUNK = 2**23
"""Largest number of derivatives in memory, 32 MiB in float32; at least the derivatives of one sample."""


Parameters = dict[str, Tensor]
"""Name to tensor."""


Score = Callable[[Parameters, tuple[Tensor, ...]], Tensor]
"""Log-likelihood of one sample (no batch axis) as a function of the parameters: a scalar in nats."""


Network = tuple[str, int]
"""Name of one of the twin's four networks: kind, `actor` or `critic`, and pair, 0 or 1."""


def fisher_diagonal(score: Score, parameters: Parameters, chunks: Iterable[tuple[Tensor, ...]]) -> Parameters:
    """Return the mean over samples of the squared **per-sample** gradient of `score`.

    The result does not depend on the sizes of the chunks.

    Args:
        score: log-likelihood of one sample, in nats.
        parameters: name to tensor.
        chunks: chunks of m samples, tensors `[m, ...]`. The derivatives of a chunk take m times the memory of the
            parameters.

    Returns:
        Name to tensor >= 0, shaped as `parameters`.
    """
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    per_sample = vmap(grad(score), in_dims=(None, 0), randomness="error")
    count = 0
    for chunk in chunks:
        count += len(chunk[0])
        for name, gradients in per_sample(parameters, chunk).items():
            for gradient in gradients:  # avoids a copy in memory with the squares of a whole chunk
                sums[name].addcmul_(gradient, gradient)
    return {name: squares / count for name, squares in sums.items()}


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers in [0, 1), one in each of `count` equal intervals, in random order.

    Args:
        count: number of intervals.
        generator: generator of the CPU.

    Returns:
        `[count]` float64.
    """
    order = torch.randperm(count, generator=generator)
    return (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count


def normalised(fisher: Parameters) -> Parameters:
    """Divide a Fisher diagonal by its mean over all weights, so that a penalty's strength is comparable across tasks.

    Args:
        fisher: name to tensor >= 0.

    Returns:
        Name to tensor, with mean 1 over all weights; `fisher` itself if all of its entries are zero.
    """
    diagonals = fisher.values()
    mean = sum(float(diagonal.sum()) for diagonal in diagonals) / sum(diagonal.numel() for diagonal in diagonals)
    return {name: diagonal / mean for name, diagonal in fisher.items()} if mean else fisher


def prefixes(twin: TwinActorCritic, network: Network, task: int = 0) -> tuple[str, str]:
    """Return names of a network's trunk and head in the twin, as prefixes of parameter names.

    Args:
        twin: the networks.
        network: kind and pair of the network.
        task: number of the task whose head is named, if every task has heads.

    Returns:
        Prefix of the trunk and prefix of the head, each with a final dot.
    """
    kind, pair = network
    return twin.critic_prefixes(pair, task) if kind == "critic" else twin.actor_prefixes(pair, task)


class _SingleNetwork(nn.Module):
    """Module that evaluates one network of the twin, for `functional_call`."""

    def __init__(self, twin: TwinActorCritic, network: Network, task: int) -> None:
        super().__init__()
        self.twin, self.network, self.task = twin, network, task

    def forward(self, prepared: Tensor) -> Tensor:
        """Return the network's outputs for prepared observations `[B, ...]`."""
        kind, pair = self.network
        network = self.twin.actor if kind == "actor" else self.twin.critic
        return network(pair, prepared, self.task)


def network_score(twin: TwinActorCritic, network: Network, fisher: str, task: int = 0) -> Score:
    """Return the score of one network at mean weights. The expected squared gradient is the Fisher diagonal.

    A sample is (prepared observation, action, uniform number in [0, 1), TD target), without a batch axis.

    An actor's score is that of the policy softmax(logits), also as a function of a shared trunk. In training, no
    gradient of an actor reaches a shared trunk; the score differentiates the trunk nevertheless, because consolidation
    protects the policy, and the policy depends on the trunk. A critic's score is that of the likelihood of Q(s, a).

    Args:
        twin: the networks.
        network: kind and pair of the network.
        fisher: `true` for outcomes that the network predicts (drawn by the uniform number), or `empirical` for the
            executed action and its TD target.
        task: number of the task whose heads are used.

    Returns:
        Function of parameters (by name in the twin) and a sample, with a scalar in nats.
    """
    module, likelihood = _SingleNetwork(twin, network, task), twin.likelihood

    def score(parameters: Parameters, sample: tuple[Tensor, ...]) -> Tensor:
        state, action, u, target = sample
        module_parameters = {f"twin.{name}": p for name, p in parameters.items()}
        output = functional_call(module, module_parameters, (state[None],))[0]
        if network[0] == "actor":
            if fisher == "true":
                return sampled_log_prob(output, u)
            return output.log_softmax(-1).gather(0, action[None]).squeeze(0)
        raw = output.gather(0, action.expand(1, output.shape[-1])).squeeze(0)
        return likelihood.fisher_score(raw, u) if fisher == "true" else -likelihood.nll(raw, target)

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
    """Return the sum of the Fisher diagonals of several networks of a twin.

    Args:
        twin: the networks.
        networks: kinds and pairs of the networks whose Fisher diagonals are summed.
        parameters: parameters whose Fisher diagonal is computed, by name in the twin.
        fisher: `true` or `empirical`, see `network_score`.
        observation: `[M, *observation_shape]`, as stored, on any device.
        action: executed actions, `[M]` int64.
        targets: TD targets of both pairs, `[2, M]`, in (clipped) return units, without the prior function's part;
            None if no score needs targets.
        generator: generator of the CPU; no number is drawn from the global generator.
        task: number of the task whose heads are used.

    Returns:
        Name to tensor >= 0, shaped as `parameters`.

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
        """Yield chunks of at most `size` samples, on the device of the twin."""
        for samples in zip(*(x.split(size) for x in (observation, action, u, target)), strict=True):
            state, *others = (x.to(device) for x in samples)
            yield twin.prepare(state), *others

    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with torch.autocast(device.type, enabled=False):
        for network in networks:
            trunk_and_head = prefixes(twin, network, task)
            selected = {name: p for name, p in parameters.items() if name.startswith(trunk_and_head)}
            size = max(1, FISHER_CHUNK // sum(p.numel() for p in selected.values()))
            samples = chunks(stratified(count, generator).float(), targets[network[1]], size)
            score = network_score(twin, network, fisher, task)
            for name, diagonal in fisher_diagonal(score, selected, samples).items():
                total[name] += diagonal
    for name, diagonal in total.items():
        if not diagonal.isfinite().all():
            raise ValueError(f"the Fisher of {name} is not finite")
    return total
