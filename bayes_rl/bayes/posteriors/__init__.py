"""Families of distributions over weights, one file each."""

from bayes_rl.bayes.posteriors.base import POSTERIORS, KLTerms, PosteriorFamily, make_family, register_posterior
from bayes_rl.bayes.posteriors.mean_field import MeanField

# isort: split
# Registration in this order is the order in which error messages list the families.
from bayes_rl.bayes.posteriors.low_rank import LowRank
from bayes_rl.bayes.posteriors.mixture import Mixture

__all__ = [
    "POSTERIORS",
    "KLTerms",
    "LowRank",
    "MeanField",
    "Mixture",
    "PosteriorFamily",
    "make_family",
    "register_posterior",
]
