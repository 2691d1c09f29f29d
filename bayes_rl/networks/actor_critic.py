"""Twin of two actor-critic pairs on one of the encoders.

A pair is one actor and one critic. A network consists of a trunk, which is an encoder, and a head, its output layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, WeightMode
from bayes_rl.bayes.kl import CountedLayers, bayesian_layers, half_of_joint_kl, joint_kl
from bayes_rl.bayes.layers import BayesLayer, EvaluatedLayers, joint_parameters
from bayes_rl.bayes.likelihoods import Likelihood
from bayes_rl.bayes.ops import joined_linear
from bayes_rl.bayes.posteriors import POSTERIORS, make_family
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.errors import check
from bayes_rl.networks.encoders import ENCODERS, build_encoder
from bayes_rl.networks.gaussian_process import GaussianProcess, NormalIndex
from bayes_rl.networks.layer_factory import LayerFactory, TaskAffine, apply, channels_last
from bayes_rl.networks.overlap import evaluate
from bayes_rl.networks.prior_functions import PriorFunction
from bayes_rl.networks.settings import NetworkSettings
from bayes_rl.utils.side_thread import begin

GAIN = re.compile(r"\.(?:gain|shift)\.(\d+)$")  # name of a gain or bias of `TaskAffine`; the group is the task's number


class TwinOutput(NamedTuple):
    """Outputs of both pairs for a batch of observations.

    The first axis is the pair. The axis of D draws exists only if the weight mode is `Draws`. With a Gaussian process
    its length is 1, or that of the observations' axis of draws: plain layers do not depend on the draw.

    Attributes:
        action_logits: `[2, (D,) B, A]` float32.
        raw: parameters of the likelihood of a return, `[2, (D,) B, A, n]` float32, without the prior function.
        q_values: `[2, (D,) B, A]` float32, in units of the training reward: the value of `raw` plus the prior function.
        prior_values: values of the fixed prior function, `[(D,) B, A]`. None without a prior function, or without
            draws: the prior function is linear in the index, whose mean is 0.
        deviations: deviations of the draws' Q-values from `q_values`, `[D, B, A]`. None without a Gaussian process, or
            without draws.
        deviations_std: standard deviation of the deviations and of the errors that a draw is without (see
            `GaussianProcess`), `[1 or D, B, A]`. None without `deviations`.
        evaluated: Bayesian layers whose parameters `TwinActorCritic.kl_divergence` need not build again.
    """

    action_logits: Tensor
    raw: Tensor
    q_values: Tensor
    prior_values: Tensor | None = None
    deviations: Tensor | None = None
    deviations_std: Tensor | None = None
    evaluated: Sequence[EvaluatedLayers] = ()

    def draw_q_values(self) -> Tensor:
        """Return the Q-values of every draw, `[2, D, B, A]`; the weight mode must be `Draws`."""
        return self.q_values if self.deviations is None else self.q_values + self.deviations

    def mean_action_probs(self) -> Tensor:
        """Return the policy that acts, the mean of both actors (and of all draws): `[B, A]`, rows that sum to 1."""
        probs = self.action_logits.softmax(-1)
        return probs.flatten(0, -3).mean(0)

    def mean_q_values(self) -> Tensor:
        """Return the mean of both critics (and of all draws), `[B, A]`."""
        return self.q_values.flatten(0, -3).mean(0)


@dataclass(frozen=True)
class TwinSettings:
    """Everything that decides the structure of the networks: the user's settings and the properties of the data.

    Args:
        network: settings of the user.
        observation_shape: shape of one observation, channels first for images.
        num_actions: A.
        layers: factory of all layers, which decides those that are Bayesian.
        pixel_scale: divisor of uint8 observations (255 for screens, 1 for binary planes).

    Raises:
        ConfigError: if there is a prior function, and draws have no index on which it could depend; if a Gaussian
            process has no scale; or if its observations are numbers of states.
    """

    network: NetworkSettings
    observation_shape: tuple[int, ...]
    num_actions: int
    layers: LayerFactory
    pixel_scale: float = 255.0

    def __post_init__(self) -> None:
        key, scale = "model.network.prior_function_scale", self.network.prior_function_scale
        check(scale >= 0, key, scale, "must be zero or positive")
        families = " or ".join(name for name in POSTERIORS if make_family(PosteriorSettings(name)).index_size)
        problem = f"needs --model.network.bayesian gaussian_process, or Bayesian layers of the family {families}"
        is_process = self.layers.bayesian == "gaussian_process"
        check(self.layers.family.index_size > 0 or not scale or is_process, key, scale, problem)
        problem = "must be positive with --model.network.bayesian gaussian_process; nearest: 1"
        check(scale > 0 or not is_process, key, scale, problem)
        problem = "needs observations that are arrays, not numbers of states; nearest: heads"
        value = self.layers.bayesian
        check(not (is_process and self.layers.categories), "model.network.bayesian", value, problem)


class TwinActorCritic(nn.Module):
    """Two actor-critic pairs.

    An actor outputs action logits. A critic outputs, for each action, the parameters of the likelihood of its return.

    Args:
        settings: settings of the networks.
        likelihood: likelihood of a return.

    Attributes:
        process: Gaussian process of the deviations, or None. With a process all layers are plain.
        prior: the fixed random prior function that is added to the Q-values, or None. It is not the prior distribution
            of the weights.
    """

    def __init__(self, settings: TwinSettings, likelihood: Likelihood) -> None:
        super().__init__()
        network, layers, num_actions = settings.network, settings.layers, settings.num_actions
        self.settings, self.shared_trunk, self.likelihood = settings, network.shared_trunk, likelihood
        self.posterior = layers.family
        encoder_arguments = network.encoder, settings.observation_shape, network.hidden_dim
        # The trunks of actor 0, actor 1, critic 0 and critic 1; or a single one that all four share.
        num_trunks = 1 if self.shared_trunk else 4
        self.trunks = nn.ModuleList(build_encoder(*encoder_arguments, layers) for _ in range(num_trunks))
        width: int = self.trunks[0].out_features  # type: ignore[assignment]
        # Each task can have its own heads: those of task 0 (pair 0, pair 1) come first, then those of task 1, ...
        num_heads = 2 * (layers.num_tasks if layers.conditioning == "heads" else 1)
        self.actors = nn.ModuleList(layers.output(width, num_actions) for _ in range(num_heads))
        critic_outputs = num_actions * likelihood.outputs
        self.critics = nn.ModuleList(layers.output(width, critic_outputs) for _ in range(num_heads))
        scale = network.prior_function_scale
        self.process: GaussianProcess | None = None
        if layers.bayesian == "gaussian_process":
            of_features = network.random_features, network.length_scale, scale
            self.process = GaussianProcess(settings.observation_shape, num_actions, *of_features)
            self.posterior = NormalIndex(num_actions * network.random_features)
        # What the running forward pass has built and `kl_divergence` uses again. `forward` empties the list at its end.
        self._evaluated: list[EvaluatedLayers] = []
        for name, layer in bayesian_layers(self).items():
            layer.key, layer.evaluated = name, self._evaluated
        self._long_passes = ENCODERS[network.encoder].mostly_products
        self._plain_trunks = not bayesian_layers(self.trunks)
        has_prior = scale > 0 and self.process is None
        self.prior = PriorFunction(*encoder_arguments, num_actions, scale, layers) if has_prior else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layers_with_kl: dict[tuple[int, ...], dict[str, BayesLayer]] = {}  # cache
        self._parameters_without_loss: dict[frozenset[tuple[int, int]], list[nn.Parameter]] = {}
        self._task_affine = [module for module in self.modules() if isinstance(module, TaskAffine)]

    def draw_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the key and the weight shape of every Bayesian layer."""
        return {name: tuple(layer.shape) for name, layer in bayesian_layers(self).items()}

    def heads_of(self, pair: int, task: int = 0) -> tuple[nn.Module, nn.Module]:
        """Return the actor and critic head of a pair."""
        return self.actors[self._head(pair, task)], self.critics[self._head(pair, task)]

    def networks(self, pairs: Sequence[int], task: int = 0) -> nn.ModuleList:
        """Return trunks and heads of the given pairs.

        Args:
            pairs: numbers of the pairs: 0, 1 or both.
            task: number of the task whose heads are returned.
        """
        trunks = [self.trunks[0]] if self.shared_trunk else [self.trunks[pair + j] for pair in pairs for j in (0, 2)]
        heads = [head for pair in pairs for head in self.heads_of(pair, task)]
        return nn.ModuleList([*trunks, *heads])

    def parameters_without_loss(self, trained: Iterable[tuple[int, int]]) -> list[nn.Parameter]:
        """Return the parameters that the loss of the trained pairs does not depend on.

        These are the parameters of the other pair's networks, and of other tasks' heads and gains.

        Args:
            trained: (pair, task) of each pair with a loss.
        """
        key = frozenset(trained)
        if key not in self._parameters_without_loss:
            tasks = {task for _, task in key}
            named = [item for pair, task in key for item in self.networks([pair], task).named_parameters()]
            with_loss = {id(p) for name, p in named if not (match := GAIN.search(name)) or int(match[1]) in tasks}
            with_loss |= {id(p) for p in self.likelihood.parameters()}
            self._parameters_without_loss[key] = [p for p in self.parameters() if id(p) not in with_loss]
        return self._parameters_without_loss[key]

    def kl_divergence(self, pairs: Sequence[int] = (0, 1), output: TwinOutput | None = None, task: int = 0) -> Tensor:
        """Return KL(q || prior) of the Bayesian layers of both pairs, or the part of one pair in it, in nats.

        The parts of pair 0 and of pair 1 add up to the divergence of both: half of the divergence of a shared trunk
        belongs to each pair. In expectation, updates of one random pair then count every layer as often.

        Args:
            pairs: numbers of the pairs: 0, 1 or both.
            output: output of a forward pass by samples or draws of the current weights, or None. The layers that the
                forward pass has evaluated are not read again (see `EvaluatedLayers`).
            task: number of the task whose heads are counted.
        """
        layers = self._bayesian_layers(pairs, task)
        device = self.device if output is None else output.raw.device
        if not layers:
            return torch.zeros((), device=device)
        if len(pairs) == 2:
            return joint_kl(*self._counted(layers, output))
        of_other = self._bayesian_layers((1 - pairs[0],), task)
        trained = {key: layer for key, layer in layers.items() if key not in of_other}
        common = {key: layer for key, layer in layers.items() if key in of_other}
        other = {key: layer for key, layer in of_other.items() if key not in layers}
        return half_of_joint_kl(*(self._counted(group, output) for group in (trained, common, other)))

    def _counted(self, layers: Mapping[str, BayesLayer], output: TwinOutput | None) -> CountedLayers:
        """Return the layers that are to be read, and those that a forward pass has evaluated already."""
        parts = output.evaluated if output else ()
        # The heads of both pairs may be one part, which cannot be used if one pair is counted alone.
        usable = {part.layers[0].key: part for part in parts if all(layer.key in layers for layer in part.layers)}
        evaluated = [usable[key] for key in layers if key in usable]
        covered = {layer.key for part in evaluated for layer in part.layers}
        remaining = [layer for key, layer in layers.items() if key not in covered]
        return remaining, evaluated

    def _bayesian_layers(self, pairs: Sequence[int], task: int) -> dict[str, BayesLayer]:
        """Return the Bayesian layers of the given pairs by key."""
        # The search for layers takes as long as the sum itself, so its result is cached, except during compilation,
        # which runs this code once and must not change the module.
        cache = {} if torch.compiler.is_compiling() else self._layers_with_kl
        if (*pairs, task) not in cache:
            layers = bayesian_layers(self.networks(pairs, task)).values()
            cache[*pairs, task] = {layer.key: layer for layer in layers}
        return cache[*pairs, task]

    def become_prior(self, task: int = 0) -> None:
        """Take the networks that a task has trained, and make their posterior their new prior.

        The heads of tasks that come later keep their prior.
        """
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
        """Select the task whose gains and biases all layers with task conditioning use."""
        for module in self._task_affine:
            module.task = task

    def critic(self, pair: int, prepared: Tensor, task: int = 0) -> Tensor:
        """Return outputs of one critic by mean weights, from observations that `prepare` returned: `[B, A, n]` float32.

        Args:
            pair: number of the pair, 0 or 1.
            prepared: result of `prepare`.
            task: number of the task that the observations come from.
        """
        self.set_task(task)
        trunk = self.trunks[0 if self.shared_trunk else 2 + pair]
        features = trunk(prepared, "mean")
        return apply(self.heads_of(pair, task)[1], features, "mean").unflatten(-1, (self.settings.num_actions, -1))

    def actor(self, pair: int, prepared: Tensor, task: int = 0) -> Tensor:
        """Return logits of one actor by mean weights, from observations that `prepare` returned: `[B, A]`.

        Unlike in `forward`, the gradient of an actor reaches a shared trunk: the Fisher information of the actor's
        output counts the weights of the trunk.

        Args:
            pair: number of the pair, 0 or 1.
            prepared: result of `prepare`.
            task: number of the task that the observations come from.
        """
        self.set_task(task)
        trunk = self.trunks[0 if self.shared_trunk else pair]
        return apply(self.heads_of(pair, task)[0], trunk(prepared, "mean"), "mean")

    @torch.no_grad()
    def activity(self, observation: Tensor, task: int = 0) -> tuple[list[Tensor], Tensor]:
        """Return how active the units of critic 0's trunk are, by mean weights.

        Args:
            observation: `[B, *observation_shape]`.
            task: number of the task that the observations come from.

        Returns:
            The mean absolute output of every unit of each rectifier, a list of `[units]`; and the features, `[B, F]`.
            With a mixture of D members there are D x B rows of features.
        """
        self.set_task(task)
        draws = self.posterior.mean_draws(observation.device)
        mode: WeightMode = "mean" if draws is None else draws
        x = self.prepare(observation if draws is None else observation[None], mode)
        trunk = self.trunks[0 if self.shared_trunk else 2]
        activities: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            units = 1 + output.ndim % 2  # axis: `[B, units]`, `[B, units, H, W]`, or an axis of draws before them
            activities.append(output.float().abs().movedim(units, 0).flatten(1).mean(1))

        rectifiers = [module for module in trunk.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)]
        hooks = [module.register_forward_hook(note) for module in rectifiers]
        try:
            features = apply(trunk, x, mode)
        finally:
            for hook in hooks:
                hook.remove()
        return activities, features.float().flatten(0, -2)

    def prepare(self, observation: Tensor, weight_mode: WeightMode = "mean") -> Tensor:
        """Convert observations `[B, ...]` for the encoders: pixels scaled to [0, 1], channels last in memory.

        Observations of other types are returned unchanged: vectors, and the integers of a discrete observation.
        """
        images = observation.ndim == 4 + isinstance(weight_mode, Draws)
        if images and isinstance(weight_mode, Draws):
            return self.prepare(observation.flatten(0, 1)).unflatten(0, observation.shape[:2])
        if observation.dtype == torch.uint8:
            device = observation.device.type
            # Bytes are rearranged before the conversion, because they are smaller. Under autocast they are converted
            # to its type, which represents every pixel exactly.
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            rearranged = channels_last(observation) if images else observation
            return rearranged.to(dtype).mul_(1.0 / self.settings.pixel_scale)
        return observation.contiguous(memory_format=torch.channels_last) if images else observation

    def forward(self, observation: Tensor, weight_mode: WeightMode = "mean", task: int = 0) -> TwinOutput:
        """Evaluate both pairs.

        The gradient of the actors does not reach a shared trunk, which is trained by the critics alone.

        Args:
            observation: `[B, *observation_shape]`; with `Draws`, `[D or 1, B, *observation_shape]`.
            weight_mode: how to treat distributions over weights. For a mixture, `mean` averages the members' outputs,
                not their weights.
            task: number of the task that the observations come from.
        """
        self.set_task(task)
        if weight_mode == "mean" and (draws := self.posterior.mean_draws(observation.device)) is not None:
            output = self(observation[None], draws, task)
            probs = output.action_logits.softmax(-1).mean(1)
            prior_values = None if output.prior_values is None else output.prior_values.mean(0)
            return TwinOutput(probs.log(), output.raw.mean(1), output.q_values.mean(1), prior_values)
        x = self.prepare(observation, weight_mode)
        if self.process is None or not isinstance(weight_mode, Draws):
            return self._evaluate(x, weight_mode, task)
        find_deviations = begin(partial(self.process, x, weight_mode), self.uses_side_thread(x))
        plain = self._evaluate(x.flatten(0, 1), "mean", task)
        logits, raw, q_values = (y.unflatten(1, x.shape[:2]) for y in plain[:3])
        drawn, variance = find_deviations()
        unit = self.process.unit(self.likelihood.std(raw).mean(0), variance)
        std = self.process.total_std(unit, variance)
        return TwinOutput(logits, raw, q_values, deviations=unit * drawn, deviations_std=std)

    def _evaluate(self, x: Tensor, weight_mode: WeightMode, task: int) -> TwinOutput:
        """Evaluate trunks, heads and the prior function on observations that `prepare` returned."""
        if self.shared_trunk:
            features = [self._encode(self.trunks[0], x, weight_mode)] * 4
            features[:2] = [features[0].detach()] * 2
        else:
            features = [self._encode(trunk, x, weight_mode) for trunk in self.trunks]
        prior_values = None
        if self.prior is not None and isinstance(weight_mode, Draws):
            prior_values = self.prior(x, weight_mode.index)
        # Heads are computed in float32: bfloat16, with eight bits of mantissa, could not distinguish similar Q-values.
        with torch.autocast(x.device.type, enabled=False):
            logits, raw = self._heads([f.float() for f in features], weight_mode, task)
            raw = raw.unflatten(-1, (self.settings.num_actions, self.likelihood.outputs))
            q_values = self.likelihood.value(raw)
        q_values = q_values if prior_values is None else q_values + prior_values
        evaluated, self._evaluated[:] = tuple(self._evaluated), []
        return TwinOutput(logits, raw, q_values, prior_values, evaluated=evaluated)

    def uses_side_thread(self, x: Tensor) -> bool:
        """Return whether passes on the device of `x` are so long that a second thread of the processor saves time."""
        return self._long_passes and not x.is_cuda and not torch.compiler.is_compiling()

    def _encode(self, trunk: nn.Module, x: Tensor, weight_mode: WeightMode) -> Tensor:
        beside = self._plain_trunks and self.uses_side_thread(x)
        return evaluate(trunk, x, weight_mode) if beside else apply(trunk, x, weight_mode)

    def policy(self, observation: Tensor, task: int = 0) -> Tensor:
        """Return the policy that acts by mean weights, `[B, A]`, like `forward`, but without evaluating critics.

        Args:
            observation: `[B, *observation_shape]`.
            task: number of the task that the observations come from.
        """
        if self.posterior.mean_draws(observation.device) is not None:  # the mean policy is a mean over draws
            return self(observation, task=task).mean_action_probs()
        self.set_task(task)
        x = self.prepare(observation)
        features = [apply(trunk, x, "mean") for trunk in self.trunks[: 1 if self.shared_trunk else 2]]
        with torch.autocast(x.device.type, enabled=False):
            heads = [self.heads_of(pair, task)[0] for pair in range(2)]
            inputs = [features[pair % len(features)].float() for pair in range(2)]
            logits = [apply(head, x, "mean") for head, x in zip(heads, inputs, strict=True)]
            return torch.stack(logits).softmax(-1).mean(0)

    def _heads(self, features: list[Tensor], weight_mode: WeightMode, task: int) -> tuple[Tensor, Tensor]:
        """Return the outputs of the actors `[2, ...]` and of the critics `[2, ...]`.

        With a shared trunk all heads have the same inputs and are evaluated as one layer, because many small operations
        take a large part of an update of a small network.

        Args:
            features: features for actor 0, actor 1, critic 0 and critic 1. With a shared trunk, the last ones are used
                for all heads.
            weight_mode: how to treat distributions over weights.
            task: number of the task whose heads are used.
        """
        (actor, critic), (other_actor, other_critic) = (self.heads_of(pair, task) for pair in range(2))
        heads: list[Any] = [actor, other_actor, critic, other_critic]
        plain = isinstance(actor, nn.Linear)
        if not self.shared_trunk or (plain and isinstance(weight_mode, Draws)):
            of_heads = [apply(head, x, weight_mode) for head, x in zip(heads, features, strict=True)]
            outputs = [torch.stack(of_heads[:2]), torch.stack(of_heads[2:])]
            if isinstance(weight_mode, Draws):
                outputs = [y.expand(2, weight_mode.size, *y.shape[2:]) for y in outputs]
            return outputs[0], outputs[1]
        actor_outputs = 2 * self.settings.num_actions
        # The gradient of the actors' outputs does not reach the features, the gradient of the critics' outputs does.
        detached_outputs = actor_outputs if torch.is_grad_enabled() else 0
        if plain:
            output = joined_linear(features[-1], [h.weight for h in heads], [h.bias for h in heads], detached_outputs)
        else:
            parameters = joint_parameters(heads, weight_mode)
            output = heads[0].evaluate(features[-1], weight_mode, parameters, detached_outputs)
            self._evaluated.append(EvaluatedLayers(heads, parameters))
        outputs = output.split([actor_outputs, output.shape[-1] - actor_outputs], -1)
        logits, raw = (y.unflatten(-1, (2, -1)).movedim(-2, 0) for y in outputs)
        return logits, raw
