"""Behaviour of the agent: greedy actions, actions by posterior draws, and value estimates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from bayes_rl.bayes.draws import Draws, EpisodeDraws, to_device
from bayes_rl.bayes.posteriors import PosteriorFamily
from bayes_rl.bayes.weight_posterior import WeightPosterior
from bayes_rl.metrics.uncertainty import PolicyUncertainty
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput
from bayes_rl.types import ValueEstimate
from bayes_rl.utils.device import to_device_async
from bayes_rl.utils.seeds import Domain, derived_seed

VALUE_DRAWS = 16
"""Number of posterior draws of a value estimate. Their seeds never change. A mixture rounds the number up, so that
every member has equally many."""


@lru_cache(maxsize=4096)
def critic_of_draw(seed: int) -> int:
    """Return the critic, 0 or 1 with equal probability, by whose values the draw named `seed` acts.

    The two critics have independent posteriors. Their mean has half the variance of either, so that a draw that acts
    by the mean explores less than the posterior is uncertain.
    """
    return derived_seed(Domain.CRITIC_OF_DRAW, seed) % 2


class Drawn(Protocol):
    """Networks that can be evaluated by given draws: a `TwinActorCritic` or a `DrawnTwin`.

    Attributes:
        posterior: family of the draws.
    """

    posterior: PosteriorFamily

    def draw_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the key and the shape of all weights that a draw has noise for."""

    def __call__(self, observation: Tensor, draws: Draws, task: int) -> TwinOutput:
        """Evaluate observations `[D or 1, B, *observation_shape]` by D draws."""


class DrawnTwin:
    """Twin with plain layers, evaluated by draws of all its weights from a Gaussian.

    Every draw is a forward pass of its own, by weights mean + std x noise of the present posterior. Thompson sampling
    therefore takes one forward pass for each environment, and a value estimate one for each of its draws. The noise
    takes the memory of one twin for each draw.

    Args:
        twin: networks whose parameters are the means.
        weights: Gaussian over all trained parameters.
    """

    def __init__(self, twin: TwinActorCritic, weights: WeightPosterior) -> None:
        self._twin, self._weights = twin, weights
        self.posterior = twin.posterior  # the mean field, whose draws have no index

    def draw_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and the shape of every trained parameter."""
        return self._weights.shapes

    def __call__(self, observation: Tensor, draws: Draws, task: int) -> TwinOutput:
        """Evaluate both pairs by D draws.

        Args:
            observation: `[D or 1, B, *observation_shape]`.
            draws: noise of every parameter.
            task: number of the task that the observations come from.
        """
        assert draws.noise is not None
        means = dict(self._twin.named_parameters())
        stds = {name: self._weights.std(name) for name in draws.noise}
        outputs = []
        for row, x in enumerate(observation.expand(draws.size, *observation.shape[1:])):
            weights = {name: torch.addcmul(means[name], std, draws.noise[name][row]) for name, std in stds.items()}
            outputs.append(functional_call(self._twin, weights, (x, "mean", task)))
        return TwinOutput(
            torch.stack([output.action_logits for output in outputs], 1),
            torch.stack([output.raw for output in outputs], 1),
            torch.stack([output.q_values for output in outputs], 1),
        )


class Behaviour:
    """Actions and value estimates of a twin.

    An ordinary object, not a module: it owns no parameters, and nothing of it is in a checkpoint.

    Args:
        twin: the networks.
        forward_context: makes the context of a forward pass, for example that of mixed precision.
        drawn: evaluates the networks by draws of their weights; `twin` itself if None.
    """

    def __init__(
        self,
        twin: TwinActorCritic,
        forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        drawn: Drawn | None = None,
    ) -> None:
        self._twin, self._forward_context = twin, forward_context
        self._drawn: Drawn = twin if drawn is None else drawn
        self._episode_draws: EpisodeDraws | None = None
        self._value_draws: Draws | None = None

    @torch.no_grad()
    def act(self, observations: Tensor, task: int) -> Tensor:
        """Return greedy actions, from the mean weights and the mean of both actors.

        Args:
            observations: `[E, *observation_shape]`, on any device.
            task: number of the task that the observations come from.

        Returns:
            `[E]` int64 on the CPU.
        """
        with self._forward_context():
            probs = self._twin.policy(to_device_async(observations, self._twin.device), task)
        return probs.argmax(-1).cpu()

    @torch.no_grad()
    def act_by_draw(self, observations: Tensor, seeds: list[int], task: int) -> Tensor:
        """Return actions by Thompson sampling, each greedy for one critic by one posterior draw.

        The seed of an environment's episode names the draw and the critic.

        Args:
            observations: `[E, *observation_shape]`, on any device.
            seeds: E seeds, each the name of its environment's draw.
            task: number of the task that the observations come from.

        Returns:
            `[E]` int64 on the CPU.
        """
        return self.values_by_draw(observations, seeds, task).argmax(-1).cpu()

    @torch.no_grad()
    def values_by_draw(self, observations: Tensor, seeds: list[int], task: int) -> Tensor:
        """Return the Q-values by which `act_by_draw` acts: of one critic by one posterior draw for each environment.

        Args:
            observations: `[E, *observation_shape]`, on any device.
            seeds: E seeds, each the name of its environment's draw.
            task: number of the task that the observations come from.

        Returns:
            `[E, A]` float32, on the device of the networks, in (clipped) return units.
        """
        device = self._twin.device
        if self._episode_draws is None:
            self._episode_draws = EpisodeDraws(self._drawn.posterior, self._drawn.draw_shapes())
        with self._forward_context():
            draws = self._episode_draws(seeds, device)
            output = self._drawn(to_device_async(observations, device)[:, None], draws, task)
        critic = to_device_async(torch.tensor([critic_of_draw(seed) for seed in seeds]), device)
        return output.draw_q_values()[critic, torch.arange(len(seeds), device=device), 0]

    @torch.no_grad()
    def estimate_values(
        self, observations: Tensor, task: int, uncertainty: PolicyUncertainty | None = None
    ) -> ValueEstimate:
        """Estimate values and their uncertainty, from both critics and `VALUE_DRAWS` posterior draws.

        The variance of Q is that of `values_by_draw` over seeds. That of a Gaussian process is known in closed form,
        and includes the errors of single states, which its draws are without (see `GaussianProcess`).

        Args:
            observations: `[E, *observation_shape]`, on any device.
            task: number of the task that the observations come from.
            uncertainty: metric to update with the Q-values of all critics and draws, or None.

        Returns:
            The estimates, on the CPU.
        """
        device = self._twin.device
        observations = to_device_async(observations, device)
        with self._forward_context():
            draws = self._draws_for_values(device)
            output = self._drawn(observations[None], draws, task)
        q_values = output.draw_q_values().flatten(0, 1)  # `[S, E, A]`, S samples of 2 critics and D draws
        # A sample's variance needs a correction. Two plain critics, which have one draw, are no sample but all values.
        correction = 0 if self._twin.posterior.value_draws_are_complete or draws.size == 1 else 1
        if uncertainty is not None:
            uncertainty.update(q_values, correction)
        noise_std = self._twin.likelihood.std(output.raw).flatten(0, 1).mean(0)
        mean = output.mean_q_values()
        q_std = q_values.std(0, correction=correction)
        if output.deviations_std is not None:  # no sample is needed: the variances of critics and process add up
            q_std = output.q_values.std(0, correction=0).mean(0).hypot(output.deviations_std[0])
        return ValueEstimate(*(x.cpu() for x in (mean, q_std, noise_std, mean.amax(-1))))

    def _draws_for_values(self, device: torch.device) -> Draws:
        if self._value_draws is None:
            self._value_draws = self._drawn.posterior.value_draws(self._drawn.draw_shapes(), VALUE_DRAWS)
        self._value_draws = to_device(self._value_draws, device)  # Lightning moves a module after each run
        return self._value_draws
