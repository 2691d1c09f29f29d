"""The mixture family."""

from bayes_rl.bayes import PosteriorSettings
from tests.bayes.posterior_case import PosteriorCase


class TestMixture(PosteriorCase):
    """Its divergence is that of member and weights jointly, so the density given the member is the right one."""

    settings = PosteriorSettings("members", 3, prior_precision=2.0, init_log_var=-2.0)
