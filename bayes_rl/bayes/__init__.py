"""Variational Bayesian layers, usable without the rest of the package.

```python
network = nn.Sequential(BayesLinear(784, 256), nn.ReLU(), BayesLinear(256, 10))
loss = F.cross_entropy(network(x), y) + kl_divergence(network) / num_data
```
"""

from bayes_rl.bayes.draws import Draws, EpisodeDraws, WeightMode, draws_by_seed
from bayes_rl.bayes.kl import bayesian_layers, kl_divergence
from bayes_rl.bayes.layers import BayesConv2d, BayesLayer, BayesLinear
from bayes_rl.bayes.likelihoods import (
    LIKELIHOODS,
    GaussianLikelihood,
    HLGaussLikelihood,
    LearnedGaussianLikelihood,
    Likelihood,
    LikelihoodSettings,
    ReturnGaussianLikelihood,
    TwoHotLikelihood,
    make_likelihood,
    register_likelihood,
)
from bayes_rl.bayes.parameters import PosteriorParameters
from bayes_rl.bayes.posteriors import (
    POSTERIORS,
    KLTerms,
    LowRank,
    MeanField,
    Mixture,
    PosteriorFamily,
    make_family,
    register_posterior,
)
from bayes_rl.bayes.priors import PRIORS, Prior
from bayes_rl.bayes.settings import PosteriorSettings

__all__ = [
    "LIKELIHOODS",
    "POSTERIORS",
    "PRIORS",
    "BayesConv2d",
    "BayesLayer",
    "BayesLinear",
    "Draws",
    "EpisodeDraws",
    "GaussianLikelihood",
    "HLGaussLikelihood",
    "KLTerms",
    "LearnedGaussianLikelihood",
    "Likelihood",
    "LikelihoodSettings",
    "LowRank",
    "MeanField",
    "Mixture",
    "PosteriorFamily",
    "PosteriorParameters",
    "PosteriorSettings",
    "Prior",
    "ReturnGaussianLikelihood",
    "TwoHotLikelihood",
    "WeightMode",
    "bayesian_layers",
    "draws_by_seed",
    "kl_divergence",
    "make_family",
    "make_likelihood",
    "register_likelihood",
    "register_posterior",
]
