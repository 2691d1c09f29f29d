"""The low-rank family."""

from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from bayes_rl.bayes import BayesLayer, PosteriorSettings
from tests.bayes.posterior_case import PosteriorCase


class TestLowRank(PosteriorCase):
    settings = PosteriorSettings("low_rank", 2, prior_precision=2.0, init_log_var=-2.0)

    def log_q(self, layer: BayesLayer, weight: Tensor, index: Tensor) -> Tensor:
        factor = layer.get_parameter("weight_factor").flatten(1).T
        variance = layer.log_var().exp().flatten()
        return LowRankMultivariateNormal(layer.weight_mu.flatten(), factor, variance).log_prob(weight.flatten(1))
