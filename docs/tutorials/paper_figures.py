"""Lesson: figures and numbers for a paper, from the folders of runs."""

# %% [markdown]
# A figure of a paper needs several seeds, bands over the seeds, letters that can be read at the size of a column, and a
# caption that says how to repeat it. This lesson trains two agents with several seeds, and makes the figure, the number
# with its interval, and the caption.

# %%
import os
import platform
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from bayes_rl.metrics.intervals import FEWEST_RUNS
from bayes_rl.metrics.returns import interquartile_mean
from bayes_rl.reporting.figures import band, estimate
from bayes_rl.reporting.runs import read_run

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "10"))
SEEDS = range(1, 1 + int(os.environ.get("LESSON_SEEDS", "5")))

# %% [markdown]
# ## Runs
#
# Each run has a folder, `runs/NAME/version_0`, with its options (`config.yaml`) and the scores of its validations
# (`metrics.npy`). The two agents differ in what they explore by. Choose settings on other seeds than those of the
# figure.

# %%
OPTIONS = f"--config cartpole --trainer.max_epochs {EPOCHS} --data.frames_per_epoch 2000 --data.evaluation.games 5"
QUIET = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
ARMS = {"draws": "--model.exploration thompson", "random actions": "--model.exploration epsilon"}


def folder(arm: str, seed: int) -> Path:
    """Return the folder of a run."""
    return Path("runs") / f"{arm.replace(' ', '_')}_seed{seed}"


for arm, options in ARMS.items():
    for seed in SEEDS:
        words = f"fit {OPTIONS} {options} --seed_everything {seed} --name {folder(arm, seed).name} {QUIET}"
        print(f"$ bayes-rl {words}", flush=True)
        subprocess.run([sys.executable, "-m", "bayes_rl", *words.split()], check=True, stdout=subprocess.DEVNULL)
runs = {arm: [read_run(folder(arm, seed) / "version_0") for seed in SEEDS] for arm in ARMS}

# %% [markdown]
# ## A number with its interval
#
# The score of an agent is the mean over seeds of the last validation. `estimate` writes a 95 % interval, `[a, b]`.
# Below five seeds it writes the lowest and the highest seed, `(a to b)`: an interval from three seeds would be too
# narrow or too wide to be of use.

# %%
for arm, of_arm in runs.items():
    last = torch.tensor(np.array([run.scores[-1] for run in of_arm]))
    print(f"{arm}: mean {estimate(last, torch.mean)}, interquartile mean {estimate(last, interquartile_mean)}")

# %% [markdown]
# ## The figure
#
# The width is that of a column, 3.25 inches, so that the journal does not scale the letters. Fonts of type 42 can be
# searched and edited in the PDF. `band` returns the mean and the lowest and highest seed at each validation. The file
# has no date, so that the same runs give the same file.

# %%
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42, "lines.linewidth": 1}
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(3.25, 2.2), layout="constrained")
    axes = figure.subplots()
    for line_style, (arm, of_arm) in zip(("-", "--"), runs.items(), strict=True):
        curve = band([(run.frames, run.scores[:, 0]) for run in of_arm])
        axes.fill_between(curve.frames, curve.low, curve.high, alpha=0.2, linewidth=0)
        axes.plot(curve.frames, curve.mean, line_style, label=arm)
    axes.set(xlabel="environment frames", ylabel="score of greedy games")
    axes.legend(frameon=False)
    figure.savefig("figure.pdf", metadata={"CreationDate": None})
    figure.savefig("figure.png", dpi=300)
print("wrote figure.pdf and figure.png")

# %% [markdown]
# ## The caption
#
# A number without command, version, seeds and hardware cannot be repeated. Add the commit of your checkout.

# %%
seeds = f"{len(SEEDS)} seeds ({SEEDS[0]} to {SEEDS[-1]})"
interval = "intervals of 95 %" if len(SEEDS) >= FEWEST_RUNS else "no interval, because the seeds are too few"
commands = " or ".join(f"{options} ({arm})" for arm, options in ARMS.items())
hardware = f"{platform.machine()}, {os.cpu_count()} cores"
versions = f"torch {torch.__version__}, Python {platform.python_version()}"
caption = f"""CartPole-v1: mean over {seeds}, bands from the lowest to the highest seed, {interval}.
Command: bayes-rl fit {OPTIONS} --seed_everything SEED, with {commands}.
Hardware and versions: {hardware}, {versions}.
"""
Path("caption.txt").write_text(caption)
print(caption)

# %% [markdown]
# ## Further
#
# `bayes-rl fit` writes `learning_curve.png` and `uncertainty_test.png` by itself, and `bayes-rl report` tables and
# curves of several tasks ([several games](several_games.md)). [Evaluation](../concepts/evaluation.md) says how a score
# is measured. `bayes-rl doctor` prints versions and hardware for a caption.
