"""What the agent does between tasks, and between sittings: it keeps what it knows, and makes room for what comes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from bayes_rl.agent.player import Player
from bayes_rl.agent.update_guard import UpdateGuard
from bayes_rl.bayes.draws import WeightMode
from bayes_rl.continual.base import Consolidator
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.types import Transition

TARGETS_CHUNK = 250  # transitions whose targets are found at once


class Lifelong(Player, ABC):
    """The part of the agent that goes from task to task; how it learns one is the subclass's.

    Attributes:
        consolidator: keeps what was learned, or None.
        target_twin: moving average that targets come from, or None.
        guard: leaves out updates that are not finite, and counts them.
    """

    guard: UpdateGuard
    consolidator: Consolidator | None
    target_twin: TwinActorCritic | None

    @abstractmethod
    def _targets(self, transition: Transition, weights: WeightMode, task: int = 0) -> Tensor:
        """TD targets `[2, (D,) B]` of a minibatch of a task, in clipped return units."""

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Take up the task where the data are, and say what is kept, and in how much memory."""
        if self.consolidator is not None:
            rank_zero_info(self.consolidator.describe())
        if len(self.scores) > 1:
            self.task = self._data.curriculum.task(self._data.visit)
        # Now, not when loading: what Lightning does in between draws random numbers of its own.
        state = self.__dict__.pop("_rng", None)
        if state is not None:
            torch.set_rng_state(state["torch_rng"].cpu())
            if self.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters and the state of the random generators."""
        checkpoint["frames"] = self.frames
        self.guard.synchronize()
        checkpoint["skipped_updates"] = self.guard.skipped
        checkpoint["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again; the generators when training begins."""
        self.frames = checkpoint["frames"]
        self.guard.skipped = checkpoint.get("skipped_updates", 0)  # older ones did not count them
        self._rng = {key: checkpoint[key] for key in ("torch_rng", "cuda_rng") if key in checkpoint}

    def on_train_epoch_start(self) -> None:
        """Go on to the next task if this epoch belongs to it."""
        if len(self.scores) == 1:
            return
        visit = self._data.curriculum.visit(self.current_epoch)
        if visit != self._data.visit:
            self._data.start_visit(visit)
            self.task = self._data.curriculum.task(visit)
            self._reset_for_task()

    def _is_due(self, update: int) -> bool:
        """Whether the task at hand is registered after this update, as the original system does."""
        every = self.hparams.consolidate_every
        return bool(every) and update % every == 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Register the task at hand every `consolidate_every` updates; before anything can save a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        if self._is_due(self.global_step + 1):  # counted when this has returned
            self.consolidate()

    def on_train_epoch_end(self) -> None:
        """Register a task at its end; before the checkpoint of this epoch, which callbacks write later."""
        ends = len(self.scores) > 1 and self._data.curriculum.ends(self.current_epoch)
        if ends and not self._is_due(self.global_step):
            self.consolidate()

    @torch.no_grad()
    def consolidate(self) -> None:
        """Protect what was learned of the task at hand, on a sample of its transitions."""
        if self.consolidator is None:
            return
        settings = self.consolidator.settings
        transition = self._data.fisher_samples(settings.fisher_samples)
        targets = None
        if settings.fisher == "empirical":
            chunks = zip(*(x.split(TARGETS_CHUNK) for x in transition), strict=True)
            parts = [
                self._targets(Transition(*(x.to(self.device) for x in chunk)), "mean", self.task) for chunk in chunks
            ]
            targets = torch.cat(parts, -1).cpu()
        generator = torch.Generator().manual_seed(self.global_step)
        self.consolidator.consolidate(
            self.twin, transition.observation, transition.action, targets, generator, self.task
        )

    def _reset_for_task(self) -> None:
        """At a task's beginning: the optimizer forgets, and critics begin anew, where they are told to."""
        if self.hparams.optimizer_at_switch == "reset":
            self.trainer.optimizers[0].state.clear()
        if self.hparams.critic_at_switch == "reset":
            fresh = TwinActorCritic(self.twin.settings, self.twin.likelihood).to(self.device)
            for pair in range(2):
                new = fresh.heads_of(pair, self.task)[1].state_dict()
                for twin in (self.twin, self.target_twin):
                    if twin is not None:
                        twin.heads_of(pair, self.task)[1].load_state_dict(new)
                for parameter in self.twin.heads_of(pair, self.task)[1].parameters():
                    self.trainer.optimizers[0].state.pop(parameter, None)

    @torch.no_grad()
    def _ewc_penalty(self) -> Tensor:
        if self.consolidator is None:
            return torch.zeros((), device=self.device)
        return self.consolidator.penalty(self.twin)

    def _watch_penalty(self, penalty: Tensor, loss: Tensor) -> dict[str, Tensor | float]:
        """Values to log of the penalty; warns once of a strength that is out of scale."""
        if self.consolidator is None or not self.consolidator.ewc.active:
            return {"train/frozen_share": 0.0}
        message = self.consolidator.out_of_scale(penalty.item(), loss.item(), self.global_step)
        if message is not None:
            warnings.warn(message, stacklevel=2)
        share = self.consolidator.frozen_share(self.twin, self.trainer.optimizers[0])
        return {"train/frozen_share": share}
