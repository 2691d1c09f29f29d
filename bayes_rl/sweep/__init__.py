"""Sweeps on Ray: searches of options, and grids of fits. Nothing is imported from Ray before a sweep begins."""

from bayes_rl.sweep.settings import Sweep
from bayes_rl.sweep.space import Space
from bayes_rl.sweep.trial import Trial

__all__ = ["Space", "Sweep", "Trial"]
