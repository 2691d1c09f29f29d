"""Lesson: train one agent with two processes, and search options with a sweep."""

# %% [markdown]
# Two processes can train one agent together, or many processes can train many agents to find good options. This lesson
# does both on one machine, by commands. The program types them by the function `bayes_rl`; in a terminal type them
# without it.

# %%
import os
import subprocess
import sys
from pathlib import Path

from bayes_rl.sweep.cluster import missing_packages

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "5"))
SMALL = "--data.frames_per_epoch 1000 --data.evaluation.games 4 --trainer.enable_progress_bar false"


def bayes_rl(words: str) -> None:
    """Do what `bayes-rl WORDS` does."""
    print(f"$ bayes-rl {words}", flush=True)
    subprocess.run([sys.executable, "-m", "bayes_rl", *words.split()], check=True)


# %% [markdown]
# ## Two processes, one agent
#
# Each process has half of the environments, of the replay, of every minibatch and of the games. The gradients are
# averaged after each update, so that two processes with a batch of 64 learn as one process with a batch of 64. All
# options are totals over the processes.

# %%
RANKS = "--trainer.accelerator cpu --trainer.devices 2"
bayes_rl(f"fit --config cartpole --name two --trainer.max_epochs {EPOCHS} {RANKS} {SMALL}")

# %% [markdown]
# A small network gains little by two processes, because each update waits for both. Processes pay where an update takes
# long. A run is resumed with as many processes as it had:
#
# ```bash
# bayes-rl fit --ckpt_path last --name two
# ```
#
# ## A sweep
#
# The file names options and their values. Each trial is one combination, fitted once for each seed. The seeds begin at
# 100, so that options are chosen on other seeds than those of a report.

# %%
Path("lr.yaml").write_text(
    "model.optimizer.critic_lr: {log_uniform: [1e-4, 1e-2]}\ndata.replay.n_step: {choice: [1, 3, 5]}\n"
)
print(Path("lr.yaml").read_text())

# %% [markdown]
# A sweep runs on Ray, an extra of the package. Without Ray the program says what is missing, and does not sweep.

# %%
if missing := missing_packages():
    print(f"no sweep: {' and '.join(missing)} not installed; type: pip install 'bayes_rl[cluster]'")
else:
    bayes_rl(f"sweep lr.yaml --config cartpole --seeds 2 --trials 2 --trainer.max_epochs {EPOCHS} {SMALL}")
    print(Path("sweeps/lr/report.md").read_text())

# %% [markdown]
# A sweep of a day has more trials, seeds and frames:
#
# ```bash
# bayes-rl sweep lr.yaml --config cartpole --seeds 5 --trials 40
# bayes-rl fit --config sweeps/lr/best.yaml --seed_everything 1
# ```
#
# `sweeps/lr/report.md` names the best options with intervals, `sweeps/lr/best.yaml` is their configuration. The score
# of the best of many trials is too high, because it was chosen: fit the best options again with seeds of their own.
#
# ## Further
#
# [Train with several processes](../how-to/train_on_several_machines.md) on several machines, [run a
# sweep](../how-to/run_a_sweep.md), on [two machines](../how-to/sweep_on_two_machines.md), on
# [SLURM](../how-to/sweep_on_slurm.md).
