"""Variational continual learning: the posterior of a task becomes the prior of the next (arXiv:1710.10628)."""

from __future__ import annotations

from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import METHODS, TaskSamples
from bayes_rl.continual.ewc import EWC
from bayes_rl.errors import check
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.networks.layer_factory import PLAIN


@METHODS.register("vcl")
class VariationalContinualLearning(EWC):
    """Variational continual learning: the posterior becomes the prior, and EWC protects deterministic weights.

    Without EWC (`ewc_lambda` 0) the deterministic weights are free, with Bayesian heads nearly the whole network.

    Args:
        twin: the networks.
        settings: settings of consolidation.
    """

    posterior_becomes_prior = True
    repetition_obstacle = "would count the same data again and again with vcl; drop it"
    protected_kind = "deterministic weights"
    protects_means = False  # the prior protects the means

    @classmethod
    def check_posterior(cls, method: str, posterior: PosteriorSettings, bayesian_part: str) -> None:
        """Raise `ConfigError` unless there are Bayesian layers in the networks themselves.

        A posterior that cannot become a prior is refused when its layers are made (`make_family`).
        """
        message = "needs Bayesian layers, whose posterior becomes their prior; nearest: --model.network.bayesian all"
        check(bayesian_part not in PLAIN, "model.consolidation.method", method, message)

    def end_task(self, twin: TwinActorCritic, samples: TaskSamples) -> None:
        """Add the EWC penalty of the deterministic weights, then make the posterior the prior of the next task."""
        super().end_task(twin, samples)
        twin.become_prior(samples.task)

    def describe(self) -> str:
        """Return one line for the user, with the share that the prior keeps and the share that EWC keeps."""
        prior = f"the prior protects {self.num_bayesian_weights:,} weights ({self._share(self.num_bayesian_weights)})"
        count, size = self._num_protected(), f"{self.memory_bytes / 2**20:.1f} MiB"
        free = self.num_weights - self.num_bayesian_weights
        rest = self._describe_penalty(count) if count else f"nothing protects {free:,} others ({self._share(free)})"
        return f"consolidation: {self.settings.method}, {prior}, {rest}, {size}"
