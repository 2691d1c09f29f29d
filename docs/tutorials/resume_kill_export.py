"""Lesson: kill a run, resume the run to the same bits, and export its agent."""

# %% [markdown]
# A run that was killed can continue. On a CPU the resumed run has the same bits as a run that was never stopped. This
# lesson shows it by the command line, and then exports the agent. The lesson is a Python program that types commands;
# in a terminal type them without the program.

# %%
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from bayes_rl import load_agent

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "4"))
OPTIONS = f"""--config cartpole --trainer.max_epochs {EPOCHS} --data.frames_per_epoch 2000 --data.evaluation.games 3
    --trainer.enable_progress_bar false --trainer.enable_model_summary false"""


def start(words: str) -> subprocess.Popen[bytes]:
    """Start `bayes-rl WORDS` and return the process."""
    print(f"$ bayes-rl {' '.join(words.split())}", flush=True)
    return subprocess.Popen([sys.executable, "-m", "bayes_rl", *words.split()])


def type_in(words: str) -> None:
    """Do what `bayes-rl WORDS` does, to its end."""
    code = start(words).wait()
    if code:
        raise SystemExit(code)


def weights(run: str) -> dict[str, torch.Tensor]:
    """Return the weights in the newest checkpoint of a run."""
    return torch.load(f"runs/{run}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]


# %% [markdown]
# ## A run without a stop
#
# The first run is what the other run is compared with.

# %%
type_in(f"fit {OPTIONS} --name whole")

# %% [markdown]
# ## A run that is killed
#
# `kill -9` gives a process no chance to save anything. The run is killed a moment after its first checkpoint, in the
# middle of the second epoch.

# %%
process = start(f"fit {OPTIONS} --name killed")
last = Path("runs/killed/version_0/checkpoints/last.ckpt")
while not last.is_file() and process.poll() is None:
    time.sleep(0.05)
process.send_signal(signal.SIGKILL)
process.wait()
print(f"killed after {torch.load(last, weights_only=True)['frames']:,} frames of the checkpoint")

# %% [markdown]
# ## Resume
#
# `--ckpt_path last` finds the newest run with its configuration. What was learned after the checkpoint is learned
# again, and every number is the same.

# %%
type_in("fit --ckpt_path last --name killed")
first, second = weights("whole"), weights("killed")
different = [name for name, tensor in first.items() if not torch.equal(tensor.nan_to_num(), second[name].nan_to_num())]
print(f"{len(first)} tensors, {len(different)} of them different")
assert not different

# %% [markdown]
# ## Train longer
#
# A run at its limit says so and trains nothing. A greater limit continues the run.

# %%
type_in("fit --ckpt_path last --name killed")
type_in(f"fit --ckpt_path last --name killed --trainer.max_epochs {EPOCHS + 1}")

# %% [markdown]
# ## Export
#
# The exported file holds weights, fitted intervals and settings, and executes nothing. It plays on the command line
# and in Python, and needs no replay. Only `fit` needs the checkpoint.

# %%
type_in("export runs/killed/version_0/checkpoints/best.ckpt cartpole.safetensors")
type_in("validate --ckpt_path cartpole.safetensors")
agent = load_agent("cartpole.safetensors")
print("actions of two states:", agent.act(torch.zeros(2, 4)).tolist())
sizes = [Path(file).stat().st_size for file in (last, "cartpole.safetensors")]
print(f"checkpoint {sizes[0]:,} bytes, exported agent {sizes[1]:,} bytes")

# %% [markdown]
# ## Further
#
# [Resume a run](../how-to/resume_a_run.md) has the rules, [reproducibility and
# resuming](../concepts/reproducibility_and_resuming.md) says what a checkpoint holds and in which order it is loaded,
# [export an agent](../how-to/export_an_agent.md) what the file is for.
