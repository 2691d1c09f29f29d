"""The agent: a LightningModule that owns the variational actor-critic and the ELBO + EWC loss.

Every hook stands here once, in the order in which Lightning calls it.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from bayes_rl import losses
from bayes_rl.agent.behaviour import Behaviour
from bayes_rl.agent.compilation import compile_update
from bayes_rl.agent.low_overhead import LowOverheadModule, flushed_denormals
from bayes_rl.agent.objective import ObjectiveTerms, objective_terms, td_targets
from bayes_rl.agent.optimizer import can_fuse, make_optimizer, moving_average_pairs
from bayes_rl.agent.settings import ObjectiveSettings, OptimizerSettings, check_agent
from bayes_rl.agent.task_switching import consolidation_is_due, reset_for_task, targets_of_sample
from bayes_rl.agent.training_metrics import training_values
from bayes_rl.agent.update_guard import UpdateGuard
from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import TaskSamples, make_consolidation
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.evaluation.game_metrics import GameMetrics
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.types import Batch, Transition, ValueEstimate


class VariationalActorCritic(LowOverheadModule):
    """Twin DDPG on the action simplex with Bayesian heads, an ELBO and Elastic Weight Consolidation.

    Args:
        encoder: pseudo_resnet (the original's), nature, impala, minatar (10 x 10 planes) or mlp (vectors).
        hidden_dim: features of the encoder's projection.
        shared_trunk: one encoder for both pairs, trained by the critics; false gives each of the four its own.
        activation: of the encoder: relu, or leaky_relu, with which EWC sees what units that are off could do.
        bayesian: which layers have distributions for weights: the output `heads` (and the linear layers of
            pseudo_resnet), the `trunk` below them, `all` or `none`.
        posterior: family of those distributions: mean_field (the original's), low_rank (w = mu + C z + s eps) or
            members (a mixture). The last two learn by draws that are the same in value and target.
        index_dim: length of z, or number of members.
        draws: draws of z per update, >= 1 (of members all take part).
        prior: gaussian, or log_uniform (the original's approximation).
        prior_precision: 1 / variance of the Gaussian prior of each Bayesian weight, > 0.
        init_log_var: initial log-variance of each Bayesian weight (natural logarithm), within +-log_var_limit.
        log_var_limit: log-variances are clamped to +- this, in (0, 60].
        init_scale: initial means of Bayesian weights have this many 1 / sqrt(fan-in) as standard deviation, > 0.
        prior_scale: standard deviation of the fixed random prior function added to Q, in return units, >= 0.
        temperature: T of the ELBO, weight of KL / N; 1 is the true ELBO, 0 plain maximum likelihood.
        likelihood: of a return: gaussian of noise_std, learned_gaussian, or categorical over bins: hl_gauss, two_hot.
        noise_std: standard deviation of the Gaussian likelihoods (at first, if learned), in clipped return units, > 0.
        value_range: [lowest, highest] return of the categorical likelihoods, in clipped return units.
        num_bins: of the categorical likelihoods, >= 2.
        exploration: epsilon (random actions), thompson (greedy by one posterior draw per environment and episode),
            or both.
        bootstrap: value of the next state: of the `actor`'s policy, or of the `greedy` action.
        target: bootstrap from the `other` pair (the original) or from a moving average of both (`ema`).
        tau: weight of the newest parameters in the moving average, per update, in (0, 1].
        actor_loss: `dpg`, the exact policy gradient, or `cross_entropy` to softmax(Q / policy_temperature).
        policy_temperature: of that softmax, in clipped return units, > 0.
        entropy_weight: weight of the actors' entropy in their loss, in return units per nat, >= 0.
        update_pairs: improve `both` pairs each update, or one at `random` (the original).
        consolidation: what keeps a finished task: none; ewc (an anchor for each task); online_ewc (one, decayed); vcl
            (the posterior becomes the prior, and deterministic weights are kept by ewc).
        ewc_lambda: strength of the EWC penalty, >= 0; null is 0 without consolidation and with vcl, else 0.001.
        protect: whose weights: of the actor, the critic, or both.
        fisher: expectation over what the networks say (true), or at what was done and observed (empirical).
        fisher_samples: transitions of a task that its Fisher is averaged over.
        fisher_norm: none, or mean: divide a task's Fisher by its mean, so that ewc_lambda has one scale for all.
        online_decay: what online_ewc keeps of the Fisher of earlier tasks, in [0, 1].
        consolidate_every: updates between registrations within a task (the original); 0 registers at its end only.
        optimizer_at_switch: reset Adam's averages at a new task, or keep them.
        critic_at_switch: keep the critics' output layers at a new task, or reset them.
        actor_lr: Adam step size of the actors' heads (and own trunks).
        critic_lr: Adam step size of the critics and of a shared trunk.
        adam_eps: Adam's denominator offset.
        weight_decay: decoupled weight decay of deterministic matrices and kernels, per unit of step size.
        compile: capture of an update as one graph: none, default (torch.compile), reduce-overhead (as CUDA graphs,
            on a GPU), or cudagraphs (these alone, without a compiler).
        game: short name of the game, for human-normalised scores; set from the data by the command line.
        num_tasks: T; set from the data by the command line.
        task_conditioning: what the networks are told of the task: none, gains or heads; likewise.
        observation_shape: of one observation, channels first; set from the data by the command line.
        num_actions: A; set from the data by the command line.
        pixel_scale: divisor of uint8 observations; set from the data by the command line.
        num_categories: values of an integer observation, 0 for arrays; set from the data by the command line.

    Attributes:
        twin: the networks that learn.
        target_twin: moving average of `twin` that targets come from, or None.
        consolidator: protects earlier tasks, or None.
        scores: metrics of whole games, one `GameMetrics` for each task.
        guard: skips updates that are not finite, and counts them.
        behaviour: acts and estimates values by `twin`.
        frames: environment frames seen in training, the axis of every curve.
        task: number of the task that is trained.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    hparams: Any  # attribute access to the arguments of `__init__`
    scores: Any  # a list of `GameMetrics`

    def __init__(
        self,
        encoder: str = "nature",
        hidden_dim: int = 512,
        shared_trunk: bool = True,
        activation: str = "relu",
        bayesian: str = "heads",
        posterior: str = "mean_field",
        index_dim: int = 8,
        draws: int = 8,
        prior: str = "gaussian",
        prior_precision: float = 10.0,
        init_log_var: float = -9.0,
        log_var_limit: float = 11.0,
        init_scale: float = 1.0,
        prior_scale: float = 0.0,
        temperature: float = 1.0,
        likelihood: str = "gaussian",
        noise_std: float = 1.0,
        value_range: tuple[float, float] = (-10.0, 10.0),
        num_bins: int = 51,
        exploration: str = "epsilon",
        bootstrap: str = "actor",
        target: str = "ema",
        tau: float = 0.005,
        actor_loss: str = "cross_entropy",
        policy_temperature: float = 0.02,
        entropy_weight: float = 0.0,
        update_pairs: str = "both",
        consolidation: str = "none",
        ewc_lambda: float | None = None,
        protect: str = "both",
        fisher: str = "true",
        fisher_samples: int = 2000,
        fisher_norm: str = "mean",
        online_decay: float = 1.0,
        consolidate_every: int = 0,
        optimizer_at_switch: str = "reset",
        critic_at_switch: str = "keep",
        actor_lr: float = 2.5e-4,
        critic_lr: float = 2.5e-4,
        adam_eps: float = 1e-5,
        weight_decay: float = 0.0,
        compile: str = "none",
        game: str = "",
        observation_shape: tuple[int, ...] = (4, 84, 84),
        num_actions: int = 4,
        pixel_scale: float = 255.0,
        num_categories: int = 0,
        num_tasks: int = 1,
        task_conditioning: str = "none",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.objective = ObjectiveSettings(
            temperature, bootstrap, target, tau, actor_loss, policy_temperature, entropy_weight, update_pairs
        )
        self.optimizer_settings = OptimizerSettings(actor_lr, critic_lr, adam_eps, weight_decay)
        family = (posterior, index_dim, draws, prior, prior_precision, init_log_var, log_var_limit, init_scale)
        variational = PosteriorSettings(*family)
        settings = ConsolidationSettings(
            consolidation,
            ewc_lambda,
            protect,
            fisher,
            fisher_samples,
            fisher_norm,
            online_decay,
            consolidate_every,
            optimizer_at_switch,
            critic_at_switch,
        )
        check_agent(settings, variational, bayesian, exploration, compile, num_tasks)
        networks = TwinSettings(
            encoder,
            tuple(observation_shape),
            num_actions,
            hidden_dim,
            shared_trunk,
            LayerFactory(
                variational,
                bayesian,
                num_categories,
                num_tasks,
                task_conditioning,
                activation,
                settings.method_class.posterior_becomes_prior,
            ),
            prior_scale,
            pixel_scale,
        )
        # The metrics come first, and the networks before the consolidator: the order of the state dict.
        self.scores = nn.ModuleList(GameMetrics() for _ in range(num_tasks))
        returns = LikelihoodSettings(likelihood, noise_std, value_range, num_bins)
        self.twin = TwinActorCritic(networks, make_likelihood(returns))
        self.target_twin = copy.deepcopy(self.twin).requires_grad_(False) if target == "ema" else None
        self.consolidation = settings
        self.consolidator = make_consolidation(self.twin, settings)
        self.guard = UpdateGuard()
        self.behaviour = Behaviour(self.twin, self._forward_context)
        self.frames = self.task = 0
        self._trained: set[tuple[int, int]] = set()  # (pair, task) with a loss since the last optimizer step
        self._random_state: dict[str, Tensor] | None = None  # of a checkpoint, until training begins

    # ------------------------------------------------------------------ beginning
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters, and keep the random generators' state for `on_train_start`."""
        self.frames = checkpoint["frames"]
        self.guard.skipped = checkpoint.get("skipped_updates", 0)  # older checkpoints did not count them
        self._random_state = {key: checkpoint[key] for key in ("torch_rng", "cuda_rng") if key in checkpoint}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one Adam with the actors' and the critics' step sizes as parameter groups."""
        trainer, settings = self._trainer, self.optimizer_settings
        precision, clipped = (str(trainer.precision), bool(trainer.gradient_clip_val)) if trainer else ("", False)
        fused = can_fuse(precision, clipped, self.consolidator is not None)
        rates = {"actor": settings.actor_lr, "critic": settings.critic_lr}
        return make_optimizer(self.twin, rates, settings.weight_decay, settings.adam_eps, fused)

    def on_train_start(self) -> None:
        """Set the current task from the data module, log the size of the EWC state, restore the random generators."""
        if self.consolidator is not None:
            rank_zero_info(self.consolidator.describe())
        if len(self.scores) > 1:
            self.task = self._data.curriculum.task(self._data.visit)
        # Not in `on_load_checkpoint`: Lightning draws random numbers of its own between the two.
        state, self._random_state = self._random_state, None
        if state is not None:
            torch.set_rng_state(state["torch_rng"].cpu())
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def on_train_epoch_start(self) -> None:
        """Switch to the next task if this epoch belongs to it."""
        if len(self.scores) == 1:
            return
        visit = self._data.curriculum.visit(self.current_epoch)
        if visit != self._data.visit:
            self._data.start_visit(visit)
            self.task = self._data.curriculum.task(visit)
            self._reset_for_task()

    def _reset_for_task(self) -> None:
        reset_for_task(self.twin, self.target_twin, self.trainer.optimizers[0], self.task, self.consolidation)

    # ------------------------------------------------------------------ one update
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the negative ELBO plus the actors' loss.

        The EWC penalty enters by its gradient, in `on_before_optimizer_step`.

        Args:
            batch: the minibatch, with the number of data and of frames so far.
            batch_idx: number of the minibatch in this epoch.
        """
        weights = self.twin.posterior.training_mode(self.device)  # draws before pairs: the order of seeds
        pairs = (0, 1) if self.objective.update_pairs == "both" else (int(torch.randint(2, ())),)
        self._trained.update((pair, batch.task) for pair in pairs)
        terms = self._terms(self.twin, self.target_twin, batch.transition, weights, pairs, batch.task, self.objective)
        nll, kl = terms.nll, terms.kl
        loss = losses.negative_elbo(nll, kl, batch.num_data, self.objective.kl_temperature) + terms.actor_loss
        self.frames = batch.frames
        parts = {"nll": nll, "kl": kl, "actor_loss": terms.actor_loss}
        self._log_training(batch, terms, parts)
        self.guard.record_loss(loss, parts)
        return loss

    @functools.cached_property
    def _terms(self) -> Callable[..., ObjectiveTerms]:
        """`objective_terms`, captured as one graph if so configured."""
        return compile_update(objective_terms, self.hparams.compile)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the EWC gradient and clear the gradients of networks that have no loss in this update.

        Lightning's callbacks have seen the gradient of the loss by then. A gradient of zero would still move a network
        without loss, by Adam's momentum and weight decay.

        Args:
            optimizer: about to take its step.

        Raises:
            RunError: if too many updates in a row were not finite.
        """
        for parameter in self.twin.parameters_without_loss(self._trained):
            parameter.grad = None
        self._trained.clear()
        if self.consolidator is not None:
            self.consolidator.add_gradients(self.twin)
        scaled = str(self.trainer.precision) == "16-mixed"
        self.guard.check(optimizer, self.twin, scaled, lambda: {"ewc_penalty": self._ewc_penalty()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Run one update: forward, backward and step; then consolidation, if due; then the moving average.

        Consolidation comes before anything can save a checkpoint of this update.
        """
        with flushed_denormals():
            super().optimizer_step(*args, **kwargs)
            if consolidation_is_due(self.global_step + 1, self.consolidation.consolidate_every):  # counted on return
                self.consolidate()
        self.update_moving_average()

    def update_moving_average(self) -> None:
        """Move `target_twin`, if there is one, towards the newest parameters by `tau`."""
        if self.target_twin is not None:
            with torch.no_grad():
                torch._foreach_lerp_(*self._moving_average_pairs, self.objective.tau)

    @functools.cached_property
    def _moving_average_pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The moving average's parameters and the newest: walking the trees takes longer than averaging."""
        assert self.target_twin is not None
        return moving_average_pairs(self.target_twin, self.twin)

    def _log_training(self, batch: Batch, terms: ObjectiveTerms, parts: dict[str, Tensor]) -> None:
        """Log everything that `docs/reference/metrics.md` lists under training, when it is due."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (self.global_step + 1) % every:
            return
        parts = {**parts, "ewc_penalty": self._ewc_penalty()}
        temperature = self.objective.kl_temperature
        values = training_values(self.twin, batch, terms.output, terms.targets, temperature, parts)
        values["train/skipped_updates"] = float(self.guard.skipped)
        self.log_dict(values | self._penalty_values(parts["ewc_penalty"], terms.nll))
        self.log("step", float(batch.frames))

    @torch.no_grad()
    def _ewc_penalty(self) -> Tensor:
        if self.consolidator is None:
            return torch.zeros((), device=self.device)
        return self.consolidator.penalty(self.twin)

    def _penalty_values(self, penalty: Tensor, loss: Tensor) -> dict[str, Tensor | float]:
        """Return values of the penalty to log, and warn once of a strength that is out of scale."""
        if self.consolidator is None or not self.consolidator.active:
            return {"train/frozen_share": 0.0}
        message = self.consolidator.out_of_scale(penalty.item(), loss.item(), self.global_step)
        if message is not None:
            warnings.warn(message, stacklevel=2)
        return {"train/frozen_share": self.consolidator.frozen_share(self.twin, self.trainer.optimizers[0])}

    # ------------------------------------------------------------------ whole games
    def validation_step(self, games: Games, batch_idx: int) -> None:
        """Play the games greedily, by the mean weights, and compare the estimated returns with the realised ones.

        Args:
            games: of one task.
            batch_idx: number of the task.
        """
        task = games.task
        played = games.play(partial(self.act, task=task), partial(self.estimate_values, task=task, measure=True))
        numbers = [self.trainer.world_size * number + self.trainer.global_rank for number in range(len(played))]
        self.scores[task].update(played, numbers, games.estimate_every, self._data.gamma)

    test_step = validation_step  # on other seeds

    def on_validation_epoch_end(self) -> None:
        """Log the scores under `val/` or `test/`; those of several tasks below the name of each."""
        stage = "test" if self.trainer.testing else "val"
        fit = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if len(self.scores) == 1:
            scores = self.scores[0].finish(self.hparams.game, fit)
        else:
            named = zip(self._data.curriculum.names, self.scores, strict=True)
            # A limit of batches can leave out the games of a task.
            parts = {name: part.finish(name, fit) for name, part in named if part.returns.update_called}
            scores = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
            if all("human_normalised" in part for part in parts.values()):
                scores["human_normalised"] = torch.stack([part["human_normalised"] for part in parts.values()]).mean()
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items()})
        self.log("step", float(self.frames))

    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, games: Games, batch_idx: int) -> list[Game]:
        """Play the games; a callback writes them as video.

        Args:
            games: of one task.
            batch_idx: number of the task.
        """
        return games.play(partial(self.act, task=games.task), partial(self.estimate_values, task=games.task))

    # ------------------------------------------------------------------ end of an epoch
    def on_train_epoch_end(self) -> None:
        """Consolidate a task at its end; before the checkpoint of this epoch, which callbacks write later."""
        ends = len(self.scores) > 1 and self._data.curriculum.ends(self.current_epoch)
        if ends and not consolidation_is_due(self.global_step, self.consolidation.consolidate_every):
            self.consolidate()

    @torch.no_grad()
    def consolidate(self) -> None:
        """Protect what was learned of the current task, on a sample of its transitions."""
        if self.consolidator is None:
            return
        transition = self._data.fisher_samples(self.consolidation.fisher_samples)
        targets = None
        if self.consolidator.needs_targets:
            targets = targets_of_sample(transition, self._mean_targets, self.device)
        generator = torch.Generator().manual_seed(self.global_step)
        samples = TaskSamples(transition.observation, transition.action, targets, generator, self.task)
        self.consolidator.end_task(self.twin, samples)

    def _mean_targets(self, transition: Transition) -> Tensor:
        return td_targets(self.twin, self.target_twin, transition, "mean", self.task, self.objective)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters and the state of the random generators to a checkpoint."""
        checkpoint["frames"] = self.frames
        self.guard.synchronize()
        checkpoint["skipped_updates"] = self.guard.skipped
        checkpoint["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)

    # ------------------------------------------------------------------ behaviour
    def act(self, observations: Tensor, task: int | None = None) -> Tensor:
        """Return greedy actions `[E]` int64 on the CPU; see `Behaviour.act`.

        Args:
            observations: `[E, *observation_shape]`.
            task: number of their task, or None for the current one.
        """
        return self.behaviour.act(observations, self.task if task is None else task)

    def act_by_draw(self, observations: Tensor, seeds: list[int]) -> Tensor:
        """Return actions `[E]` int64 on the CPU, greedy by the posterior draws that the seeds name.

        Args:
            observations: `[E, *observation_shape]` of the current task.
            seeds: E seeds, one for each environment.
        """
        return self.behaviour.act_by_draw(observations, seeds, self.task)

    def estimate_values(self, observations: Tensor, task: int = 0, measure: bool = False) -> ValueEstimate:
        """Estimate values and their uncertainty for a batch of observations; see `Behaviour.estimate_values`.

        Args:
            observations: `[E, *observation_shape]`.
            task: number of their task.
            measure: add the estimates to the metrics of the current validation.
        """
        return self.behaviour.estimate_values(observations, task, self.scores[task].uncertainty if measure else None)

    @property
    def explores_by_draw(self) -> bool:
        """Whether episodes are played by posterior draws."""
        return self.hparams.exploration != "epsilon"

    @property
    def explores_at_random(self) -> bool:
        """Whether actions are replaced by random ones."""
        return self.hparams.exploration != "thompson"

    def _forward_context(self) -> AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context() if self._trainer else nullcontext()

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]
