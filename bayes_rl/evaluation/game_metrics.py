"""What whole games of one task say about an agent: how well it played, and whether that was what it expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayes_rl.evaluation.games import Game
from bayes_rl.metrics.atari_scores import human_normalised_score
from bayes_rl.metrics.calibration import ReturnFit, fit_returns, realised_returns
from bayes_rl.metrics.returns import EpisodeReturns
from bayes_rl.metrics.uncertainty import PolicyUncertainty, ReturnCalibration


class GameMetrics(nn.Module):
    """Metrics of the games of one task.

    Attributes:
        return_fit: bias, noise and scale of realised returns about their prediction (`ReturnFit`), `[3]`:
            fitted on each validation's games, and used for the intervals stated on others. NaN before the first.
    """

    return_fit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.returns, self.calibration, self.uncertainty = EpisodeReturns(), ReturnCalibration(), PolicyUncertainty()
        self.register_buffer("return_fit", torch.full((3,), float("nan")))
        self._residuals: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def update(self, played: Sequence[Game], numbers: Sequence[int], every: int, gamma: float) -> None:
        """Add games.

        Args:
            played: the games.
            numbers: of each, unique over ranks.
            every: steps between two judgements.
            gamma: discount per agent step.
        """
        device = self.return_fit.device
        columns = zip(*((g.score, float(g.frames), float(g.cut)) for g in played), strict=True)
        self.returns.update(*(torch.tensor(column, device=device) for column in columns))
        for number, game in zip(numbers, played, strict=True):
            if game.estimates:
                self._compare(game, number, every, gamma)

    def _compare(self, game: Game, number: int, every: int, gamma: float) -> None:
        rewards, discounts = torch.tensor(game.rewards), torch.tensor(game.discounts)
        realised = realised_returns(rewards, discounts, gamma, game.bootstrap)[::every]
        taken = torch.tensor(game.actions[::every])[:, None]
        q_mean, q_std, noise_std, _ = (torch.stack(part) for part in zip(*game.estimates, strict=True))
        mean, epistemic, noise = (x.gather(1, taken)[:, 0].float() for x in (q_mean, q_std, noise_std))
        bias, scale = 0.0, 1.0
        if not self.return_fit.isnan().any():
            bias, fitted, scale = self.return_fit.tolist()
            noise = torch.full_like(mean, fitted)
        games = torch.full((len(mean),), number)
        here = [x.to(self.return_fit.device) for x in (mean, epistemic, noise, realised, games)]
        self.calibration.update(here[0], here[1], here[2], here[3], here[4], bias, scale)
        self._residuals.append((mean, epistemic, realised, games))

    def finish(self, game: str, fit: bool) -> dict[str, Tensor]:
        """Everything measured since the last time; `fit` the intervals for other games to it.

        Args:
            game: short name, for human-normalised scores.
            fit: whether to.
        """
        scores = self.returns.compute()
        normalised = human_normalised_score(game, float(scores["return_mean"]))
        if normalised is not None:
            scores["human_normalised"] = torch.tensor(normalised)
        scores |= self.calibration.compute() | self.uncertainty.compute()
        if fit and self._residuals:
            mean, epistemic, realised, games = (torch.cat(part) for part in zip(*self._residuals, strict=True))
            self.return_fit.copy_(torch.tensor(fit_returns(mean, epistemic, realised, games)))
        scores |= {f"fitted_{key}": self.return_fit[i].clone() for i, key in enumerate(ReturnFit._fields)}
        self._residuals.clear()
        with torch.inference_mode(False):  # else a later `fit` could not write to what `validate` or `test` left
            for metric in (self.returns, self.calibration, self.uncertainty):
                metric.reset()
        return scores
