"""Lesson: from a plain DQN to a Bayesian agent, as a difference of settings."""

# %% [markdown]
# A deep Q-network learns one number for each action, and explores by random actions. A Bayesian agent also learns how
# unsure it is of each number, and explores by this uncertainty. This lesson writes the settings of both, shows their
# difference, and trains both.

# %%
import difflib
import os
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from bayes_rl import ReplayDataModule, VariationalActorCritic

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "10"))

# %% [markdown]
# ## The plain agent
#
# These settings are those of a DQN with two critics: Q-learning from a replay with a slowly moving target network
# (`ema`), the value of the best action as the value of the next state (`greedy`), a squared error (a Gaussian
# likelihood of fixed noise), and random actions (`epsilon`). No weight has a distribution. The package always has
# actors beside the critics. Here the actors imitate the best action of the critics and choose the actions that are
# played, and no target depends on the actors.

# %%
PLAIN: dict[str, Any] = {
    "network": {"encoder": "mlp", "hidden_dim": 64, "bayesian": "none"},
    "likelihood": {"family": "gaussian", "noise_std": 1.0},
    "objective": {"bootstrap": "greedy", "target": "ema", "tau": 0.01, "policy_temperature": 0.1},
    "exploration": "epsilon",
}

# %% [markdown]
# ## The Bayesian agent
#
# Five settings change. A Gaussian process stands beside the plain networks and states the uncertainty of Q;
# `prior_function_scale` is the uncertainty where nothing is known, in units of the noise of a return. The noise is
# learned for each state and action. Each episode acts by one draw of the process, beside random actions.

# %%
BAYESIAN: dict[str, Any] = {
    "network": {**PLAIN["network"], "bayesian": "gaussian_process", "prior_function_scale": 0.5, "length_scale": 3.0},
    "likelihood": {"family": "return_gaussian", "noise_std": 1.0},
    "objective": PLAIN["objective"],
    "exploration": "both",
}


def lines(settings: dict[str, Any]) -> list[str]:
    """Return settings as the lines of a configuration file."""
    return yaml.safe_dump({"model": settings}, sort_keys=False).splitlines()


print("\n".join(difflib.unified_diff(lines(PLAIN), lines(BAYESIAN), "plain", "bayesian", n=10, lineterm="")))

# %% [markdown]
# ## Training
#
# Both agents have the same data, seeds and number of frames.


# %%
def train(settings: dict[str, Any]) -> tuple[VariationalActorCritic, float]:
    """Return an agent after training, and the mean score of its test games."""
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        env="CartPole-v1",
        num_envs=8,
        frame_stack=1,
        frames_per_epoch=2000,
        rules={"frame_skip": 1, "sticky_actions": 0, "max_episode_frames": 200},
        replay={"capacity": 20_000, "min_size": 500, "life_loss": "none"},
        epsilon={"end": 0.02, "decay_frames": 5000},
        evaluation={"games": 10},
        seed=1,
    )
    agent = VariationalActorCritic(**settings, **data.agent_arguments())
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent, datamodule=data)
    return agent, trainer.test(agent, datamodule=data, verbose=False)[0]["test/return_mean"]


# %% [markdown]
# ## The effect of the difference
#
# The table has the score, and the standard deviation of Q in two states. Each game begins near the first state. In the
# second the cart is 50 units to the right of the middle, where no game comes. The spread of the plain agent is the
# difference between its two critics. Nothing makes the critics differ where they have no data. The spread of the
# Bayesian agent is greater in the state that was never seen.
#
# CartPole is too easy for the score to show a gain: random actions suffice to explore it. Random actions do not suffice
# in the lesson on [sparse rewards](sparse_rewards.md).

# %%
states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
for name, settings in (("plain", PLAIN), ("bayesian", BAYESIAN)):
    agent, score = train(settings)
    usual, never = agent.estimate_values(states).q_std.max(1).values.tolist()
    print(f"{name:>8}: score {score:.1f}, spread of Q {usual:.2f} in a usual state, {never:.2f} in one never seen")
assert never > usual

# %% [markdown]
# ## On the command line
#
# The difference is four options, because `length_scale` has no effect without a process. The configuration `cartpole`
# has the Bayesian settings. Both commands take the value of the best action as the value of the next state:
#
# ```bash
# bayes-rl fit --config cartpole --name bayesian --model.objective.bootstrap greedy
# bayes-rl fit --config cartpole --name plain --model.network.bayesian none --model.network.prior_function_scale 0 \
#     --model.likelihood.family gaussian --model.exploration epsilon --model.objective.bootstrap greedy
# ```
#
# ## Further
#
# [Distributions over weights](../concepts/posteriors.md) has the other families: distributions over the weights of the
# output layers, of the trunk, or of every layer. [Read the uncertainty](reading_uncertainty.md) tests whether the
# uncertainty is right.
