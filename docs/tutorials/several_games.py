"""Lesson: several games in turn, with and without protection of what was learned."""

# %% [markdown]
# A network that learns a second game forgets the first, because the same weights learn both. Elastic weight
# consolidation (EWC) measures at the end of a task how much each weight matters (the *Fisher diagonal*), and pulls
# weights that matter back to their values (the *anchor*). This lesson trains on two games in turn, with and without
# EWC.

# %%
import os

import pytorch_lightning as pl

from bayes_rl import ReplayDataModule, VariationalActorCritic

EPOCHS = int(os.environ.get("LESSON_EPOCHS", "15"))  # of each game
TASKS = ["CartPole-v1", "Acrobot-v1"]

# %% [markdown]
# ## Two games, one network
#
# CartPole has 4 numbers and 2 actions, Acrobot has 6 numbers and 3 actions. Both games get 6 numbers and 3 actions.
# CartPole's last two numbers are 0, and its third action does what its first one does. The network does not know which
# game it plays (`task_conditioning` is `none`).
#
# Every validation plays all games, also those to come. Scores are raw: at most 200 in CartPole, between -200 and 0 in
# Acrobot, because a game ends after 200 steps here.


# %%
class Scores(pl.Callback):
    """Print of the scores of all games after each visit of a game."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one line at the end of a visit."""
        epoch = trainer.current_epoch + 1
        if epoch % EPOCHS == 0 and not trainer.sanity_checking:
            scores = [float(trainer.callback_metrics[f"val/{task}/return_mean"]) for task in TASKS]
            words = ", ".join(f"{task} {score:.0f}" for task, score in zip(TASKS, scores, strict=True))
            print(f"  after {TASKS[epoch // EPOCHS - 1]}: {words}")


for method, strength in (("none", None), ("online_ewc", 0.01)):
    print(f"consolidation {method}")
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        tasks=TASKS,
        num_envs=8,
        frame_stack=1,
        frames_per_epoch=1000,
        curriculum={"frames_per_task": 1000 * EPOCHS},
        rules={"frame_skip": 1, "sticky_actions": 0, "max_episode_frames": 200},
        replay={"capacity": 20_000, "min_size": 500, "life_loss": "none"},
        epsilon={"end": 0.02, "decay_frames": 5000},
        evaluation={"games": 5, "idle_frames": 0},
        seed=1,
    )
    agent = VariationalActorCritic(
        network={"encoder": "mlp", "hidden_dim": 64, "activation": "leaky_relu"},
        objective={"tau": 0.01, "policy_temperature": 0.1},
        consolidation={"method": method, "ewc_lambda": strength, "fisher_samples": 500},
        **data.agent_arguments(),
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS * len(TASKS),
        callbacks=[Scores()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent, datamodule=data)

# %% [markdown]
# One seed and a few thousand frames show the mechanism, and no result. [Several games in turn](../results/continual.md)
# has the results: three MinAtar games, three seeds, four methods.
#
# ## On the command line
#
# ```bash
# bayes-rl fit --config continual          # three MinAtar games in turn
# bayes-rl report runs/continual/version_* --references docs/results/continual/references.json
# ```
#
# `report` writes a table, curves and a heat map. Checkpoints and resuming work across task switches.
#
# * Which games, how long? `--data.tasks '[breakout, space_invaders, tennis]'`, `--data.curriculum.frames_per_task`,
#   `--data.curriculum.cycles`.
# * Are old games rehearsed? `--data.curriculum.keep_replays true`; by default a finished game's replay is dropped.
# * Does the network know the task? `--data.curriculum.task_conditioning none`, `gains` (a gain and bias for each
#   feature and task) or `heads`.
# * Which method protects earlier tasks? `--model.consolidation.method none`, `ewc` (the exact sum of a quadratic
#   penalty for each task, stored as one anchor and one Fisher diagonal), `online_ewc` (the latest anchor, and a Fisher
#   diagonal in which earlier tasks decay) or `vcl` (the posterior becomes the prior).
# * Which networks, how strongly? `--model.consolidation.protected_networks actor`, `critic` or `both`;
#   `--model.consolidation.ewc_lambda`; `--model.consolidation.fisher true` or `empirical`.
# * Which weights have no Fisher information? Weights into inactive units; remedy: `--model.network.activation
#   leaky_relu` ([why](../results/continual.md)).
# * What is reset at a task switch? `--model.consolidation.optimizer_at_switch`,
#   `--model.consolidation.critic_at_switch`, `--data.curriculum.epsilon_at_switch`.
#
# Atari games share all 18 actions; MinAtar's share the union of their actions and of their planes, by meaning; other
# games of a kind the union of their actions, and vectors padded with zeros.
#
# ## What it costs
#
# The Fisher diagonal of 2000 transitions of a Nature-size agent takes 27 s on one thread, 15 on two, and 83 MiB more
# memory, of which 13 MiB stay. The penalty adds 9 % to a training step at batch 32 (median 1.091, quartiles 1.080 and
# 1.102, one thread: `python -m benchmarks consolidation --threads 1 2 --rounds 60`, two cores of a Xeon, commit
# `1adc751`, 0.1.0, [figures](../results/consolidation.json)).
#
# ## Scores between 0 and 1
#
# Games without a known human score, such as MinAtar's, need the raw scores that count as 0 and 1: `--references`, a
# JSON file of `{task: [random, reference]}`, or single-task runs of the same games beside the others (a reference of
# `null` is taken from them). Give a single-task run the observations and actions of the sequence, or it learns another
# game: `--data.env breakout --data.spaces_of '[breakout, space_invaders, tennis]'`.
#
# ## Further
#
# [Add a consolidation method](../how-to/add_a_consolidation_method.md), and [names of the benchmarks at older
# commits](../results/speed.md).
