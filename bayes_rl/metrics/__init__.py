"""Metrics of returns, calibration, uncertainty and continual learning."""

from bayes_rl.metrics.atari_scores import human_normalised_score
from bayes_rl.metrics.calibration import (
    ReturnCalibration,
    ReturnFit,
    conformal_scale,
    fit_return_noise,
    fit_returns,
    gaussian_intervals,
    gaussian_quantiles,
    interval_coverage,
    realised_returns,
)
from bayes_rl.metrics.continual import (
    AveragePerformance,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    IsolatedForgetting,
    ScoreMatrix,
    ZeroShotTransfer,
    area_under_curve,
    backward_transfer,
    forgetting,
    forward_transfer,
    isolated_forgetting,
    normalise,
    zero_shot_transfer,
)
from bayes_rl.metrics.returns import EpisodeReturns, interquartile_mean
from bayes_rl.metrics.uncertainty import PolicyUncertainty

__all__ = [
    "AveragePerformance",
    "BackwardTransfer",
    "EpisodeReturns",
    "Forgetting",
    "ForwardTransfer",
    "IsolatedForgetting",
    "PolicyUncertainty",
    "ReturnCalibration",
    "ReturnFit",
    "ScoreMatrix",
    "ZeroShotTransfer",
    "area_under_curve",
    "backward_transfer",
    "conformal_scale",
    "fit_return_noise",
    "fit_returns",
    "forgetting",
    "forward_transfer",
    "gaussian_intervals",
    "gaussian_quantiles",
    "human_normalised_score",
    "interquartile_mean",
    "interval_coverage",
    "isolated_forgetting",
    "normalise",
    "realised_returns",
    "zero_shot_transfer",
]
