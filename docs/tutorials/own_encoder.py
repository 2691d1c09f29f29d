"""Lesson: your own encoder, whose layers become Bayesian by an option."""

# %% [markdown]
# An encoder maps observations to features. Actors and critics are output layers on these features. This lesson writes
# an encoder with a residual block, checks it, and trains it with plain and with Bayesian layers.

# %%
import math
import os

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from bayes_rl import ReplayDataModule, VariationalActorCritic
from bayes_rl.bayes import PosteriorSettings, bayesian_layers
from bayes_rl.networks import (
    BayesianModule,
    Encoder,
    LayerFactory,
    PlainEncoder,
    apply,
    build_encoder,
    register_encoder,
)

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "5"))

# %% [markdown]
# ## The encoder
#
# The function under the decorator takes the shape of an observation, the number of features, and a factory of layers.
# Layers of the factory are Bayesian where `network.bayesian` asks for it. `PlainEncoder` adds a last layer to a stack.
#
# A Bayesian layer can be evaluated at its mean, at a fresh sample, or at draws that stay. The argument `weight_mode`
# says which. A module with a `forward` of its own passes the mode on by `apply`.


# %%
class Residual(BayesianModule):
    """Block x + linear(relu(x))."""

    def __init__(self, width: int, layers: LayerFactory) -> None:
        super().__init__()
        self.rectifier, self.linear = layers.rectifier(inplace=False), layers.linear(width, width)

    def forward(self, x: Tensor, weight_mode: object = "mean") -> Tensor:
        """Return the features."""
        return x + apply(self.linear, self.rectifier(x), weight_mode)


@register_encoder("residual", needs_images=False)
def residual(shape: tuple[int, ...], hidden_dim: int, layers: LayerFactory) -> Encoder:
    """Return an encoder of a linear layer and a residual block."""
    stack = nn.Sequential(nn.Flatten(), layers.linear(math.prod(shape), hidden_dim), Residual(hidden_dim, layers))
    return PlainEncoder(stack, hidden_dim, hidden_dim, layers)


# %% [markdown]
# ## A check
#
# The encoder has three layers: two in the stack, and the last one of `PlainEncoder`. The option `heads` leaves them
# plain, because the output layers are no part of the encoder. A mean is the same each time, a sample is not.

# %%
torch.manual_seed(0)
x = torch.randn(5, 4)
for bayesian, expected in (("none", 0), ("heads", 0), ("trunk", 3), ("all", 3)):
    encoder = build_encoder("residual", (4,), 16, LayerFactory(PosteriorSettings(init_log_var=-4.0), bayesian))
    print(f"bayesian {bayesian}: {len(bayesian_layers(encoder))} Bayesian layers, features {list(encoder(x).shape)}")
    assert len(bayesian_layers(encoder)) == expected
assert torch.equal(encoder(x, "mean"), encoder(x, "mean"))
assert not torch.equal(encoder(x, "sample"), encoder(x, "sample"))

# %% [markdown]
# ## Two agents
#
# The name is the value of `network.encoder`. Both agents have the same data and the same seed. One has no distribution
# over any weight, and explores by random actions. The other has a distribution over every weight, and plays each
# episode by one draw of all weights (Thompson sampling).

# %%
for bayesian, exploration in (("none", "epsilon"), ("all", "thompson")):
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        env="CartPole-v1",
        num_envs=4,
        frame_stack=1,
        frames_per_epoch=1000,
        rules={"frame_skip": 1, "sticky_actions": 0},
        replay={"capacity": 10_000, "min_size": 500, "life_loss": "none"},
        evaluation={"games": 5},
        seed=1,
    )
    agent = VariationalActorCritic(
        network={"encoder": "residual", "hidden_dim": 32, "bayesian": bayesian},
        exploration=exploration,
        **data.agent_arguments(),
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent, datamodule=data)
    values = {tag: float(trainer.callback_metrics[f"val/{tag}"]) for tag in ("return_mean", "epistemic_std")}
    print(f"bayesian {bayesian}: score {values['return_mean']:.1f}, spread of Q {values['epistemic_std']:.3f}")

# %% [markdown]
# The spread of the plain agent is the difference between its two critics alone.
#
# ## Further
#
# [`my_encoder.py`](../examples/my_encoder.py) is a complete file with an encoder for the command line: `bayes-rl fit
# --config cartpole --import_modules my_encoder --model.network.encoder two_layers`. [Add an
# encoder](../how-to/add_an_encoder.md) names the shared tests that an encoder should pass.
