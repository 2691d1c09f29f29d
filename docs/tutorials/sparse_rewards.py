"""Lesson: sparse rewards, where random actions find nothing and draws of a posterior do."""

# %% [markdown]
# In [DeepSea](../../bayes_rl/envs/deep_sea.py) the only reward lies at the end of N moves to the right that each cost
# something. Random actions need about 2^N episodes to find it. This lesson lets two agents look for the reward: one by
# random actions, one by Thompson sampling.

# %%
import os
from typing import Any

import pytorch_lightning as pl

from bayes_rl import ReplayDataModule, VariationalActorCritic

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "12"))
SIZE = 10

# %% [markdown]
# ## Two agents
#
# The settings of the networks and the objective are those of [`configs/deep_sea.yaml`](../../configs/deep_sea.yaml).
# The replay and the epochs are smaller. An observation is the number of a cell, and the network looks up features for
# each cell.
#
# Thompson sampling plays each episode by one of ten members of the output layers. Each member has a fixed random
# function added to its Q (a *prior function*), so that the members disagree about cells that were never seen. The value
# of the next state is the value by the same draw: what is unknown far ahead makes a path uncertain from its beginning.

# %%
SHARED: dict[str, Any] = {
    "likelihood": {"noise_std": 0.1},
    "optimizer": {"actor_lr": 0.001, "critic_lr": 0.0005},
}
OBJECTIVE = {"bootstrap": "greedy", "target": "ema", "tau": 0.05, "policy_temperature": 0.02}
AGENTS: dict[str, dict[str, Any]] = {
    "random actions": {
        "network": {"encoder": "mlp", "hidden_dim": 256, "bayesian": "none"},
        "objective": OBJECTIVE,
        "exploration": "epsilon",
        **SHARED,
    },
    "Thompson sampling": {
        "network": {"encoder": "mlp", "hidden_dim": 256, "bayesian": "heads", "prior_function_scale": 3.0},
        "posterior": {"family": "members", "size": 10, "prior_precision": 10.0, "init_log_var": -9.0},
        "objective": OBJECTIVE,
        "exploration": "thompson",
        **SHARED,
    },
}

# %% [markdown]
# ## Training
#
# A greedy game after each epoch tells whether the agent goes all the way: the return is 0.99 then, and at most 0
# otherwise. Training stops at the first such game.


# %%
class Solved(pl.Callback):
    """Print of the return of each validation, and a stop at the goal."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print episodes and return."""
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics["val/return_mean"])
        print(f"  after {pl_module.frames // SIZE} episodes: return of the greedy game {score:.3f}")
        trainer.should_stop = score > 0.9


for name, settings in AGENTS.items():
    print(name)
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        env="bayes_rl/DeepSea-v0",
        env_kwargs={"size": SIZE, "one_hot": False},
        num_envs=10,
        frame_stack=1,
        frames_per_epoch=500,
        rules={"frame_skip": 1, "sticky_actions": 0},
        replay={
            "capacity": 20_000,
            "min_size": 200,
            "batch_size": 256,
            "n_step": 1,
            "gamma": 0.99,
            "life_loss": "none",
            "reward_clip": None,
        },
        epsilon={"end": 0.1, "decay_frames": 2000},
        evaluation={"games": 1, "idle_frames": 0},
        seed=1,
    )
    agent = VariationalActorCritic(**settings, **data.agent_arguments())
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        gradient_clip_val=10,
        callbacks=[Solved()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent, datamodule=data)

# %% [markdown]
# One run of each says little: at ten cells random actions find the reward with some seeds. Longer chains tell the two
# apart. On the command line:
#
# ```bash
# bayes-rl fit --config deep_sea --data.env_kwargs '{size: 20, one_hot: false}' --trainer.max_epochs 6
# bayes-rl fit --config deep_sea --data.env_kwargs '{size: 20, one_hot: false}' --trainer.max_epochs 6 \
#     --name random_actions --model.network.bayesian none --model.network.prior_function_scale 0 \
#     --model.exploration epsilon
# ```
#
# ## What was measured
#
# Thompson sampling by these settings, but scale 1 of the prior functions, solved DeepSea of 10 and 20 cells with all
# five seeds and of 30 cells with four; these took 306, 644 and 1017 episodes (medians, seeds 1 to 5, commit `9469044`).
# Deterministic networks with epsilon-greedy solved none (commit `d38514e`; two cores beside other work, `python -m
# benchmarks sparse`, [table](../results/sparse/table.md)). At 10 cells the schedule of epsilon is the best of four. At
# 20 and 30 cells it is the first of the four; a later search at 20 cells found no schedule with a success.
#
# At version 0.1.0 Thompson sampling solved all 21 sizes of bsuite's sweep, N = 10 to 50, in 176 to 3375 episodes of the
# 10 000 allowed, one seed each ([table](../results/deep_sea/table.md), `python -m benchmarks deep_sea`, two cores
# without a GPU, seed 1, commit `e30f9f2`, with pauses; minutes include pauses and other work). The same
# networks with random actions instead (mean-field, no prior functions, epsilon 1 to 0.1 over 2000 episodes) needed 1915
# and 1547 episodes at N = 10 and 14, where Thompson sampling needed 176 and 333, and saw no reward in 10 000 episodes
# at N = 20. With a short schedule the same baseline needs 124 episodes at N = 10.
#
# ![Episodes until DeepSea is solved against its size](../results/deep_sea/deep_sea.png)
#
# ## What does the work, and what the baseline is worth
#
# * At small sizes luck suffices: with a short schedule epsilon-greedy needs fewer episodes at N = 10 than Thompson
#   sampling. The baseline of 0.1.0 had no search.
# * At N = 14 the ensemble and its prior functions do the solving. A run without the KL and the weight noise needed 452
#   episodes, a run with both 411 (0.1.0, one seed; command and commit were not recorded). The distributions within a
#   member contribute little.
# * In 0.1.0 a draw acted by the mean of both critics. Now it acts by one critic, which the episode's seed chooses, so
#   that its values vary as much as is reported.
#
# ## Further
#
# [Sparse rewards, results](../results/sparse.md) has more tasks, [distributions over
# weights](../concepts/posteriors.md) the options.
