"""The agent: a LightningModule that owns the variational actor-critic and the ELBO + EWC loss.

Every hook stands here once, in the order in which Lightning calls it.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from bayes_rl.agent.behaviour import Behaviour, DrawnTwin
from bayes_rl.agent.clamped_targets import ClampedTargetMonitor
from bayes_rl.agent.compilation import compile_update
from bayes_rl.agent.low_overhead import LowOverheadModule, flushed_denormals
from bayes_rl.agent.natural_gradient import IVON
from bayes_rl.agent.objective import ObjectiveTerms, objective_terms, td_targets, total_loss
from bayes_rl.agent.optimizer import (
    align_state,
    can_fuse,
    make_ivon,
    make_optimizer,
    moving_average_pairs,
    set_rates,
    trained_parameters,
)
from bayes_rl.agent.settings import ObjectiveSettings, OptimizerSettings, check_agent
from bayes_rl.agent.task_switching import consolidation_is_due, reset_for_task, targets_of_sample
from bayes_rl.agent.training_metrics import posterior_values, training_values
from bayes_rl.agent.update_guard import UpdateGuard
from bayes_rl.bayes.likelihoods import LikelihoodSettings, make_likelihood
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.bayes.weight_posterior import WeightPosterior
from bayes_rl.continual.base import ConsolidationMethod, TaskSamples, make_consolidation
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.evaluation.game_metrics import GameMetrics
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput, TwinSettings
from bayes_rl.networks.gaussian_process import GaussianProcess
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.networks.settings import NetworkSettings
from bayes_rl.types import AgentArguments, Batch, Transition, ValueEstimate
from bayes_rl.utils.ranks import OwnNoise, average_values_over_ranks, num_ranks
from bayes_rl.utils.seeds import Domain, derived_seed
from bayes_rl.utils.settings import as_settings

UPDATES_PER_OBSERVATION, UPDATES_PER_POSTERIOR = 8, 200
"""Interval between the minibatches that a Gaussian process observes, and between its posteriors, in updates.

Shorter intervals take more time. The moments average about the last 1000 observed minibatches, those of 8000 updates.
"""
STATES_OF_UNITS = 1024
"""States of the replay that choose the units of the features of a Gaussian process, of all ranks."""
STATES_OF_MINIBATCH = 64
"""Those of them that the process observes at once, of all ranks."""


class VariationalActorCritic(LowOverheadModule):
    """Two actor-critic pairs for discrete actions, with Bayesian layers, an ELBO and consolidation of earlier tasks.

    The probabilities of an actor take the place of DDPG's continuous action: the actor climbs sum_a pi(a) Q(a), or
    imitates softmax(Q / temperature), as `objective.actor_loss` says.

    Each group of settings is an object of its class or a dictionary of its fields, whose documentation is there.

    Args:
        network: encoder and size of the networks, and which layers are Bayesian.
        posterior: family of the distributions over weights, and their prior.
        likelihood: likelihood of a return.
        objective: terms of the loss and their targets.
        consolidation: protection of finished tasks.
        optimizer: Adam, or natural gradients of a distribution over every weight; step sizes.
        exploration: epsilon (random actions), thompson (greedy by one posterior draw per environment and episode),
            or both.
        compile: capture of an update as one graph: none, default (torch.compile), reduce-overhead (as CUDA graphs,
            on a GPU), or cudagraphs (these alone, without a compiler).
        game: short name of the game, for human-normalised scores; set from the data by the command line.
        num_tasks: T; set from the data by the command line.
        task_conditioning: part of the networks that is task-specific: none, gains or heads; set from the data by the
            command line.
        observation_shape: of one observation, channels first; set from the data by the command line.
        num_actions: A; set from the data by the command line.
        pixel_scale: divisor of uint8 observations; set from the data by the command line.
        num_categories: values of an integer observation, 0 for arrays; set from the data by the command line.

    Attributes:
        twin: the networks that learn.
        target_twin: moving average of `twin` that targets come from, or None.
        consolidator: protects earlier tasks, or None.
        weight_posterior: distribution over every weight if the optimizer is `ivon`, or None.
        scores: metrics of whole games, one `GameMetrics` for each task.
        guard: skips updates that are not finite, and counts them.
        clamped_targets: warns of targets that the likelihood cannot hold; None if it holds all.
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
        network: NetworkSettings = NetworkSettings(),
        posterior: PosteriorSettings = PosteriorSettings(),
        likelihood: LikelihoodSettings = LikelihoodSettings(),
        objective: ObjectiveSettings = ObjectiveSettings(),
        consolidation: ConsolidationSettings = ConsolidationSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        exploration: str = "epsilon",
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
        # The last argument is the option that an error message names.
        network = as_settings(NetworkSettings, network, "model.network")
        posterior = as_settings(PosteriorSettings, posterior, "model.posterior")
        likelihood = as_settings(LikelihoodSettings, likelihood, "model.likelihood")
        self.objective = as_settings(ObjectiveSettings, objective, "model.objective")
        self.consolidation = as_settings(ConsolidationSettings, consolidation, "model.consolidation")
        self.optimizer_settings = as_settings(OptimizerSettings, optimizer, "model.optimizer")
        # Plain dictionaries, so that a checkpoint holds tensors and primitives only.
        groups = {
            "network": asdict(network),
            "posterior": asdict(posterior),
            "likelihood": asdict(likelihood),
            "objective": asdict(self.objective),
            "consolidation": asdict(self.consolidation),
            "optimizer": asdict(self.optimizer_settings),
        }
        decided: AgentArguments = {
            "game": game,
            "observation_shape": tuple(observation_shape),
            "num_actions": num_actions,
            "pixel_scale": pixel_scale,
            "num_categories": num_categories,
            "num_tasks": num_tasks,
            "task_conditioning": task_conditioning,
        }
        self.save_hyperparameters({**groups, "exploration": exploration, "compile": compile, **decided})
        groups_of_agent = self.consolidation, posterior, self.objective, self.optimizer_settings
        check_agent(*groups_of_agent, network.bayesian, exploration, compile, num_tasks)
        layers = LayerFactory(
            posterior,
            network.bayesian,
            num_categories,
            num_tasks,
            task_conditioning,
            network.activation,
            self.consolidation.method_class.posterior_becomes_prior,
            network.width,
        )
        twin = TwinSettings(network, tuple(observation_shape), num_actions, layers, pixel_scale)
        # The metrics come first, and the networks before the consolidator: the order of the state dict.
        self.scores = nn.ModuleList(GameMetrics() for _ in range(num_tasks))
        self.twin = TwinActorCritic(twin, make_likelihood(likelihood))
        self.target_twin = copy.deepcopy(self.twin).requires_grad_(False) if self.objective.target == "ema" else None
        if self.target_twin is not None:
            self.target_twin.process = None  # targets are those of the mean
        self.consolidator = make_consolidation(self.twin, self.consolidation)
        self.weight_posterior: WeightPosterior | None = None
        if self.optimizer_settings.family == "ivon":
            self.weight_posterior = WeightPosterior(trained_parameters(self.twin), posterior)
        self._ivon: IVON | None = None
        self.guard = UpdateGuard()
        bounds = self.twin.likelihood.bounds
        self.clamped_targets = None if bounds == (-math.inf, math.inf) else ClampedTargetMonitor(bounds)
        drawn = self.twin if self.weight_posterior is None else DrawnTwin(self.twin, self.weight_posterior)
        self.behaviour = Behaviour(self.twin, self._forward_context, drawn)
        self.frames = self.task = 0
        # (pair, task) to the number of minibatches in its loss since the last optimizer step.
        self._trained: Counter[tuple[int, int]] = Counter()
        self._random_state: dict[str, Tensor] | None = None  # of a checkpoint, until training begins
        self._own_noise: OwnNoise | None = None  # if several ranks train
        self._observed = -1  # update that the process has observed; an update can have several minibatches

    # ------------------------------------------------------------------ beginning
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters, and keep the random generators' state for `on_train_start`."""
        self.frames = checkpoint["frames"]
        self.guard.skipped = checkpoint.get("skipped_updates", 0)  # older checkpoints did not count them
        kept = ("torch_rng", "cuda_rng", "noise_of_rank")
        self._random_state = {key: checkpoint[key] for key in kept if checkpoint.get(key) is not None}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one optimizer with the step sizes of actors and critics as parameter groups."""
        trainer, settings = self._trainer, self.optimizer_settings
        rates = {"actor": settings.actor_lr, "critic": settings.critic_lr}
        if self.weight_posterior is not None:
            self._ivon = make_ivon(self.twin, self.weight_posterior, rates, settings.precision_rate)
            return self._ivon
        precision, clipped = (str(trainer.precision), bool(trainer.gradient_clip_val)) if trainer else ("", False)
        fused = can_fuse(precision, clipped, self.consolidator is not None)
        return make_optimizer(self.twin, rates, settings.weight_decay, settings.adam_eps, fused)

    def on_train_start(self) -> None:
        """Set the current task from the data module, log what the run should know, restore the random generators."""
        align_state(self.trainer.optimizers[0])
        if self.consolidator is not None:
            rank_zero_info(self.consolidator.describe())
        bounds = getattr(self._data, "return_bounds", None)  # a plain loader of minibatches knows no bounds
        if self.clamped_targets is not None and bounds and (line := self.clamped_targets.describe(*bounds)):
            rank_zero_info(line)
        if len(self.scores) > 1:
            self.task = self._data.curriculum.task(self._data.visit)
        # Not in `on_load_checkpoint`: Lightning draws random numbers of its own between the two.
        state, self._random_state = self._random_state, None
        if num_ranks() > 1:
            seed = derived_seed(Domain.NOISE_OF_RANK, getattr(self._data, "seed", 0), self.trainer.global_rank)
            self._own_noise = OwnNoise(seed, self.device)
            if state is not None and "noise_of_rank" in state:
                self._own_noise.state = state["noise_of_rank"].cpu()
        if state is not None:
            torch.set_rng_state(state["torch_rng"].cpu())
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def on_train_epoch_start(self) -> None:
        """Switch to the task of this epoch's visit, if the visit is a new one.

        A visit is a stretch of consecutive epochs on one task. A curriculum can visit a task more than once.
        """
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

        The penalty of a consolidation method enters by its gradient, in `on_before_optimizer_step`. With `ivon`, the
        loss is that of one draw of all weights. The weights are the draw until the backward pass ends
        (`on_after_backward`), and the KL divergence enters by the step of the optimizer.

        Args:
            batch: the minibatch, with the number of data and of frames so far.
            batch_idx: number of the minibatch in this epoch.
        """
        if not self.optimizer_settings.is_constant:
            set_rates(self.trainer.optimizers[0], self.optimizer_settings, batch.learning_frames)
        due = self._log_is_due()
        penalty = self._penalty() if due else None  # of the means
        kl = self.weight_posterior.kl_divergence(self._trained_parameters) if due and self.weight_posterior else None
        if self._ivon is not None:
            self._ivon.draw(batch.num_data / self.objective.kl_temperature)
        # The draws of weights come before the choice of pairs: this order fixes the random numbers of a seed.
        weight_mode = self.twin.posterior.training_mode(self.device)
        pairs = (0, 1) if self.objective.update_pairs == "both" else (int(torch.randint(2, ())),)
        self._trained.update((pair, batch.task) for pair in pairs)
        networks = self.twin, self.target_twin
        # What was drawn so far is the same on all ranks. The noise of the outputs is that of each rank's transitions.
        with nullcontext() if self._own_noise is None else self._own_noise.drawing():
            terms = self._terms(*networks, batch.transition, weight_mode, pairs, batch.task, self.objective)
        loss = total_loss(terms, batch.num_data, self.objective)
        self._observe(batch, terms.output)
        self.frames = batch.frames
        if due and self.twin.process is not None:
            kl = (
                0.5 * len(pairs) * self.twin.process.divergence
            )  # both pairs share the process; each pair counts half of it
        parts = {"nll": terms.nll, "kl": terms.kl if kl is None else kl, "actor_loss": terms.actor_loss}
        if penalty is not None:
            self._log_training(batch, terms, parts, penalty)
        return self.guard.record_loss(loss, parts)

    def _observe(self, batch: Batch, output: TwinOutput) -> None:
        """Let the Gaussian process observe the minibatch, every few updates, and update its posterior now and then."""
        process = self.twin.process
        if process is None or self.global_step == self._observed:
            return
        update = self._observed = self.global_step
        posteriors, rest = divmod(update, UPDATES_PER_POSTERIOR)
        if rest == 0 and posteriors.bit_count() <= 1:  # 0, 1, 2, 4, 8, ...
            self._begin_observing(process, batch)
        elif update % UPDATES_PER_OBSERVATION == 0:
            # The moments are means over the replay: only transitions that were drawn from all of it count.
            size = len(batch.transition.action) - batch.num_newest
            drawn_from_all = batch.transition.map(operator.itemgetter(slice(size)))
            self._observe_transitions(process, drawn_from_all, output.raw[..., :size, :, :])
        if rest == 0:
            process.update_posterior(batch.num_data / self.objective.kl_temperature)

    @torch.no_grad()
    def _begin_observing(self, process: GaussianProcess, batch: Batch) -> None:
        """Choose the units of the process's features anew, and observe a sample of the replay by these features.

        The replay changes with the policy. The units are chosen anew each time the number of updates has doubled. Each
        rank draws its share of the sample from its own replay.
        """
        sample = getattr(self._data, "sample_own_transitions", None)  # a plain loader of minibatches has no replay
        own = batch.transition if sample is None else sample(STATES_OF_UNITS, newest_share=1.0)
        size = max(1, STATES_OF_MINIBATCH // num_ranks())
        chunks = [chunk.map(lambda x: x.to(self.device)) for chunk in own.split(size)]
        process.restart([self.twin.prepare(chunk.observation) for chunk in chunks])
        for chunk in chunks:
            with self._forward_context():
                output: TwinOutput = self.twin(chunk.observation, "mean", batch.task)
            self._observe_transitions(process, chunk, output.raw)

    def _observe_transitions(self, process: GaussianProcess, transition: Transition, raw: Tensor) -> None:
        noise = self.twin.likelihood.std(raw).mean(0).gather(-1, transition.action[:, None]).squeeze(-1)
        process.observe(self.twin.prepare(transition.observation), transition.action, noise)

    @functools.cached_property
    def _terms(self) -> Callable[..., ObjectiveTerms]:
        """`objective_terms`, captured as one graph if `compile` asks for it."""
        return compile_update(objective_terms, self.hparams.compile)

    def on_after_backward(self) -> None:
        """Return the weights from the draw of this update to their means."""
        if self._ivon is not None:
            self._ivon.take_back()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradient of the consolidation penalty, and clear gradients of networks without a loss in this update.

        Lightning's callbacks have seen the gradient of the loss by then. A gradient of zero would still move a network
        without loss, by Adam's momentum and weight decay. With `ivon`, the weights are their means again: the penalty
        and clipping, which follows this hook, change the gradients of the means and not the estimate of the curvature.

        Args:
            optimizer: about to take its step.

        Raises:
            RunError: if too many updates in a row were not finite.
        """
        if self._ivon is not None:
            self._ivon.record()
        for parameter in self.twin.parameters_without_loss(self._trained):
            parameter.grad = None
        if self.consolidator is not None and self.consolidator.active:
            self._add_penalty_gradients(self.consolidator)
        self._trained.clear()
        has_loss_scaler = str(self.trainer.precision) == "16-mixed"  # a loss scaler skips updates by itself
        # The penalty is computed only for the message of an error.
        self.guard.check(optimizer, self.twin, has_loss_scaler, lambda: {"ewc_penalty": self._penalty()})

    def _add_penalty_gradients(self, consolidator: ConsolidationMethod) -> None:
        """Add the gradient of the consolidation penalty, with as much weight as this update gives to the loss.

        With `update_pairs random` the loss of an update is half of the objective in expectation: each minibatch trains
        one of the two pairs, and a shared trunk at half of its weight.
        """
        weighted = []
        if self.objective.update_pairs == "random":
            counts = [sum(n for (pair, _), n in self._trained.items() if pair == number) for number in range(2)]
            weighted = [
                (weight, gradients)
                for weight, group in zip((0.5, *(n / sum(counts) for n in counts)), self._loss_groups, strict=True)
                if 0 < weight < 1 and (gradients := [p.grad for p in group if p.grad is not None])
            ]
        for weight, gradients in weighted:
            torch._foreach_div_(gradients, weight)
        consolidator.add_gradients(self.twin)
        for weight, gradients in weighted:
            torch._foreach_mul_(gradients, weight)

    @functools.cached_property
    def _loss_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of a shared trunk, those of pair 0 alone and those of pair 1 alone."""
        trunk = self.twin.trunks[0] if self.twin.shared_trunk else nn.ModuleList()
        common = {id(p) for p in trunk.parameters()}
        tasks = range(len(self.scores))
        pairs = [[p for task in tasks for p in self.twin.networks([pair], task).parameters()] for pair in range(2)]
        alone = [list({id(p): p for p in parameters if id(p) not in common}.values()) for parameters in pairs]
        return [list(trunk.parameters()), *alone]

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

    def _log_is_due(self) -> bool:
        """Return whether the values of this update are logged."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0

    def _log_training(self, batch: Batch, terms: ObjectiveTerms, parts: dict[str, Tensor], penalty: Tensor) -> None:
        """Log everything that `docs/reference/metrics.md` lists under training.

        Args:
            batch: the minibatch.
            terms: terms of the loss.
            parts: terms to log by name.
            penalty: penalty of the consolidation method, a scalar in nats.
        """
        # The loss of one pair, drawn at random, is half of the objective in expectation, and so is its penalty.
        share = 0.5 if self.objective.update_pairs == "random" else 1.0
        parts = {**parts, "ewc_penalty": share * penalty}  # the key of every method's penalty
        temperature = self.objective.kl_temperature
        values = training_values(self.twin, batch, terms.output, terms.targets, temperature, parts)
        if self.weight_posterior is not None:
            values |= posterior_values(self.weight_posterior.log_variances())
        values["train/skipped_updates"] = float(self.guard.skipped)
        values |= {f"train/{group['name']}_lr": group["lr"] for group in self.trainer.optimizers[0].param_groups}
        self._warn_of_clamped_targets(values["train/clamped_targets"], len(batch.transition.action))
        values |= self._frozen_share(penalty, terms.nll / share)
        # Lightning would average the values one by one.
        self.log_dict({**average_values_over_ranks(values, self.device), "step": float(batch.frames)})

    @functools.cached_property
    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer changes, by name."""
        return trained_parameters(self.twin)

    def _warn_of_clamped_targets(self, share: Tensor | float, targets: int) -> None:
        if self.clamped_targets is None:
            return  # without a look at `share`, which would wait for the device
        message = self.clamped_targets.add(float(share), targets)
        if message is not None and self.trainer.is_global_zero:
            warnings.warn(message, stacklevel=2)

    @torch.no_grad()
    def _penalty(self) -> Tensor:
        """Return the penalty of the consolidation method, a scalar in nats."""
        if self.consolidator is None:
            return torch.zeros((), device=self.device)
        return self.consolidator.penalty(self.twin)

    def _frozen_share(self, penalty: Tensor, nll: Tensor) -> dict[str, Tensor | float]:
        """Return the share of frozen weights to log, and warn once if the penalty is much too strong or too weak."""
        if self.consolidator is None or not self.consolidator.active:
            return {"train/frozen_share": 0.0}
        message = self.consolidator.strength_warning(penalty.item(), nll.item(), self.global_step)
        if message is not None and self.trainer.is_global_zero:
            warnings.warn(message, stacklevel=2)
        return {"train/frozen_share": self.consolidator.frozen_share(self.twin, self.trainer.optimizers[0])}

    # ------------------------------------------------------------------ whole games
    def validation_step(self, games: Games, batch_idx: int) -> dict[str, list[Game]]:
        """Play the games greedily, by the mean weights, and test the estimated values and their uncertainty.

        Args:
            games: of one task.
            batch_idx: number of the task.

        Returns:
            The finished games under `games`, for callbacks.
        """
        task = games.task
        estimate = partial(self.estimate_values, task=task)
        played = games.play(partial(self.act, task=task), partial(estimate, measure=True))
        # Number of each game among the games of all processes.
        numbers = [self.trainer.world_size * number + self.trainer.global_rank for number in range(len(played))]
        self.scores[task].update(played, numbers, games.estimate_every, self._data.gamma)
        if games.novel is not None:
            self.scores[task].test_novelty(games.novel, played, estimate)
            self.scores[task].test_features(played, lambda states: self.twin.activity(states.to(self.device), task))
        return {"games": played}

    test_step = validation_step  # on other seeds

    def on_validation_epoch_end(self) -> None:
        """Log the scores under `val/` or `test/`; those of several tasks below the name of each."""
        stage = "test" if self.trainer.testing else "val"
        # The scores of a fit update the calibration of later intervals.
        during_fit = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if len(self.scores) == 1:
            scores = self.scores[0].finish(self.hparams.game, during_fit)
        else:
            named = zip(self._data.curriculum.names, self.scores, strict=True)
            # A limit of batches can leave out the games of a task.
            parts = {name: part.finish(name, during_fit) for name, part in named if part.returns.update_called}
            scores = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
            if all("human_normalised" in part for part in parts.values()):
                scores["human_normalised"] = torch.stack([part["human_normalised"] for part in parts.values()]).mean()
        # The scores are those of all ranks. Their mean over ranks is each of them, which Lightning cannot know.
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items()}, sync_dist=True)
        self.log("step", float(self.frames), sync_dist=True)

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
        """Add the present weights to the penalty, by a sample of the current task's transitions.

        This happens at the end of a task, and every `consolidate_every` updates within a task.
        """
        if self.consolidator is None:
            return
        settings = self.consolidation
        transition = self._data.sample_transitions(settings.fisher_samples, settings.fisher_newest)
        targets = None
        if self.consolidator.needs_targets:
            targets = targets_of_sample(transition, self._mean_targets, self.device)
        generator = torch.Generator().manual_seed(derived_seed(Domain.FISHER_OUTPUTS, self.global_step))
        samples = TaskSamples(transition.observation, transition.action, targets, generator, self.task)
        self.consolidator.end_task(self.twin, samples)

    def _mean_targets(self, transition: Transition) -> Tensor:
        return td_targets(self.twin, self.target_twin, transition, "mean", self.task, self.objective).values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters and the state of the random generators to a checkpoint."""
        checkpoint["frames"] = self.frames
        self.guard.synchronize()
        checkpoint["skipped_updates"] = self.guard.skipped
        checkpoint["torch_rng"] = torch.get_rng_state()
        if self._own_noise is not None:
            checkpoint["noise_of_rank"] = self._own_noise.state
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
    def leaves_out_networks(self) -> bool:
        """True if an update can leave parameters without a gradient (those of a pair, or of another task)."""
        return self.objective.update_pairs == "random" or len(self.scores) > 1

    @property
    def explores_by_draw(self) -> bool:
        """True if episodes are played by posterior draws."""
        return self.hparams.exploration != "epsilon"

    @property
    def explores_at_random(self) -> bool:
        """True if epsilon-greedy exploration replaces actions by random ones."""
        return self.hparams.exploration != "thompson"

    def _forward_context(self) -> AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context() if self._trainer else nullcontext()

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]
