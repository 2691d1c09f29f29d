"""How the agent plays: greedily, by posterior draws, and whole games with an opinion of every state."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from bayes_rl.calibration import ReturnFit, fit_returns, realised_returns
from bayes_rl.games import Game, Games
from bayes_rl.metrics import EpisodeReturns, human_normalised_score
from bayes_rl.networks import Twin
from bayes_rl.posterior import Draws, EpisodeDraws, draws_by_seed, every_member, to_device
from bayes_rl.types import Judgement
from bayes_rl.uncertainty import PolicyUncertainty, ReturnCalibration

JUDGE_DRAWS = 16  # posterior draws behind an opinion, the same ones always (of members, all)


class Player(pl.LightningModule):
    """The playing half of the agent; what learns is a subclass.

    Attributes:
        twin: the networks.
        frames: environment frames seen in training, the axis of every curve.
        return_fit: bias, noise and scale of realised returns about their prediction (`ReturnFit`), `[3]`: fitted on
            each validation's games, and used for the intervals stated on others. NaN before the first.
    """

    hparams: Any  # attribute access to the arguments of `__init__`
    twin: Twin
    return_fit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0
        self.returns, self.calibration, self.uncertainty = EpisodeReturns(), ReturnCalibration(), PolicyUncertainty()
        self.register_buffer("return_fit", torch.full((3,), float("nan"), dtype=torch.float64))
        self._episode_draws: EpisodeDraws | None = None
        self._judge_draws: Draws | None = None
        self._residuals: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Greedy actions `[E]` int64 on the CPU, from the mean weights and the mean of both actors."""
        with self._precision():
            output = self.twin(observations.to(self.device))
        return output.mean_action_probs().argmax(-1).cpu()

    @torch.no_grad()
    def act_by_draw(self, observations: Tensor, seeds: list[int]) -> Tensor:
        """Thompson sampling: actions `[E]` greedy by the posterior draw that each environment's seed names."""
        if self._episode_draws is None:
            self._episode_draws = EpisodeDraws(self.twin.posterior, self.twin.draw_shapes())
        with self._precision():
            output = self.twin(observations.to(self.device)[:, None], self._episode_draws(seeds, self.device))
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
    def judge(self, observations: Tensor, measure: bool = False) -> Judgement:
        """What both critics and all of the judging draws think of observations `[E, ...]`; `measure` counts it in the
        metrics of the validation under way.
        """
        with self._precision():
            output = self.twin(observations.to(self.device)[None], self._judging())
        every = output.q_values.flatten(0, 1)
        if measure:
            self.uncertainty.update(every)
        noise = self.twin.likelihood.std(output.raw).flatten(0, 1).mean(0)
        mean = every.mean(0)
        return Judgement(*(x.cpu() for x in (mean, every.std(0), noise, mean.amax(-1))))

    def _judging(self) -> Draws:
        if self._judge_draws is None:
            posterior, shapes = self.twin.posterior, self.twin.draw_shapes()
            if not shapes:
                self._judge_draws = Draws(torch.zeros(1, 0), {})
            elif posterior.posterior == "members":
                self._judge_draws = every_member(posterior, self.device)
            else:
                self._judge_draws = draws_by_seed(posterior, shapes, list(range(JUDGE_DRAWS)))
        self._judge_draws = to_device(self._judge_draws, self.device)  # Lightning moves a module after each run
        return self._judge_draws

    # ------------------------------------------------------------------ games
    def validation_step(self, games: Games, batch_idx: int) -> None:
        """Play the games greedily, by the mean weights, and compare what was expected with what came."""
        played = games.play(self.act, partial(self.judge, measure=True))
        columns = zip(*((g.score, float(g.frames), float(g.cut)) for g in played), strict=True)
        self.returns.update(*(torch.tensor(column, device=self.device) for column in columns))
        for number, game in enumerate(played):
            self._compare(game, number * self.trainer.world_size + self.trainer.global_rank, games.judge_every)

    test_step = validation_step  # on other seeds

    def predict_step(self, games: Games, batch_idx: int) -> list[Game]:
        """Play the games; a callback writes them as video."""
        return games.play(self.act, self.judge)

    def _compare(self, game: Game, number: int, every: int) -> None:
        if not game.judgements:
            return
        gamma = self.trainer.datamodule.gamma  # type: ignore[attr-defined]
        realised = realised_returns(torch.tensor(game.rewards), torch.tensor(game.discounts), gamma, game.bootstrap)[
            ::every
        ]
        taken = torch.tensor(game.actions[::every])[:, None]
        q_mean, q_std, noise_std, _ = (torch.stack(part) for part in zip(*game.judgements, strict=True))
        mean, epistemic, noise = (x.gather(1, taken)[:, 0].float() for x in (q_mean, q_std, noise_std))
        bias, scale = 0.0, 1.0
        if not self.return_fit.isnan().any():
            bias, fitted, scale = self.return_fit.tolist()
            noise = torch.full_like(mean, fitted)
        games = torch.full((len(mean),), number)
        vectors = [x.to(self.device) for x in (mean, epistemic, noise, realised, games)]
        self.calibration.update(*vectors, bias=bias, scale=scale)
        self._residuals.append((mean, epistemic, realised, games))

    def on_validation_epoch_end(self) -> None:
        """Log the scores, under `val/` or `test/`."""
        stage = "test" if self.trainer.testing else "val"
        scores = self.returns.compute()
        normalised = human_normalised_score(self.hparams.game, float(scores["return_mean"]))
        if normalised is not None:
            scores["human_normalised"] = torch.tensor(normalised)
        scores |= self.calibration.compute() | self.uncertainty.compute()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking and self._residuals:
            mean, epistemic, realised, games = (torch.cat(part) for part in zip(*self._residuals, strict=True))
            self.return_fit.copy_(torch.tensor(fit_returns(mean, epistemic, realised, games)))
        scores |= {f"fitted_{key}": self.return_fit[i] for i, key in enumerate(ReturnFit._fields)}
        self._residuals.clear()
        with torch.inference_mode(False):  # else a later `fit` could not write to what `validate` or `test` left
            for metric in (self.returns, self.calibration, self.uncertainty):
                metric.reset()
        self.log_dict({f"{stage}/{key}": value for key, value in scores.items()})
        self.log("step", float(self.frames))

    on_test_epoch_end = on_validation_epoch_end
