"""Continual learning: methods that protect earlier tasks while a later task is learned."""

from bayes_rl.continual.base import METHODS, ConsolidationMethod, NoConsolidation, TaskSamples, make_consolidation
from bayes_rl.continual.ewc import EWC, OnlineEWC, QuadraticPenalties
from bayes_rl.continual.fisher import fisher_diagonal
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.continual.vcl import VariationalContinualLearning

__all__ = [
    "EWC",
    "METHODS",
    "ConsolidationMethod",
    "ConsolidationSettings",
    "NoConsolidation",
    "OnlineEWC",
    "QuadraticPenalties",
    "TaskSamples",
    "VariationalContinualLearning",
    "fisher_diagonal",
    "make_consolidation",
]
