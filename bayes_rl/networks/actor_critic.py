"""Twin of two actor-critic pairs on one of the encoders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.kl import bayesian_layers, joint_kl
from bayes_rl.bayes.layers import BayesLayer, joint_parameters
from bayes_rl.bayes.likelihoods import Likelihood
from bayes_rl.bayes.ops import joined_linear
from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.errors import check
from bayes_rl.networks.encoders import build_encoder
from bayes_rl.networks.layer_factory import LayerFactory, TaskAffine, apply, channels_last
from bayes_rl.networks.prior_functions import PriorFunction

GAIN = re.compile(r"\.(?:gain|shift)\.(\d+)$")  # of which task


class TwinOutput(NamedTuple):
    """Outputs of both pairs for a batch of observations; pair first, then (given `Draws`) draw.

    Attributes:
        action_logits: `[2, (D,) B, A]` float32.
        raw: parameters of the likelihood of a return, `[2, (D,) B, A, n]` float32, without the prior function.
        q_values: `[2, (D,) B, A]` float32, in (clipped) return units, prior function included.
        prior: value of the prior function, `[(D,) B, A]`, or None without one.
        heads: the posterior of all heads together, if one product has evaluated them; else None.
        found: layers whose divergence the forward pass has computed, with their parameters.
    """

    action_logits: Tensor
    raw: Tensor
    q_values: Tensor
    prior: Tensor | None = None
    heads: PosteriorParameters | None = None
    found: Sequence[tuple[BayesLayer, PosteriorParameters]] = ()

    def mean_action_probs(self) -> Tensor:
        """Return the acting policy: the mean of both actors (and of all draws), `[B, A]`, rows summing to 1."""
        probs = self.action_logits.softmax(-1)
        return probs.flatten(0, -3).mean(0)

    def mean_q_values(self) -> Tensor:
        """Return the mean of both critics (and of all draws), `[B, A]`."""
        return self.q_values.flatten(0, -3).mean(0)


@dataclass(frozen=True)
class TwinSettings:
    """Settings that decide what the networks are.

    Args:
        encoder: name of the encoder.
        observation_shape: of one observation, channels first for images.
        num_actions: A.
        hidden_dim: width of the encoder's projection.
        shared_trunk: one encoder for all four networks, trained by the critics alone; otherwise each actor
            and each critic has its own, as in the original.
        layers: which layers are Bayesian, and how.
        prior_scale: standard deviation of the prior function in return units, 0 for none.
        pixel_scale: uint8 observations are divided by it (255 for screens, 1 for binary planes).

    Raises:
        ConfigError: a prior function without an index to depend on.
    """

    encoder: str
    observation_shape: tuple[int, ...]
    num_actions: int
    hidden_dim: int
    shared_trunk: bool
    layers: LayerFactory
    prior_scale: float = 0.0
    pixel_scale: float = 255.0

    def __post_init__(self) -> None:
        check(self.prior_scale >= 0, "model.network.prior_function_scale", self.prior_scale, "must be zero or positive")
        indexed = self.layers.family.index_size > 0
        rule = "needs draws that can make up for it: --model.posterior.family members or low_rank, with Bayesian layers"
        check(indexed or not self.prior_scale, "model.network.prior_function_scale", self.prior_scale, rule)


class TwinActorCritic(nn.Module):
    """Two actor-critic pairs: action logits, and parameters of the likelihood of every action's return, from each.

    Args:
        settings: of the networks.
        likelihood: of a return, whose parameters the critics output.
    """

    def __init__(self, settings: TwinSettings, likelihood: Likelihood) -> None:
        super().__init__()
        s = settings
        self.settings, self.shared_trunk, self.likelihood = s, s.shared_trunk, likelihood
        self.posterior = s.layers.family
        # Order: actor 0, actor 1, critic 0, critic 1; or one for all.
        self.trunks = nn.ModuleList(
            build_encoder(s.encoder, s.observation_shape, s.hidden_dim, s.layers)
            for _ in range(1 if s.shared_trunk else 4)
        )
        width: int = self.trunks[0].out_features  # type: ignore[assignment]
        count = 2 * (s.layers.num_tasks if s.layers.conditioning == "heads" else 1)  # pairs of task 0, of task 1, ...
        self.actors = nn.ModuleList(s.layers.output(width, s.num_actions) for _ in range(count))
        outputs = s.num_actions * likelihood.outputs
        self.critics = nn.ModuleList(s.layers.output(width, outputs) for _ in range(count))
        self._found: list[tuple[BayesLayer, PosteriorParameters]] = []  # by the forward pass under way
        for name, layer in bayesian_layers(self).items():
            layer.key, layer.found = name, self._found
        arguments = (s.encoder, s.observation_shape, s.num_actions, s.hidden_dim, s.prior_scale, s.layers)
        self.prior = PriorFunction(*arguments) if s.prior_scale else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layers: dict[tuple[int, ...], list[BayesLayer]] = {}
        self._parameters_without_loss: dict[frozenset[tuple[int, int]], list[nn.Parameter]] = {}
        self._gained = [module for module in self.modules() if isinstance(module, TaskAffine)]

    def draw_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the key and the weight shape of every Bayesian layer."""
        return {name: tuple(layer.shape) for name, layer in bayesian_layers(self).items()}

    def heads_of(self, pair: int, task: int = 0) -> tuple[nn.Module, nn.Module]:
        """Return the actor and critic head of a pair."""
        return self.actors[self._head(pair, task)], self.critics[self._head(pair, task)]

    def networks(self, pairs: Sequence[int], task: int = 0) -> nn.ModuleList:
        """Return trunks and heads of the given pairs (0, 1)."""
        trunks = [self.trunks[0]] if self.shared_trunk else [self.trunks[i + j] for i in pairs for j in (0, 2)]
        return nn.ModuleList([*trunks, *(head for i in pairs for head in self.heads_of(i, task))])

    def parameters_without_loss(self, learning: Iterable[tuple[int, int]]) -> list[nn.Parameter]:
        """Return parameters without a gradient from the losses of these (pair, task) combinations.

        They are those of other pairs' networks and of other tasks' heads and gains.
        """
        key = frozenset(learning)
        if key not in self._parameters_without_loss:
            tasks = {task for _, task in key}
            named = [pair for p, task in key for pair in self.networks([p], task).named_parameters()]
            own = {id(p) for name, p in named if not (match := GAIN.search(name)) or int(match[1]) in tasks}
            own |= {id(p) for p in self.likelihood.parameters()}
            self._parameters_without_loss[key] = [p for p in self.parameters() if id(p) not in own]
        return self._parameters_without_loss[key]

    def kl_divergence(self, pairs: Sequence[int] = (0, 1), output: TwinOutput | None = None, task: int = 0) -> Tensor:
        """Return KL(q || prior) of the given pairs' Bayesian layers, in nats.

        Args:
            pairs: 0, 1 or both.
            output: of a forward pass by the current weights, whose divergences need not be computed again.
            task: number of the task whose heads count.
        """
        heads = None if output is None or len(pairs) < 2 else output.heads
        key = (*pairs, task, heads is not None)
        kept = {} if torch.compiler.is_compiling() else self._layers  # capture, which walks the tree once, keeps none
        if key not in kept:  # walking the tree takes as long as the sum itself
            own = bayesian_layers(self.networks(pairs, task)).values()
            kept[key] = [x for x in own if heads is None or not x.key.startswith(("actors", "critics"))]
        found = {} if output is None else {layer.key: moments for layer, moments in output.found}
        known = [(layer, found[layer.key]) for layer in kept[key] if layer.key in found]
        known += [] if heads is None else [(cast(BayesLayer, self.actors[0]), heads)]
        rest = [layer for layer in kept[key] if layer.key not in found]
        device = self.device if output is None else output.raw.device
        return joint_kl(rest, known) if rest or known else torch.zeros((), device=device)

    def become_prior(self, task: int = 0) -> None:
        """Make the posterior of the networks that a task has trained their prior; heads of later tasks keep theirs."""
        for layer in bayesian_layers(self.networks((0, 1), task)).values():
            layer.become_prior()

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.parameters()).device

    def critic_prefixes(self, pair: int, task: int = 0) -> tuple[str, str]:
        """Return names of critic `pair`'s trunk and head, as prefixes of parameter names."""
        return f"trunks.{0 if self.shared_trunk else 2 + pair}.", f"critics.{self._head(pair, task)}."

    def actor_prefixes(self, pair: int, task: int = 0) -> tuple[str, str]:
        """Return names of actor `pair`'s trunk and head, as prefixes of parameter names."""
        return f"trunks.{0 if self.shared_trunk else pair}.", f"actors.{self._head(pair, task)}."

    def _head(self, pair: int, task: int) -> int:
        return 2 * task + pair if len(self.actors) > 2 else pair

    def set_task(self, task: int) -> None:
        """Use the gains and biases of this task from now on."""
        for module in self._gained:
            module.task = task

    def critic(self, pair: int, prepared: Tensor, task: int = 0) -> Tensor:
        """Return outputs of one critic by mean weights, from an observation out of `prepare`: `[B, A, n]` float32."""
        self.set_task(task)
        trunk = self.trunks[0 if self.shared_trunk else 2 + pair]
        features = trunk(prepared, "mean")
        return apply(self.heads_of(pair, task)[1], features, "mean").unflatten(-1, (self.settings.num_actions, -1))

    def actor(self, pair: int, prepared: Tensor, task: int = 0) -> Tensor:
        """Return logits of one actor by mean weights, from an observation out of `prepare`: `[B, A]`.

        Unlike in `forward`, gradients reach a shared trunk.
        """
        self.set_task(task)
        trunk = self.trunks[0 if self.shared_trunk else pair]
        return apply(self.heads_of(pair, task)[0], trunk(prepared, "mean"), "mean")

    def prepare(self, observation: Tensor, weights: WeightMode = "mean") -> Tensor:
        """Convert observations `[B, ...]` for the encoders: pixels scaled to [0, 1], channels last in memory.

        Arrays become floating point, integers of a discrete observation stay integers.
        """
        images = observation.ndim == 4 + isinstance(weights, Draws)
        if images and isinstance(weights, Draws):
            return self.prepare(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])
        if observation.dtype == torch.uint8:
            device = observation.device.type
            # Bytes are rearranged faster than floats. Under autocast they are converted to its type, exact for pixels.
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            rearranged = channels_last(observation) if images else observation
            return rearranged.to(dtype).mul_(1.0 / self.settings.pixel_scale)
        return observation.contiguous(memory_format=torch.channels_last) if images else observation

    def forward(self, observation: Tensor, weights: WeightMode = "mean", task: int = 0) -> TwinOutput:
        """Evaluate both pairs; with a shared trunk the actors' gradient stops there.

        Args:
            observation: `[B, *observation_shape]`; with `Draws`, `[D or 1, B, *observation_shape]`.
            weights: how to treat weight distributions. The `mean` of a mixture is that of its members' outputs, not of
                their weights.
            task: number of the task that the observations come from.
        """
        self.set_task(task)
        if weights == "mean" and (draws := self.posterior.mean_draws(observation.device)) is not None:
            output = self(observation[None], draws, task)
            probs = output.action_logits.softmax(-1).mean(1)
            prior = None if output.prior is None else output.prior.mean(0)
            return TwinOutput(probs.log(), output.raw.mean(1), output.q_values.mean(1), prior)
        x = self.prepare(observation, weights)
        if self.shared_trunk:
            features = [apply(self.trunks[0], x, weights)] * 4
            features[:2] = [features[0].detach()] * 2
        else:
            features = [apply(trunk, x, weights) for trunk in self.trunks]
        prior = self.prior(x, weights.index) if self.prior is not None and isinstance(weights, Draws) else None
        # Heads stay in float32: eight bits of mantissa are too few to tell neighbouring actions apart.
        with torch.autocast(x.device.type, enabled=False):
            logits, raw, heads = self._heads([f.float() for f in features], weights, task)
            raw = raw.unflatten(-1, (self.settings.num_actions, self.likelihood.outputs))
            q_values = self.likelihood.value(raw)
        q_values = q_values if prior is None else q_values + prior
        found, self._found[:] = tuple(self._found), []
        return TwinOutput(logits, raw, q_values, prior, heads, found)

    def policy(self, observation: Tensor, task: int = 0) -> Tensor:
        """Return the acting policy of mean weights, `[B, A]`, as `forward` does, but without evaluating critics.

        Args:
            observation: `[B, *observation_shape]`.
            task: number of the task that the observations come from.
        """
        if self.posterior.mean_draws(observation.device) is not None:  # the mean policy is that of draws
            return self(observation, task=task).mean_action_probs()
        self.set_task(task)
        x = self.prepare(observation)
        features = [apply(trunk, x, "mean") for trunk in self.trunks[: 1 if self.shared_trunk else 2]]
        with torch.autocast(x.device.type, enabled=False):
            heads = [self.heads_of(pair, task)[0] for pair in range(2)]
            inputs = [features[pair % len(features)].float() for pair in range(2)]
            logits = [apply(head, x, "mean") for head, x in zip(heads, inputs, strict=True)]
            return torch.stack(logits).softmax(-1).mean(0)

    def _heads(
        self, features: list[Tensor], weights: WeightMode, task: int
    ) -> tuple[Tensor, Tensor, PosteriorParameters | None]:
        """Return outputs of the actors and of the critics, pair first, and the heads' joint posterior or None.

        On the features of a shared trunk all heads are evaluated as one layer. It saves the time of many small
        operations, a noticeable part of an update of a small network.
        """
        (actor, critic), (other_actor, other_critic) = (self.heads_of(pair, task) for pair in range(2))
        heads: list[Any] = [actor, other_actor, critic, other_critic]
        plain = isinstance(actor, nn.Linear)
        if not self.shared_trunk or (plain and isinstance(weights, Draws)):
            each = [apply(head, f, weights) for head, f in zip(heads, features, strict=True)]
            outputs = [torch.stack(each[:2]), torch.stack(each[2:])]
            if isinstance(weights, Draws):
                outputs = [y.expand(2, weights.size, *y.shape[2:]) for y in outputs]
            return outputs[0], outputs[1], None
        actors = 2 * self.settings.num_actions  # their gradient stops at the features, the critics' does not
        blocked = actors if torch.is_grad_enabled() else 0
        if plain:
            posterior = None
            output = joined_linear(features[-1], [h.weight for h in heads], [h.bias for h in heads], blocked)
        else:
            posterior = joint_parameters(heads, weights)
            output = heads[0].evaluate(features[-1], weights, posterior, blocked)
        outputs = output.split([actors, output.shape[-1] - actors], -1)
        logits, raw = (y.unflatten(-1, (2, -1)).movedim(-2, 0) for y in outputs)
        return logits, raw, posterior
