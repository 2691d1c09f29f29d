"""The mean-field family."""

from bayes_rl.bayes import PosteriorSettings
from tests.bayes.posterior_case import PosteriorCase


class TestMeanField(PosteriorCase):
    settings = PosteriorSettings("mean_field", prior_precision=2.0, init_log_var=-2.0)
