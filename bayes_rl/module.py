"""The agent: a LightningModule that owns the variational actor-critic and the ELBO + EWC loss."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from bayes_rl import losses
from bayes_rl.bayes import kl_divergence
from bayes_rl.consolidation import ElasticWeightConsolidation, critic_score, fisher_diagonal
from bayes_rl.diagnostics import training_values
from bayes_rl.games import Game, Games
from bayes_rl.metrics import EpisodeReturns, human_normalised_score
from bayes_rl.networks import Twin, TwinOutput, parameter_groups
from bayes_rl.types import Batch, Transition, check, check_choice

FISHER_CHUNK = 16  # per-sample gradients held at once


class VariationalActorCritic(pl.LightningModule):
    """Twin DDPG on the action simplex with Bayesian heads, an ELBO and Elastic Weight Consolidation.

    Args:
        encoder: pseudo_resnet (the original's), nature, impala, minatar (10 x 10 planes) or mlp (vectors).
        hidden_dim: features of the encoder's projection.
        shared_trunk: one encoder for both pairs, trained by the critics; false gives each of the four its own.
        prior_precision: 1 / variance of the Gaussian prior of each Bayesian weight, > 0.
        init_log_var: initial log-variance of each Bayesian weight (natural logarithm), within +-11.
        temperature: T of the ELBO, weight of KL / N; 1 is the true ELBO, 0 plain maximum likelihood.
        noise_std: standard deviation of the Gaussian likelihood of a return, in clipped return units, > 0.
        target: bootstrap from the `other` pair (the original) or from a moving average of both (`ema`).
        tau: weight of the newest parameters in the moving average, per update, in (0, 1].
        actor_loss: `dpg`, the exact policy gradient, or `cross_entropy` to softmax(Q / policy_temperature).
        policy_temperature: of that softmax, in clipped return units, > 0.
        entropy_weight: weight of the actors' entropy in their loss, in return units per nat, >= 0.
        update_pairs: improve `both` pairs each update, or one at `random` (the original).
        ewc_lambda: strength of the EWC penalty, >= 0; 0 switches it off.
        consolidate_every: updates between registrations of the Fisher and its anchor; 0 never registers.
        fisher_batches: latest minibatches the Fisher is averaged over.
        actor_lr: Adam step size of the actors' heads (and own trunks).
        critic_lr: Adam step size of the critics and of a shared trunk.
        adam_eps: Adam's denominator offset.
        weight_decay: decoupled weight decay of deterministic matrices and kernels, per unit of step size.
        game: short name of the game, for human-normalised scores; set from the data by the command line.
        observation_shape: of one observation, channels first; set from the data by the command line.
        num_actions: A; set from the data by the command line.
        pixel_scale: divisor of integer observations; set from the data by the command line.

    Raises:
        ConfigError: naming the setting that cannot work.
    """

    hparams: Any  # attribute access to the arguments of `__init__`

    def __init__(
        self,
        encoder: str = "nature",
        hidden_dim: int = 512,
        shared_trunk: bool = True,
        prior_precision: float = 10.0,
        init_log_var: float = -9.0,
        temperature: float = 1.0,
        noise_std: float = 1.0,
        target: str = "ema",
        tau: float = 0.005,
        actor_loss: str = "cross_entropy",
        policy_temperature: float = 0.02,
        entropy_weight: float = 0.0,
        update_pairs: str = "both",
        ewc_lambda: float = 0.0,
        consolidate_every: int = 0,
        fisher_batches: int = 8,
        actor_lr: float = 2.5e-4,
        critic_lr: float = 2.5e-4,
        adam_eps: float = 1e-5,
        weight_decay: float = 0.0,
        game: str = "",
        observation_shape: tuple[int, ...] = (4, 84, 84),
        num_actions: int = 4,
        pixel_scale: float = 255.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_choice("model.target", target, ("other", "ema"))
        check_choice("model.actor_loss", actor_loss, ("dpg", "cross_entropy"))
        check_choice("model.update_pairs", update_pairs, ("both", "random"))
        not_negative = {"temperature": temperature, "entropy_weight": entropy_weight, "ewc_lambda": ewc_lambda}
        for key, value in (not_negative | {"adam_eps": adam_eps, "weight_decay": weight_decay}).items():
            check(value >= 0, f"model.{key}", value, "must be zero or positive")
        positive = {"noise_std": noise_std, "policy_temperature": policy_temperature, "tau": tau}
        for key, value in (positive | {"actor_lr": actor_lr, "critic_lr": critic_lr}).items():
            check(value > 0, f"model.{key}", value, "must be positive")
        check(tau <= 1, "model.tau", tau, "must be at most 1")
        check(consolidate_every >= 0, "model.consolidate_every", consolidate_every, "must be zero or more updates")
        check(fisher_batches >= 1, "model.fisher_batches", fisher_batches, "must be at least 1 minibatch")
        self.twin = Twin(
            encoder,
            tuple(observation_shape),
            num_actions,
            hidden_dim,
            shared_trunk,
            prior_precision,
            init_log_var,
            pixel_scale,
        )
        self.target_twin = copy.deepcopy(self.twin).requires_grad_(False) if target == "ema" else None
        self.ewc = ElasticWeightConsolidation(self._protected(), ewc_lambda) if ewc_lambda > 0 else None
        self._fisher_samples: deque[tuple[Tensor, Tensor]] = deque(maxlen=fisher_batches)  # observation, action
        self._consolidated_at = 0  # the update of the last registration
        self._learning: set[int] = set()  # pairs with a loss since the last optimizer step
        self.returns = EpisodeReturns()
        self.frames = 0  # environment frames seen, the axis of every curve

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Greedy actions `[E]` int64 on the CPU, from the mean weights and the mean of both actors."""
        precision = self.trainer.precision_plugin.forward_context() if self._trainer else contextlib.nullcontext()
        with precision:
            output = self.twin(observations.to(self.device))
        return output.mean_action_probs().argmax(-1).cpu()

    # ------------------------------------------------------------------ learning
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One update: the critics' negative ELBO and EWC penalty, plus the actors' loss."""
        transition = batch.transition
        targets = self._targets(transition)
        output: TwinOutput = self.twin(transition.observation, weights="sample")
        pairs = [0, 1] if self.hparams.update_pairs == "both" else [int(torch.randint(2, ()))]
        self._learning |= set(pairs)
        nll = self._nll(output, transition, targets, pairs)
        kl = kl_divergence(self.twin.networks(pairs))
        ewc_penalty = self._ewc_penalty(transition)
        actor_loss = self._actor_loss(output, pairs)
        elbo_loss = losses.negative_elbo(nll, kl, batch.num_data, self.hparams.temperature)
        self.frames = batch.frames
        self._log_training(batch, output, targets, nll=nll, kl=kl, ewc_penalty=ewc_penalty, actor_loss=actor_loss)
        return elbo_loss + ewc_penalty + actor_loss

    @torch.no_grad()
    def _targets(self, transition: Transition) -> Tensor:
        """TD targets `[2, B]`, one for each pair, from mean weights."""
        if self.target_twin is not None:
            next_output: TwinOutput = self.target_twin(transition.next_observation)
            probs = next_output.mean_action_probs()
            q_values = next_output.q_values.mean(0)
            td_target = losses.td_target(transition.reward, transition.discount, probs, q_values)
            return td_target.expand(2, -1)
        next_output = self.twin(transition.next_observation)
        probs, q_values = next_output.action_logits.softmax(-1), next_output.q_values
        # Pair 0 learns from pair 1 and the other way round.
        return torch.stack(
            [losses.td_target(transition.reward, transition.discount, probs[i], q_values[i]) for i in (1, 0)]
        )

    def _nll(self, output: TwinOutput, transition: Transition, targets: Tensor, pairs: list[int]) -> Tensor:
        """-log likelihood of the targets in nats: summed over the `pairs` that learn, mean over the batch."""
        action = transition.action.expand(2, -1).unsqueeze(-1)
        q = output.q_values.gather(-1, action).squeeze(-1)
        nll = losses.gaussian_nll(q, targets, self.hparams.noise_std)
        return nll[pairs].sum(0).mean()

    def _actor_loss(self, output: TwinOutput, pairs: list[int]) -> Tensor:
        """The actors climb the mean of both critics; a scalar, summed over the `pairs` that learn."""
        q_values = output.q_values.mean(0)
        total = torch.zeros((), device=q_values.device)
        for i in pairs:
            logits = output.action_logits[i]
            if self.hparams.actor_loss == "dpg":
                total = total + losses.dpg_loss(logits, q_values)
            else:
                total = total + losses.cross_entropy_loss(logits, q_values, self.hparams.policy_temperature)
            if self.hparams.entropy_weight:
                total = total - self.hparams.entropy_weight * losses.entropy(logits)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the pair that rests as it is: a gradient of zero would still move it, by Adam's momentum and decay."""
        learning = {id(p) for p in self.twin.networks(sorted(self._learning)).parameters()}
        for parameter in self.twin.parameters():
            if id(parameter) not in learning:
                parameter.grad = None
        self._learning.clear()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.target_twin is not None:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.target_twin.parameters()), list(self.twin.parameters()), self.hparams.tau
                )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with the actors' and the critics' step sizes as parameter groups."""
        # Lightning refuses to clip the gradients of a fused optimizer under mixed precision.
        trainer = self._trainer
        clipped_amp = trainer is not None and trainer.gradient_clip_val and "mixed" in str(trainer.precision)
        rates = {"actor": self.hparams.actor_lr, "critic": self.hparams.critic_lr}
        groups = parameter_groups(self.twin, rates, self.hparams.weight_decay)
        return torch.optim.AdamW(groups, eps=self.hparams.adam_eps, fused=not clipped_amp)

    # ------------------------------------------------------------------ consolidation
    def _protected(self, pairs: tuple[int, ...] = (0, 1)) -> dict[str, Tensor]:
        """What EWC anchors: the critics' means of Bayesian weights and all their deterministic weights."""
        prefixes = tuple(prefix for pair in pairs for prefix in self.twin.critic_prefixes(pair))
        return {
            name: parameter
            for name, parameter in self.twin.named_parameters()
            if name.startswith(prefixes) and not name.endswith("weight_log_var")
        }

    def _ewc_penalty(self, transition: Transition) -> Tensor:
        if self.ewc is None:
            return torch.zeros((), device=self.device)
        self._fisher_samples.append((transition.observation, transition.action))
        every = self.hparams.consolidate_every
        if every and self.global_step % every == 0 and self.global_step > self._consolidated_at:
            self.consolidate()
            self._consolidated_at = self.global_step
        return self.ewc.penalty(self._protected())

    @torch.no_grad()
    def consolidate(self) -> None:
        """Register the critics' Fisher diagonal on the latest minibatches, and anchor the present weights."""
        if self.ewc is None or not self._fisher_samples:
            return
        protected = self._protected()
        fisher = {name: torch.zeros_like(p) for name, p in protected.items()}
        with torch.autocast(self.device.type, enabled=False):
            observation = self.twin.prepare(torch.cat([o.to(self.device) for o, _ in self._fisher_samples]))
            action = torch.cat([a.to(self.device) for _, a in self._fisher_samples])
            for pair in range(2):
                score = critic_score(self.twin, pair, self.hparams.noise_std)
                part = fisher_diagonal(score, self._protected((pair,)), (observation, action), FISHER_CHUNK)
                for name, value in part.items():
                    fisher[name] += value
        self.ewc.consolidate(protected, fisher)

    # ------------------------------------------------------------------ games
    def validation_step(self, games: Games, batch_idx: int) -> None:
        """Play the games greedily, by the mean weights."""
        played = games.play(self.act)
        columns = zip(*((g.score, float(g.frames), float(g.cut)) for g in played), strict=True)
        self.returns.update(*(torch.tensor(column, device=self.device) for column in columns))

    test_step = validation_step  # on other seeds

    def predict_step(self, games: Games, batch_idx: int) -> list[Game]:
        """Play the games; a callback writes them as video."""
        return games.play(self.act)

    def on_validation_epoch_end(self) -> None:
        """Log the scores, under `val/` or `test/`."""
        stage = "test" if self.trainer.testing else "val"
        scores = self.returns.compute()
        normalised = human_normalised_score(self.hparams.game, float(scores["return_mean"]))
        if normalised is not None:
            scores["human_normalised"] = torch.tensor(normalised)
        self.returns.reset()
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items()})
        self.log("step", float(self.frames))

    on_test_epoch_end = on_validation_epoch_end

    # ------------------------------------------------------------------ logging and state
    def _log_training(self, batch: Batch, output: TwinOutput, targets: Tensor, **parts: Tensor) -> None:
        """Everything `docs/metrics.md` lists under training; computed only when it will be written."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (self.global_step + 1) % every:
            return
        self.log_dict(training_values(self.twin, batch, output, targets, self.hparams.temperature, parts))
        self.log("step", float(batch.frames))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["frames"] = self.frames
        checkpoint["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        checkpoint["fisher_samples"] = list(self._fisher_samples)
        checkpoint["consolidated_at"] = self._consolidated_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.frames = checkpoint["frames"]
        self._fisher_samples.extend(checkpoint["fisher_samples"])
        self._consolidated_at = checkpoint["consolidated_at"]
        self._rng = {key: checkpoint[key] for key in ("torch_rng", "cuda_rng") if key in checkpoint}

    def on_train_start(self) -> None:
        # Now, not when loading: what Lightning does in between draws random numbers of its own.
        state = self.__dict__.pop("_rng", None)
        if state is not None:
            torch.set_rng_state(state["torch_rng"].cpu())
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
