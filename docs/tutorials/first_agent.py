"""Lesson: a first agent, in Python and on the command line."""

# %% [markdown]
# An agent learns to balance a pole, first in Python and then on the command line. Both ways use two objects. The data
# module plays games and keeps a replay. The agent learns from the replay.

# %%
import os
import subprocess
import sys

import pytorch_lightning as pl
import torch

from bayes_rl import ReplayDataModule, VariationalActorCritic

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "10"))

# %% [markdown]
# ## In Python
#
# `env` is any Gymnasium id with discrete actions. An epoch is a number of frames of play. Each epoch ends with a
# validation, which plays whole games without exploration. `agent_arguments` tells the agent what it has to know of the
# data: the shape of an observation and the number of actions.

# %%
data = ReplayDataModule(
    env="CartPole-v1",
    num_envs=8,
    frame_stack=1,
    frames_per_epoch=2000,
    rules={"frame_skip": 1, "sticky_actions": 0},
    replay={"capacity": 20_000, "min_size": 500, "life_loss": "none"},
    epsilon={"decay_frames": 5000},
    evaluation={"games": 10},
)
agent = VariationalActorCritic(network={"encoder": "mlp", "hidden_dim": 64}, **data.agent_arguments())
trainer = pl.Trainer(
    max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
)
trainer.fit(agent, datamodule=data)
scores = trainer.test(agent, datamodule=data, verbose=False)[0]
print(f"mean score of {scores['test/games']:.0f} test games: {scores['test/return_mean']:.1f}")

# %% [markdown]
# `act` maps observations to actions. The two states below differ in the angle of the pole: to the right, to the left.

# %%
states = torch.tensor([[0.0, 0.0, 0.1, 0.0], [0.0, 0.0, -0.1, 0.0]])
print("actions of two states:", agent.act(states).tolist())

# %% [markdown]
# ## On the command line
#
# `bayes-rl fit` does more: it writes checkpoints, curves, a table of scores and a video. `--config cartpole` names a
# configuration of the package, and any option can follow. The program types the commands by the function `bayes_rl`; in
# a terminal type them without it.


# %%
def bayes_rl(words: str) -> None:
    """Do what `bayes-rl WORDS` does."""
    print(f"$ bayes-rl {words}", flush=True)
    subprocess.run([sys.executable, "-m", "bayes_rl", *words.split()], check=True)


SMALL = "--data.frames_per_epoch 2000 --data.evaluation.games 5 --trainer.enable_progress_bar false"
bayes_rl(f"fit --config cartpole --name first --trainer.max_epochs {EPOCHS} {SMALL}")

# %% [markdown]
# `--ckpt_path last` names the newest checkpoint below `runs/`. The run has the folder `runs/first/version_0`:
#
# | file | holds |
# |---|---|
# | `checkpoints/best.ckpt`, `checkpoints/last.ckpt` | the agent with the highest validation score, and the newest |
# | `learning_curve.png`, `metrics.npy` | scores of the validations, as a picture and as numbers |
# | `config.yaml` | all options |
# | `replay/` | what a resumed run learns from |
#
# TensorBoard's events and videos lie beside them. [Read the curves](../how-to/read_the_curves.md) explains each curve.

# %%
bayes_rl("validate --ckpt_path last --name first")

# %% [markdown]
# A checkpoint is an agent in Python, too. `weights_only=True` executes no code of the file.

# %%
best = VariationalActorCritic.load_from_checkpoint("runs/first/version_0/checkpoints/best.ckpt", weights_only=True)
print("actions of the best checkpoint:", best.act(states).tolist())

# %% [markdown]
# ## A game from pixels
#
# With Python 3.11 or newer, git and make, from a checkout:
#
# ```bash
# make fit     # installs into .venv, trains Breakout on two CPU cores, plays test games, writes curve and video
# make test    # installs the same way, then style, types and all quick tests
# ```
#
# ![Score of whole greedy games of Breakout against environment frames](../results/quickstart_curve.png)
#
# The picture is the run of seed 1 at commit `eda3066`. The best checkpoint has a mean score of 31.25 (14 to 47; random
# 1.7, human 30.5) over 20 whole greedy games with sticky actions; over seeds 1 to 5 the mean is 32.64
# ([scores](../results/scores.md)). Version 0.1.0 scored 19.85 (seed 1, commit `334aa1b`).
#
# Without make:
#
# ```bash
# python3 -m venv .venv
# .venv/bin/pip install --constraint constraints.txt --editable '.[minatar,classic]'
# .venv/bin/bayes-rl fit --config configs/quickstart.yaml
# ```
#
# ## Continue, play, watch
#
# ```bash
# bayes-rl fit      --config quickstart      # runs/quickstart/version_K
# bayes-rl fit      --ckpt_path last         # continue the newest run
# bayes-rl validate --ckpt_path last         # scores of the validation games
# bayes-rl predict  --ckpt_path last         # play games and write a video of each
# tensorboard --logdir runs                  # then open http://localhost:6006/#custom_scalars
# ```
#
# Type `.venv/bin/bayes-rl` unless the virtual environment is active; `python cli.py` is the same program. Any option
# can follow: `--data.env ALE/Pong-v5 --model.network.encoder impala --trainer.max_epochs 10`. `fit --help` explains
# each option, `fit --print_config` shows all options with their values. A resumed run without `--config` continues with
# the options of the run. `--trainer.max_epochs N` trains longer. The configurations are listed in the
# [README](../../README.md#configurations).
#
# ## Further
#
# [Train on your own environment](own_environment.md), [kill, resume, export](resume_kill_export.md), and all options in
# the [reference](../reference/configuration.md).
