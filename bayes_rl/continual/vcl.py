"""Variational continual learning: the posterior of a task becomes the prior of the next (arXiv:1710.10628)."""

from __future__ import annotations

from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import METHODS, TaskSamples
from bayes_rl.continual.ewc import EWC
from bayes_rl.errors import check
from bayes_rl.networks.actor_critic import TwinActorCritic


@METHODS.register("vcl")
class VariationalContinualLearning(EWC):
    """Variational continual learning of the Bayesian weights, and EWC of the deterministic ones if it has a strength.

    Args:
        twin: the networks.
        settings: of consolidation.
    """

    default_strength = 0.0
    posterior_becomes_prior = True
    repetition_obstacle = "would count the same data again and again with vcl; drop it"
    protected_kind = "deterministic weights"
    protects_means = False  # the prior protects them

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian: str) -> None:
        """Raise `ConfigError` unless there are Bayesian layers.

        The posterior family itself refuses where it cannot become a prior.
        """
        message = "needs Bayesian layers, whose posterior becomes their prior; nearest: --model.network.bayesian all"
        check(bayesian != "none", "model.consolidation.method", method, message)

    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Register the deterministic weights as EWC does, then make the posterior of the task the prior."""
        super().end_task(twin, samples)
        twin.become_prior(samples.task)
