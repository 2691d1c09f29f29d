"""Metrics of whole games of one task: scores, and calibration of the estimated values."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bayes_rl.evaluation.games import Game
from bayes_rl.evaluation.novel_states import KINDS, NovelStates
from bayes_rl.metrics.atari_scores import NEGATIVE_REWARDS, human_normalised_score
from bayes_rl.metrics.calibration import ReturnCalibration, ReturnFit, fit_returns, realised_returns
from bayes_rl.metrics.error_ranking import ErrorRanking
from bayes_rl.metrics.features import dormant_share, effective_rank
from bayes_rl.metrics.novelty import NoveltyAUROC
from bayes_rl.metrics.returns import EpisodeReturns
from bayes_rl.metrics.uncertainty import PolicyUncertainty
from bayes_rl.types import ValueEstimate, ValueEstimator
from bayes_rl.utils.ranks import gather_from_ranks, num_ranks, own_rank
from bayes_rl.utils.seeds import Domain, derived_seed, seed_sequence

SCORES: list[tuple[str, str]] = [
    ("games", "games"),
    ("games_cut", "cut when idle"),
    ("games_truncated", "at frame limit"),
    ("return_mean", "mean"),
    ("return_median", "median"),
    ("return_iqm", "IQM"),
    ("return_min", "min"),
    ("return_max", "max"),
    ("points_won", "points won"),
    ("points_lost", "points lost"),
    ("human_normalised", "human-normalised"),
    ("return_rmse", "error of values"),
    ("coverage_50", "in 50 % interval"),
    ("coverage_90", "in 90 % interval"),
    ("calibration_error", "calibration error"),
    ("epistemic_std", "std of Q"),
    ("greedy_disagreement", "draws disagree"),
    ("novelty_auroc_noise", "AUROC noise"),
    ("novelty_auroc_shuffled", "AUROC shuffled"),
    ("novelty_auroc_other_game", "AUROC other game"),
    ("novelty_auroc_unvisited", "AUROC unvisited"),
    ("error_correlation", "std-error rank r"),
    ("predictive_error_correlation", "with noise"),
    ("risk_coverage_area", "risk-coverage"),
]
"""Key and label of each metric that people read, in the order of the rows of the closing table."""

LABELS = dict(SCORES)
"""Key of a metric to its label."""

T = TypeVar("T")

NOVEL_STATES, STATES_AT_ONCE = 256, 64
"""Most novel states of each kind, and most of them that are evaluated at once."""


class Evidence(NamedTuple):
    """Values behind the metrics of uncertainty of one set of games, for pictures.

    Attributes:
        deviations: standard deviation of Q of the greedy action, by kind of state, `known` among them, each `[M]`.
        std: standard deviation of Q of the played action in the sampled states, `[M]`.
        error: |Q of the played action - realised return| in the same states, `[M]`.
        coverage: share of returns inside the raw central intervals at `LEVELS`, `[L]`.
    """

    deviations: dict[str, Tensor]
    std: Tensor
    error: Tensor
    coverage: Tensor


def greedy_std(q_mean: Tensor, q_std: Tensor) -> Tensor:
    """Return the standard deviation of Q of the action with the greatest mean, `[M]` of two `[M, A]`."""
    return q_std.gather(1, q_mean.argmax(1, keepdim=True))[:, 0].float()


def in_order_of_games(of_ranks: Sequence[Sequence[T]]) -> list[T]:
    """Return what each rank has of each of its games, in the order of the games, which ranks play in turn."""
    return [part for parts in itertools.zip_longest(*of_ranks) for part in parts if part is not None]


def _samples(played: Sequence[Game]) -> list[tuple[int, float, list[Tensor]]]:
    """Return seed, score and sampled states of the games of all ranks, in the order of the games."""
    of_rank = [
        (g.seed, g.score, [state for _, state in sorted(g.sample.observations.items())] if g.sample else [])
        for g in played
    ]
    return in_order_of_games(gather_from_ranks(of_rank))


class GameMetrics(nn.Module):
    """Metrics of the games of one task.

    Attributes:
        return_fit: bias, noise and scale of realised returns about their prediction (`ReturnFit`), `[3]`:
            fitted on the games of each validation, and used for the intervals of later games. NaN before the first
            validation.
        evidence: of the games before the last `finish`; None before it.
    """

    return_fit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.returns, self.calibration, self.uncertainty = EpisodeReturns(), ReturnCalibration(), PolicyUncertainty()
        self.raw_calibration = ReturnCalibration()  # of the likelihood's own noise, without `return_fit`
        self.novelty = NoveltyAUROC(*KINDS)
        self.error_ranking = ErrorRanking(derived_seed(Domain.RESAMPLED_GAMES, 0))
        self.predictive_ranking = ErrorRanking(derived_seed(Domain.RESAMPLED_GAMES, 0))  # by both uncertainties
        self.evidence: Evidence | None = None
        self.register_buffer("return_fit", torch.full((3,), float("nan")))
        self._residuals: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._features: dict[str, Tensor] = {}

    def update(self, played: Sequence[Game], numbers: Sequence[int], every: int, gamma: float) -> None:
        """Add finished games.

        Args:
            played: finished games.
            numbers: number of each game, unique over ranks.
            every: agent steps between two estimates of a game.
            gamma: discount per agent step.
        """
        device = self.return_fit.device
        rows = ((g.score, g.frames, g.cut, g.truncated, g.counted, g.points_lost) for g in played)
        columns = zip(*rows, strict=True)
        self.returns.update(*(torch.tensor(column, dtype=torch.float32, device=device) for column in columns))
        for number, game in zip(numbers, played, strict=True):
            if game.estimates:
                self._compare(game, number, every, gamma)

    def _compare(self, game: Game, number: int, every: int, gamma: float) -> None:
        rewards, discounts = torch.tensor(game.rewards), torch.tensor(game.discounts)
        realised = realised_returns(rewards, discounts, gamma, game.bootstrap)[::every]
        actions = torch.tensor(game.actions[::every])[:, None]
        q_mean, q_std, noise_std, _ = (torch.stack(part) for part in zip(*game.estimates, strict=True))
        mean, epistemic, noise = (x.gather(1, actions)[:, 0].float() for x in (q_mean, q_std, noise_std))
        games = torch.full((len(mean),), number)
        device = self.return_fit.device
        mean_there, epistemic_there, noise_there = mean.to(device), epistemic.to(device), noise.to(device)
        outcome = (realised.to(device), games.to(device))
        self.raw_calibration.update(mean_there, epistemic_there, noise_there, *outcome)
        bias, scale = 0.0, 1.0
        if not self.return_fit.isnan().any():
            bias, fitted_std, scale = self.return_fit.tolist()
            noise_there = torch.full_like(mean_there, fitted_std)
        self.calibration.update(mean_there, epistemic_there, noise_there, *outcome, bias, scale)
        self._residuals.append((mean, epistemic, realised, games))
        sampled = torch.tensor([] if game.sample is None else sorted(game.sample.observations), dtype=torch.int64)
        error = (mean - realised).abs()
        for ranking, std in ((self.error_ranking, epistemic), (self.predictive_ranking, epistemic.hypot(noise))):
            ranking.update(*(column[sampled].to(device) for column in (std, error, games)))
        self.novelty.update("known", greedy_std(q_mean, q_std)[sampled].to(device))

    def test_novelty(self, novel: NovelStates, played: Sequence[Game], estimator: ValueEstimator) -> None:
        """Estimate the uncertainty in novel states. All ranks make the same states, and each estimates its share.

        Args:
            novel: makes the states.
            played: finished games, with samples of their states.
            estimator: of values.
        """
        if not novel.kinds:
            return
        games = _samples(played)
        states = [state for _, _, kept in games for state in kept]
        if not states:
            return
        rng = np.random.default_rng(seed_sequence(Domain.NOVEL_STATES, games[0][0]))
        chosen = sorted(rng.permutation(len(states))[:NOVEL_STATES])
        mean_score = sum(score for _, score, _ in games) / len(games)
        made = novel.make(torch.stack([states[number] for number in chosen]), mean_score, rng)
        for kind, observations in made.items():
            share = observations[own_rank() :: num_ranks()]
            parts = [estimator(part) for part in share.split(STATES_AT_ONCE) if len(part)]
            std = torch.cat([torch.empty(0), *(greedy_std(part.q_mean, part.q_std) for part in parts)])
            self.novelty.update(kind, std.to(self.return_fit.device))

    def test_features(self, played: Sequence[Game], activity: Callable[[Tensor], tuple[list[Tensor], Tensor]]) -> None:
        """Measure dormant units and the effective rank of the features, on sampled states of all ranks' games.

        Args:
            played: finished games, with samples of their states.
            activity: of observations `[M, *observation_shape]`; see `TwinActorCritic.activity`.
        """
        states = [state for _, _, kept in _samples(played) for state in kept]
        if states:
            activities, features = activity(torch.stack(states))
            self._features = {"dormant_share": dormant_share(activities), "effective_rank": effective_rank(features)}

    def finish(self, game: str, fit: bool) -> dict[str, Tensor]:
        """Return all metrics of all ranks' games since the last call, and reset them.

        Args:
            game: short name, for human-normalised scores.
            fit: whether to fit `return_fit` to these games, for the intervals of other games.

        Returns:
            Scalars by name, without a prefix.
        """
        scores = self.returns.compute()
        if game not in NEGATIVE_REWARDS:  # all points are won: they are the score
            del scores["points_won"], scores["points_lost"]
        normalised = human_normalised_score(game, float(scores["return_counted"]))
        if normalised is not None:
            scores["human_normalised"] = torch.tensor(normalised)
        scores |= self.calibration.compute() | self.uncertainty.compute()
        raw = self.raw_calibration.compute()
        scores |= {f"raw_{key}": raw[key] for key in ("coverage_50", "coverage_90")}
        scores |= {key: raw[key] for key in ("crps", "log_score")}  # of the raw prediction as well
        scores |= self.novelty.compute() | self.error_ranking.compute()
        scores |= {f"predictive_{key}": value for key, value in self.predictive_ranking.compute().items()}
        with contextlib.ExitStack() as joined:  # `compute` joins the ranks for itself alone
            for part in (self.novelty, self.error_ranking, self.raw_calibration):
                joined.enter_context(part.sync_context())
            std, error, _ = self.error_ranking.states()
            self.evidence = Evidence(self.novelty.deviations(), std, error, self.raw_calibration.coverage())
        residuals = in_order_of_games(gather_from_ranks(self._residuals))
        if fit and residuals:
            mean, epistemic, realised, games = (torch.cat(part) for part in zip(*residuals, strict=True))
            self.return_fit.copy_(torch.tensor(fit_returns(mean, epistemic, realised, games)))
        scores |= {key: self._features.get(key, torch.tensor(torch.nan)) for key in ("dormant_share", "effective_rank")}
        self._features = {}
        scores |= {f"fitted_{key}": self.return_fit[i].clone() for i, key in enumerate(ReturnFit._fields)}
        self._residuals.clear()
        with torch.inference_mode(False):  # a later `fit` could not write to tensors of inference mode
            for metric in self.children():
                metric.reset()  # type: ignore[operator]
        return scores


def score_names(game: str, kinds: Sequence[str] = ()) -> list[str]:
    """Return the names of all metrics that a validation of one task logs.

    Args:
        game: short name, for human-normalised scores.
        kinds: of novel states.
    """
    metrics, number = GameMetrics(), torch.ones(1)
    estimate = ValueEstimate(number, number, number, number)
    metrics.update([Game(0, actions=[0], rewards=[0.0], discounts=[0.0], estimates=[estimate])], [0], 1, 0.0)
    metrics.uncertainty.update(torch.ones(2, 1, 2))
    for kind in kinds:
        metrics.novelty.update(kind, number)
    return list(metrics.finish(game, fit=False))
