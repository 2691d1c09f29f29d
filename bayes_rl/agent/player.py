"""How the agent plays: greedily, by posterior draws, and whole games with an opinion of every state."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl.bayes.draws import Draws, EpisodeDraws, draws_by_seed, every_member, to_device
from bayes_rl.evaluation.game_metrics import GameMetrics
from bayes_rl.evaluation.games import Game, Games
from bayes_rl.networks.actor_critic import TwinActorCritic
from bayes_rl.types import ValueEstimate
from bayes_rl.utils.device import to_device_async

VALUE_DRAWS = 16  # posterior draws behind an opinion, the same ones always (of members, all)


class Player(pl.LightningModule):
    """The playing half of the agent; what learns is a subclass.

    Args:
        num_tasks: T.

    Attributes:
        twin: the networks.
        frames: environment frames seen in training, the axis of every curve.
        scores: what whole games of each task measure.
        task: number of the task that is being trained.
    """

    hparams: Any  # attribute access to the arguments of `__init__`
    twin: TwinActorCritic
    scores: Any  # a list of `GameMetrics`

    def __init__(self, num_tasks: int = 1) -> None:
        super().__init__()
        self.frames = self.task = 0
        self.scores = nn.ModuleList(GameMetrics() for _ in range(num_tasks))
        self._episode_draws: EpisodeDraws | None = None
        self._value_draws: Draws | None = None

    @torch.no_grad()
    def act(self, observations: Tensor, task: int | None = None) -> Tensor:
        """Greedy actions `[E]` int64 on the CPU, from the mean weights and the mean of both actors; in the task at
        hand, or another.
        """
        with self._precision():
            probs = self.twin.policy(to_device_async(observations, self.device), self.task if task is None else task)
        return probs.argmax(-1).cpu()

    @torch.no_grad()
    def act_by_draw(self, observations: Tensor, seeds: list[int]) -> Tensor:
        """Thompson sampling: actions `[E]` greedy by the posterior draw that each environment's seed names."""
        if self._episode_draws is None:
            self._episode_draws = EpisodeDraws(self.twin.posterior, self.twin.draw_shapes())
        with self._precision():
            draws = self._episode_draws(seeds, self.device)
            output = self.twin(to_device_async(observations, self.device)[:, None], draws, self.task)
        return output.q_values.mean(0)[:, 0].argmax(-1).cpu()

    @property
    def explores_by_draw(self) -> bool:
        """Whether episodes are played by posterior draws."""
        return self.hparams.exploration != "epsilon"

    @property
    def explores_at_random(self) -> bool:
        """Whether actions are replaced by random ones."""
        return self.hparams.exploration != "thompson"

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context() if self._trainer else contextlib.nullcontext()

    @torch.no_grad()
    def estimate_values(self, observations: Tensor, task: int = 0, measure: bool = False) -> ValueEstimate:
        """What both critics and all of the judging draws think of observations `[E, ...]`; `measure` counts it in the
        metrics of the validation under way.
        """
        with self._precision():
            output = self.twin(to_device_async(observations, self.device)[None], self._draws_for_values(), task)
        every = output.q_values.flatten(0, 1)
        if measure:
            self.scores[task].uncertainty.update(every)
        noise = self.twin.likelihood.std(output.raw).flatten(0, 1).mean(0)
        mean = every.mean(0)
        return ValueEstimate(*(x.cpu() for x in (mean, every.std(0), noise, mean.amax(-1))))

    def _draws_for_values(self) -> Draws:
        if self._value_draws is None:
            posterior, shapes = self.twin.posterior, self.twin.draw_shapes()
            if not shapes:
                self._value_draws = Draws(torch.zeros(1, 0), {})
            elif posterior.posterior == "members":
                self._value_draws = every_member(posterior, self.device)
            else:
                self._value_draws = draws_by_seed(posterior, shapes, list(range(VALUE_DRAWS)))
        self._value_draws = to_device(self._value_draws, self.device)  # Lightning moves a module after each run
        return self._value_draws

    # ------------------------------------------------------------------ games
    def validation_step(self, games: Games, batch_idx: int) -> None:
        """Play the games greedily, by the mean weights, and compare what was expected with what came."""
        task = games.task
        played = games.play(partial(self.act, task=task), partial(self.estimate_values, task=task, measure=True))
        numbers = [self.trainer.world_size * number + self.trainer.global_rank for number in range(len(played))]
        gamma = self.trainer.datamodule.gamma  # type: ignore[attr-defined]
        self.scores[task].update(played, numbers, games.estimate_every, gamma)

    test_step = validation_step  # on other seeds

    def predict_step(self, games: Games, batch_idx: int) -> list[Game]:
        """Play the games; a callback writes them as video."""
        return games.play(partial(self.act, task=games.task), partial(self.estimate_values, task=games.task))

    def on_validation_epoch_end(self) -> None:
        """Log the scores, under `val/` or `test/`; of several tasks below the name of each."""
        stage = "test" if self.trainer.testing else "val"
        fit = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if len(self.scores) == 1:
            scores = self.scores[0].finish(self.hparams.game, fit)
        else:
            names = self.trainer.datamodule.curriculum.names  # type: ignore[attr-defined]
            named = zip(names, self.scores, strict=True)  # a task without games was left out by a limit of batches
            each = {name: part.finish(name, fit) for name, part in named if part.returns.update_called}
            scores = {f"{name}/{key}": value for name, part in each.items() for key, value in part.items()}
            if all("human_normalised" in part for part in each.values()):
                scores["human_normalised"] = torch.stack([part["human_normalised"] for part in each.values()]).mean()
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items()})
        self.log("step", float(self.frames))

    on_test_epoch_end = on_validation_epoch_end
