"""Lesson: read the uncertainty of an agent in numbers, in intervals, in the picture and in the video."""

# %% [markdown]
# An agent states two uncertainties of a return. *Epistemic* is the standard deviation of Q over posterior draws and
# critics: more data would remove it. The *noise* is the standard deviation of returns around Q, which stays. This
# lesson trains a small agent and looks at both.

# %%
import os
from pathlib import Path

import pytorch_lightning as pl
import torch

from bayes_rl import ReplayDataModule, VariationalActorCritic
from bayes_rl.metrics.calibration import realised_returns
from bayes_rl.reporting.uncertainty_figure import draw_uncertainty
from bayes_rl.training.callbacks.video_writer import record_game

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "10"))

data = ReplayDataModule(
    env="CartPole-v1",
    num_envs=8,
    frame_stack=1,
    frames_per_epoch=2000,
    rules={"frame_skip": 1, "sticky_actions": 0, "max_episode_frames": 200},
    replay={"capacity": 20_000, "min_size": 500, "life_loss": "none"},
    evaluation={"games": 10},
)
agent = VariationalActorCritic(
    network={
        "encoder": "mlp",
        "hidden_dim": 64,
        "bayesian": "gaussian_process",
        "prior_function_scale": 0.5,
        "random_features": 256,
        "length_scale": 3,
    },
    likelihood={"family": "return_gaussian"},
    exploration="both",
    **data.agent_arguments(),
)
trainer = pl.Trainer(
    max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)
trainer.fit(agent, datamodule=data)

# %% [markdown]
# ## Numbers
#
# `estimate_values` returns means and both uncertainties for every action. The first state below is one that each game
# begins near. The second has the cart 50 units to the right of the middle, where no game comes: the epistemic
# uncertainty is greater there.

# %%
states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
estimate = agent.estimate_values(states)
for place, mean, epistemic, noise in zip(
    ("usual", "never seen"), estimate.q_mean, estimate.q_std, estimate.noise_std, strict=True
):
    best = mean.argmax()
    print(f"{place:>10}: Q {mean[best]:.2f}, epistemic {epistemic[best]:.2f}, noise {noise[best]:.2f}")
assert estimate.q_std[1].max() > estimate.q_std[0].max()

# %% [markdown]
# ## Intervals
#
# A central 90 % interval of a return is Q +- 1.64 sqrt(epistemic^2 + noise^2). The test games tell whether the
# intervals hold what they promise: `test/raw_coverage_90` is the share of returns inside. `test/coverage_90` is the
# same with a bias, a noise and a factor that were fitted on the validation games.

# %%
scores = trainer.test(agent, datamodule=data, verbose=False)[0]
for tag in ("return_mean", "raw_coverage_90", "coverage_90", "interval_width_90", "error_correlation"):
    print(f"test/{tag}: {scores[f'test/{tag}']:.2f}")

# %% [markdown]
# The same by hand for one game. The realised return of a state is the discounted sum of the rewards that follow; a
# game that reached its limit is completed by the value of its last state.

# %%
games = data.games("test", 1)
(game,) = games.play(agent.act, agent.estimate_values)
rewards, discounts = torch.tensor(game.rewards), torch.tensor(game.discounts)
returns = realised_returns(rewards, discounts, data.replay_settings.gamma, game.bootstrap)
inside = []
for number, found in enumerate(game.estimates):
    step = number * games.estimate_every
    action = game.actions[step]
    half = 1.64 * (found.q_std[action] ** 2 + found.noise_std[action] ** 2).sqrt()
    inside.append(bool((returns[step] - found.q_mean[action]).abs() < half))
print(f"{sum(inside)} of {len(inside)} returns of this game are inside their intervals")

# %% [markdown]
# ## The picture
#
# `bayes-rl test` writes this picture by itself. The left panel shows the standard deviation of Q by kind of state:
# states that the game cannot produce should lie to the right of those that were played. The middle panel shows the
# error of the most certain states: the curve should be below its right end. The right panel shows the coverage of raw
# intervals at each level: on the diagonal they hold what they promise, below it they are too narrow.

# %%
evidence = agent.scores[0].evidence
assert evidence is not None
draw_uncertainty({"CartPole-v1": evidence}, "CartPole-v1").savefig("uncertainty.png")

# %% [markdown]
# ## The video
#
# The video has a panel beside the game: Q of each action, its spread on a scale of its own, and the action that is
# chosen. `bayes-rl predict` writes the same. CartPole is drawn by pygame-ce (`pip install 'bayes_rl[classic]'`);
# without it the line says so.

# %%
print("video:", record_game(data, agent, 0, Path()))

# %% [markdown]
# ## Further
#
# [Read the curves](../how-to/read_the_curves.md) says what each value looks like when it is sick.
# [Metrics](../reference/metrics.md) has the equations, [distributions over weights](../concepts/posteriors.md) where
# the uncertainty comes from.
