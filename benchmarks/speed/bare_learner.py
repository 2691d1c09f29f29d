"""Update of the benchmark `learner` written by hand: plain PyTorch, no modules, no Lightning, no hooks.

Same mathematics as `VariationalActorCritic` with a shared trunk, a moving average as target and cross-entropy actors.
From the same weights and random numbers both learn the same weights (`tests/benchmarks/test_learner.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.types import Batch

Layer = tuple[Tensor, Tensor]  # weight and bias
STRIDES = {"nature": (4, 2, 1), "minatar": (1,)}


class Trunk:
    """Convolutions, linear layers and layer normalisations of an encoder, in the order of evaluation."""

    def __init__(self, encoder: str, tensors: list[Tensor]) -> None:
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        self.encoder = encoder
        self.convs = [pair for pair in pairs if pair[0].ndim == 4]
        self.linears = [pair for pair in pairs if pair[0].ndim == 2]
        self.norms = [pair for pair in pairs if pair[0].ndim == 1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of a minibatch: `[B, H]`."""
        if self.encoder == "mlp":
            x = _normed(F.linear(x, *self.linears[0]), self.norms[0]).relu_()
        elif self.encoder == "impala":
            x = self._residual(x)
        else:
            for layer, stride in zip(self.convs, STRIDES[self.encoder], strict=True):
                x = F.conv2d(x, *layer, stride).relu_()
        return _normed(F.linear(x.flatten(1), *self.linears[-1]), self.norms[-1]).relu_()

    def _residual(self, x: Tensor) -> Tensor:
        for i in range(0, 15, 5):  # a convolution and two blocks of two
            x = F.max_pool2d(F.conv2d(x, *self.convs[i], padding=1), 3, 2, 1)
            for j in (i + 1, i + 3):
                inner = F.conv2d(F.relu(x), *self.convs[j], padding=1).relu_()
                x = x + F.conv2d(inner, *self.convs[j + 1], padding=1)
        return x.relu_()


def _normed(x: Tensor, layer: Layer) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *layer)


class BareLearner:
    """Parameters, their moving average and an optimizer, with one method.

    Args:
        agent: its networks and settings are copied; one trunk, `target` ema, `actor_loss` cross_entropy.
        encoder: name of the agent's encoder.
        dtype: number format of the trunk's arithmetic: float32, or bfloat16 by autocast.
    """

    def __init__(self, agent: VariationalActorCritic, encoder: str, dtype: torch.dtype) -> None:
        self.options, self.dtype = agent.hparams, dtype
        self.bayesian = self.options.network["bayesian"] == "heads"
        self.tensors = _tensors(agent, self.bayesian)
        self.averages = [tensor.clone() for tensor in self.tensors]
        for tensor in self.tensors:
            tensor.requires_grad_()
        count = 6 if self.bayesian else 4  # of the heads
        self.heads, self.average_heads = self.tensors[-count:], self.averages[-count:]
        self.trunk = Trunk(encoder, self.tensors[:-count])
        self.average_trunk = Trunk(encoder, self.averages[:-count])
        self.optimizer = torch.optim.AdamW(
            self.tensors,
            lr=self.options.optimizer["critic_lr"],
            eps=self.options.optimizer["adam_eps"],
            weight_decay=0,
            fused=True,
        )

    def update(self, batch: Batch) -> Tensor:
        """Do one whole update and return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.tensors, self.options.objective["tau"])
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Return the negative ELBO of the critics plus the cross-entropy of the actors."""
        transition, noise_std = batch.transition, self.options.likelihood["noise_std"]
        policy_temperature = self.options.objective["policy_temperature"]
        target = self._target(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            features = self.trunk(self._prepared(transition.observation))
        logits, q_values = (y.unflatten(1, (2, -1)) for y in self._sampled_heads(features.float()))  # [B, 2, A]
        q = q_values.gather(2, transition.action[:, None, None].expand(-1, 2, 1))[..., 0]
        error = (target[:, None] - q) / noise_std
        nll = (0.5 * error.square() + math.log(noise_std) + 0.5 * math.log(2 * math.pi)).mean(0).sum()
        policy = (q_values.detach().mean(1, keepdim=True) / policy_temperature).softmax(-1)
        actor_loss = -(policy * logits.log_softmax(-1)).sum(-1).mean(0).sum()
        return nll + self.options.objective["kl_temperature"] / batch.num_data * self._kl() + actor_loss

    @torch.no_grad()
    def _target(self, batch: Batch) -> Tensor:
        transition = batch.transition
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            features = self.average_trunk(self._prepared(transition.next_observation)).float()
        means, biases = (self.average_heads[0], self.average_heads[2]), (self.average_heads[1], self.average_heads[3])
        logits, q = (F.linear(features, m, b).unflatten(1, (2, -1)) for m, b in zip(means, biases, strict=True))
        value = (logits.softmax(-1).mean(1) * q.mean(1)).sum(-1)
        return torch.addcmul(transition.reward, transition.discount, value)

    def _prepared(self, observation: Tensor) -> Tensor:
        if observation.dtype != torch.uint8:
            return observation
        x = torch.stack(observation.unbind(1), -1).permute(0, 3, 1, 2)  # channels last, as bytes
        return x.to(self.dtype).mul_(1 / self.options.pixel_scale)

    def _sampled_heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs of the actors, whose gradient ends at the features, and of the critics: `[B, 2 A]` each."""
        inputs = features.detach(), features
        rows = [F.linear(x, *self.heads[2 * i : 2 * i + 2]) for i, x in enumerate(inputs)]
        if not self.bayesian:
            return rows[0], rows[1]
        noise = torch.randn(len(features), rows[0].shape[1] + rows[1].shape[1]).split([y.shape[1] for y in rows], 1)
        spread = [(x.square() @ self._log_var(i).exp().t() + 1e-8).sqrt() for i, x in enumerate(inputs)]
        actors, critics = (torch.addcmul(y, s, e) for y, s, e in zip(rows, spread, noise, strict=True))
        return actors, critics

    def _log_var(self, which: int) -> Tensor:
        limit = self.options.posterior["log_var_limit"]
        return self.heads[4 + which].clamp(-limit, limit)

    def _kl(self) -> Tensor:
        if not self.bayesian:
            return torch.zeros(())
        k, total = self.options.posterior["prior_precision"], torch.zeros(())
        for i in range(2):
            log_var = self._log_var(i)
            total = total + (k * (self.heads[2 * i].square() + log_var.exp()) - 1 - log_var - math.log(k)).sum()
        return 0.5 * total


def _tensors(agent: VariationalActorCritic, bayesian: bool) -> list[Tensor]:
    """Return the trunk's parameters, means and biases of both actors and of both critics, and their log-variances."""
    twin = agent.twin
    heads = [[head.state_dict() for head in heads] for heads in (twin.actors, twin.critics)]
    names = ("weight_mu", "bias") if bayesian else ("weight", "bias")
    joined = [torch.cat([head[name] for head in pair]) for pair in heads for name in names]
    joined += [torch.cat([head["weight_log_var"] for head in pair]) for pair in heads] if bayesian else []
    return [parameter.detach().clone() for parameter in twin.trunks[0].parameters()] + joined
