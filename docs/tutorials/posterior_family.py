"""Lesson: a posterior family in thirty lines, from its definition to an agent that explores by it."""

# %% [markdown]
# A posterior family says how the weights of a layer are distributed. This lesson writes a family whose weights have
# one standard deviation for each *output* of a layer, in place of one for each weight: w_ij ~ N(mu_ij, s_i^2). The
# family has few parameters, and its divergence from the prior has a closed form.

# %%
import os

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl import ReplayDataModule, VariationalActorCritic
from bayes_rl.bayes import (
    BayesLayer,
    BayesLinear,
    KLTerms,
    PosteriorFamily,
    PosteriorParameters,
    PosteriorSettings,
    register_posterior,
)
from bayes_rl.bayes.posteriors.base import add_gaussian_parameters

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "5"))

# %% [markdown]
# ## The family
#
# `add_parameters` creates what a layer learns, and `raw_log_var` returns log s^2 of every weight. `weights` returns
# what a draw depends on beside its noise: here nothing but the means. `outputs_without_noise` is the layer at these
# weights; the base class adds the noise to the outputs (local reparameterisation). `kl_terms` returns the divergence
# from the prior, in nats.


# %%
@register_posterior("by_output")
class ByOutput(PosteriorFamily):
    """Gaussian N(mu, s^2) for each weight, with one s for each output of a layer."""

    ignored_settings = ("size", "num_draws")

    def add_parameters(self, layer: BayesLayer) -> None:
        """Create means, biases and one log s^2 for each output."""
        add_gaussian_parameters(layer, self.settings)
        first = layer.weight_log_var.detach().flatten(1)[:, 0]
        layer.weight_log_var = nn.Parameter(first.view(-1, *[1] * (len(layer.shape) - 1)))

    def raw_log_var(self, layer: BayesLayer) -> Tensor:
        """Return log s^2 of every weight."""
        return layer.weight_log_var.expand(layer.shape)

    def weights(self, parameters: PosteriorParameters, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means."""
        return parameters.mean[None], parameters.bias[None]

    def outputs_without_noise(self, layer: BayesLayer, x: Tensor, parameters: PosteriorParameters) -> Tensor:
        """Return the outputs by the means."""
        return layer.product(x, parameters.mean, parameters.bias)

    def kl_terms(self, parameters: PosteriorParameters) -> KLTerms:
        """Return the divergence of independent Gaussians."""
        return KLTerms((parameters.prior or self.prior).kl_divergence(parameters))


# %% [markdown]
# ## A check
#
# The outputs of a layer for one input x have the variance sum_j x_j^2 s_i^2. With all s equal to 0.5 and |x|^2 = 4
# the standard deviation is 1. Ten thousand samples agree within a few per cent.

# %%
torch.manual_seed(0)
layer = BayesLinear(4, 3, PosteriorSettings(family="by_output"))
with torch.no_grad():
    layer.weight_log_var.fill_(2 * torch.tensor(0.5).log())
samples = layer(torch.ones(10_000, 4))
print("standard deviation of the outputs:", [f"{value:.2f}" for value in samples.std(0)])
assert torch.allclose(samples.std(0), torch.ones(3), atol=0.05)

# %% [markdown]
# ## An agent
#
# The name of the family is the value of `posterior.family`. With `exploration="thompson"` each episode acts by one
# draw.

# %%
data = ReplayDataModule(
    env="CartPole-v1",
    num_envs=4,
    frame_stack=1,
    frames_per_epoch=2000,
    rules={"frame_skip": 1, "sticky_actions": 0},
    replay={"capacity": 10_000, "min_size": 500, "life_loss": "none"},
    evaluation={"games": 5},
)
agent = VariationalActorCritic(
    network={"encoder": "mlp", "hidden_dim": 64},
    posterior={"family": "by_output", "init_log_var": -6.0},
    exploration="thompson",
    **data.agent_arguments(),
)
trainer = pl.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(agent, datamodule=data)

# %% [markdown]
# The agent has learned one standard deviation for each output of its heads. `val/epistemic_std` is the standard
# deviation of Q over draws and critics, in return units.

# %%
for name, module in agent.twin.named_modules():
    if isinstance(module, BayesLinear):
        stds = (0.5 * module.weight_log_var).exp().flatten().tolist()
        print(name, [f"{value:.3f}" for value in stds])
for tag in ("val/return_mean", "val/epistemic_std", "train/kl"):
    print(f"{tag}: {float(trainer.callback_metrics[tag]):.2f}")

# %% [markdown]
# ## Further
#
# On the command line, write the class to a module of yours, `my_module.py` in the current folder, and type
#
# ```bash
# bayes-rl fit --config cartpole --import_modules my_module --model.network.bayesian heads \
#     --model.network.prior_function_scale 0 --model.posterior.family by_output
# ```
#
# [Add a posterior family](../how-to/add_a_posterior.md) names the tests that a family should pass, and [distributions
# over weights](../concepts/posteriors.md) the families of the package.
