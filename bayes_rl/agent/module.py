"""The agent: a LightningModule that owns the variational actor-critic and the ELBO + EWC loss."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.agent.compilation import compile_update
from bayes_rl.agent.lifelong import Lifelong
from bayes_rl.agent.low_overhead import LowOverheadModule
from bayes_rl.agent.optimizer import can_fuse, make_optimizer, moving_average_pairs
from bayes_rl.agent.settings import check_agent
from bayes_rl.agent.training_metrics import training_values
from bayes_rl.agent.update_guard import UpdateGuard
from bayes_rl.bayes.draws import Draws, WeightMode, index_draws
from bayes_rl.bayes.likelihoods import make_likelihood
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.continual.base import Consolidator
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.networks.actor_critic import TwinActorCritic, TwinOutput, TwinSettings
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.types import Batch, Transition


class VariationalActorCritic(LowOverheadModule, Lifelong):
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

    Raises:
        ConfigError: naming the setting that cannot work.
    """

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
        super().__init__(num_tasks)
        self.save_hyperparameters()
        check_agent(self.hparams)
        family = (posterior, index_dim, prior, prior_precision, init_log_var, log_var_limit, init_scale)
        variational = PosteriorSettings(*family, sequential=consolidation == "vcl")
        strength = (0.0 if consolidation in ("none", "vcl") else 0.001) if ewc_lambda is None else ewc_lambda
        keeping = (strength, protect, fisher, fisher_samples, fisher_norm, online_decay)
        networks = TwinSettings(
            encoder,
            tuple(observation_shape),
            num_actions,
            hidden_dim,
            shared_trunk,
            LayerFactory(variational, bayesian, num_categories, num_tasks, task_conditioning, activation),
            prior_scale,
            pixel_scale,
        )
        self.twin = TwinActorCritic(networks, make_likelihood(likelihood, noise_std, value_range, num_bins))
        self.target_twin = copy.deepcopy(self.twin).requires_grad_(False) if target == "ema" else None
        kept = ConsolidationSettings(consolidation, *keeping)
        self.consolidator = Consolidator(self.twin, kept) if consolidation != "none" else None
        self.guard = UpdateGuard()
        self._learning: set[tuple[int, int]] = set()  # pairs and tasks with a loss since the last optimizer step

    # ------------------------------------------------------------------ learning
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One update: the critics' negative ELBO plus the actors' loss; see `on_before_optimizer_step` for EWC."""
        weights = self._training_weights()
        pairs = (0, 1) if self.hparams.update_pairs == "both" else (int(torch.randint(2, ())),)
        self._learning |= {(pair, batch.task) for pair in pairs}
        nll, kl, actor_loss, targets, output = self._captured(batch.transition, weights, pairs, batch.task)
        loss = losses.negative_elbo(nll, kl, batch.num_data, self.hparams.temperature) + actor_loss
        self.frames = batch.frames
        parts = {"nll": nll, "kl": kl, "actor_loss": actor_loss}
        self._log_training(batch, output, targets, **parts)
        self.guard.record_loss(loss, parts)
        return loss

    @functools.cached_property
    def _captured(self) -> Any:
        return compile_update(self._objective, self.hparams.compile)

    def _objective(
        self, transition: Transition, weights: WeightMode, pairs: Sequence[int], task: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, TwinOutput]:
        """Everything with one graph at every update: nll, KL and actors' loss; and to look at, targets and outputs."""
        targets = self._targets(transition, weights, task)
        output: TwinOutput = self.twin(_for_draws(transition.observation, weights), weights, task)
        nll = self._nll(output, transition, targets, pairs)
        kl = self.twin.kl_divergence(pairs, output, task)
        return nll, kl, self._actor_loss(output, pairs), targets, _detached(output)

    def _training_weights(self) -> WeightMode:
        """A fresh draw of every output, or draws of the index that value and target share."""
        if self.hparams.posterior == "mean_field" or self.hparams.bayesian == "none":
            return "sample"
        return index_draws(self.twin.posterior, self.hparams.draws, self.device)

    @torch.no_grad()
    def _targets(self, transition: Transition, weights: WeightMode, task: int = 0) -> Tensor:
        """TD targets `[2, (D,) B]`, one for each pair: from mean weights, or by the same draws as the values."""
        weights = replace(weights, noise={}) if isinstance(weights, Draws) else "mean"
        twin = self.twin if self.target_twin is None else self.target_twin
        output: TwinOutput = twin(_for_draws(transition.next_observation, weights), weights, task)
        probs, q_values = output.action_logits.softmax(-1), output.q_values
        if self.target_twin is None:
            probs, q_values = probs.flip(0), q_values.flip(0)  # pair 0 learns from pair 1 and the other way round
        else:
            probs, q_values = (x.mean(0, keepdim=True) for x in (probs, q_values))  # one target for both
        if self.hparams.bootstrap == "greedy":
            probs = losses.greedy(q_values)
        reward, discount = (x.expand(q_values.shape[:-1]) for x in (transition.reward, transition.discount))
        return losses.td_target(reward, discount, probs, q_values).expand(2, *q_values.shape[1:-1])

    def _nll(self, output: TwinOutput, transition: Transition, targets: Tensor, pairs: Sequence[int]) -> Tensor:
        """-log likelihood of the targets in nats: summed over the `pairs` that learn, mean over draws and batch."""
        action = transition.action.expand(targets.shape)[..., None, None]
        raw = output.raw.gather(-2, action.expand(*action.shape[:-1], output.raw.shape[-1])).squeeze(-2)
        if output.prior is not None:  # what is left for the learned part to explain
            targets = targets - output.prior.expand_as(output.q_values).gather(-1, action[..., 0]).squeeze(-1)
        return len(pairs) * _of(pairs, self.twin.likelihood.nll(raw, targets)).mean()

    def _actor_loss(self, output: TwinOutput, pairs: Sequence[int]) -> Tensor:
        """The actors climb the mean of both critics; a scalar, summed over the `pairs` that learn."""
        logits = _of(pairs, output.action_logits)
        q_values = output.q_values.detach().mean(0).expand_as(logits)
        if self.hparams.actor_loss == "dpg":
            mean = losses.dpg_loss(logits, q_values)
        else:
            flat = logits.flatten(0, -2), q_values.flatten(0, -2)
            mean = losses.cross_entropy_loss(*flat, self.hparams.policy_temperature)
        if self.hparams.entropy_weight:
            mean = mean - self.hparams.entropy_weight * losses.entropy(logits)
        return len(pairs) * mean

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Complete the gradient, after the callbacks saw it: with the EWC penalty's, and without that of what rests.

        A gradient of zero would still move what rests, by Adam's momentum and decay.

        Raises:
            RunError: if too many updates in a row were not finite.
        """
        for parameter in self.twin.parameters_without_loss(self._learning):
            parameter.grad = None
        self._learning.clear()
        if self.consolidator is not None:
            self.consolidator.add_gradients(self.twin)
        scaled = str(self.trainer.precision) == "16-mixed"
        self.guard.check(optimizer, self.twin, scaled, lambda: {"ewc_penalty": self._ewc_penalty()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.target_twin is not None:
            with torch.no_grad():
                torch._foreach_lerp_(*self._averaged, self.hparams.tau)

    @functools.cached_property
    def _averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """The moving average's parameters and the newest: walking the trees takes longer than averaging."""
        assert self.target_twin is not None
        return moving_average_pairs(self.target_twin, self.twin)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with the actors' and the critics' step sizes as parameter groups."""
        trainer, options = self._trainer, self.hparams
        precision, clipped = (str(trainer.precision), bool(trainer.gradient_clip_val)) if trainer else ("", False)
        fused = can_fuse(precision, clipped, self.consolidator is not None)
        rates = {"actor": options.actor_lr, "critic": options.critic_lr}
        return make_optimizer(self.twin, rates, options.weight_decay, options.adam_eps, fused)

    # ------------------------------------------------------------------ logging
    def _log_training(self, batch: Batch, output: TwinOutput, targets: Tensor, **parts: Tensor) -> None:
        """Everything `docs/metrics.md` lists under training; computed only when it will be written."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (self.global_step + 1) % every:
            return
        parts["ewc_penalty"] = self._ewc_penalty()
        values = training_values(self.twin, batch, output, targets, self.hparams.temperature, parts)
        values["train/skipped_updates"] = float(self.guard.skipped)
        self.log_dict(values | self._watch_penalty(parts["ewc_penalty"], parts["nll"]))
        self.log("step", float(batch.frames))


def _of(pairs: Sequence[int], values: Tensor) -> Tensor:
    return values if len(pairs) == 2 else values.narrow(0, pairs[0], 1)


def _for_draws(observation: Tensor, weights: WeightMode) -> Tensor:
    return observation[None] if isinstance(weights, Draws) else observation


def _detached(output: TwinOutput) -> TwinOutput:
    """Without gradients and without the posterior."""
    prior = None if output.prior is None else output.prior.detach()
    return TwinOutput(output.action_logits.detach(), output.raw.detach(), output.q_values.detach(), prior)
