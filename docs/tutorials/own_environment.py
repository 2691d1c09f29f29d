"""Lesson: your own environment, from its class to a trained agent."""

# %% [markdown]
# Any environment of Gymnasium with discrete actions can be learned, and needs no file of the package. This lesson
# writes one, checks it, trains an agent and asks the agent for actions and values.

# %%
import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytorch_lightning as pl
import torch
from gymnasium.utils.env_checker import check_env

from bayes_rl import ReplayDataModule, VariationalActorCritic

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "10"))

# %% [markdown]
# ## The environment
#
# A heater is off or on. `reset` takes a seed and passes the seed on, so that an episode is a function of its seed and
# its actions; a run can only be repeated and resumed exactly if this holds. Observations near 1 are easy to learn from,
# so the temperatures are scaled.


# %%
class Thermostat(gym.Env):
    """Room of 100 minutes; a minute that ends between 19 and 21 degrees gives a reward of 1.

    An observation has the temperatures of the room and of the air outside, in tens of degrees from 20.
    """

    observation_space = gym.spaces.Box(-5, 5, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw both temperatures."""
        super().reset(seed=seed)
        self.room, self.outside = self.np_random.uniform(10, 30), self.np_random.uniform(-5, 15)
        self.minute = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Heat by 1.5 degrees if the action is 1, and lose heat to the air outside."""
        self.room += 1.5 * int(action) - 0.05 * (self.room - self.outside)
        self.minute += 1
        return self.observe(), float(19 <= self.room <= 21), False, self.minute == 100, {}

    def observe(self) -> np.ndarray:
        """Return the observation."""
        return np.array([self.room - 20, self.outside - 20], np.float32) / 10


gym.register("Thermostat-v0", Thermostat)

# %% [markdown]
# ## A check
#
# Gymnasium's own checker finds observations outside of their space, wrong types and games that a seed does not repeat.

# %%
check_env(gym.make("Thermostat-v0").unwrapped)
print("the environment passes Gymnasium's checks")

# %% [markdown]
# ## Training
#
# An episode ends by its time, not by an event. The environment returns `truncated` then, and the value of the last
# state completes the return. `reading` says how the observation is understood. A frame is a step here, because
# `frame_skip` is 1.

# %%
data = ReplayDataModule(
    env="Thermostat-v0",
    num_envs=8,
    frame_stack=1,
    frames_per_epoch=2000,
    rules={"frame_skip": 1, "sticky_actions": 0},
    replay={"capacity": 20_000, "min_size": 500, "life_loss": "none", "n_step": 3, "gamma": 0.95},
    epsilon={"decay_frames": 5000},
    evaluation={"games": 5},
)
print("an observation is read as", data.reading)
agent = VariationalActorCritic(
    network={"encoder": "mlp", "hidden_dim": 64, "bayesian": "gaussian_process", "prior_function_scale": 1.0},
    optimizer={"actor_lr": 1e-3, "critic_lr": 1e-3},
    exploration="both",
    **data.agent_arguments(),
)
trainer = pl.Trainer(
    max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)
trainer.fit(agent, datamodule=data)
scores = trainer.test(agent, datamodule=data, verbose=False)[0]
print(f"minutes between 19 and 21 degrees, of 100: {scores['test/return_mean']:.1f}")

# %% [markdown]
# ## What has the agent learned?
#
# The table has the action of a cold and of a warm room, and Q of both actions with its standard deviation. At a
# discount of 0.95 a minute no return exceeds 1 / (1 - 0.95) = 20.

# %%
rooms = torch.tensor([[-0.8, -1.0], [0.8, -1.0]])  # 12 and 28 degrees, with 10 outside
estimate = agent.estimate_values(rooms)
for name, action, values, stds in zip(("cold", "warm"), agent.act(rooms), estimate.q_mean, estimate.q_std, strict=True):
    pairs = ", ".join(f"{mean:.2f} +- {std:.2f}" for mean, std in zip(values, stds, strict=True))
    print(f"{name}: heater {('off', 'on')[action]}; Q of off and on {pairs}")

# %% [markdown]
# ## On the command line
#
# Write the class and `gym.register` to a module of yours, `my_envs.py` in the current folder, and name the module in
# front of the id:
#
# ```bash
# bayes-rl fit --config cartpole --data.env my_envs:Thermostat-v0 --name thermostat
# bayes-rl validate --ckpt_path last --name thermostat
# ```
#
# ## Further
#
# [Your own environment](../how-to/add_an_environment.md) has the rules for images, several channels and constructor
# arguments. An environment with a vectorised interface of its own is a *kind*:
# [`my_environment.py`](../examples/my_environment.py) is a complete one.
