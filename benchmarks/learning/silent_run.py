"""Data, agent and trainer of a configuration file, without logs, checkpoints or a progress bar."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule


def silence_lightning() -> None:
    """Hide warnings and Lightning's log, so that the output holds the benchmark's lines alone."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def prepare_run(
    config: dict[str, Any], seed: int, **settings: Any
) -> tuple[ReplayDataModule, VariationalActorCritic, pl.Trainer]:
    """Return the data, the agent and a silent CPU trainer of a configuration.

    Args:
        config: content of a file of `configs/`.
        seed: seed of the data, of the weights and of the training.
        settings: further arguments of the trainer. By default nothing is saved.
    """
    pl.seed_everything(seed, verbose=False)
    data = ReplayDataModule(**config["data"] | {"seed": seed})
    agent = VariationalActorCritic(**config["model"], **data.agent_arguments())
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=config["trainer"].get("gradient_clip_val"),
        num_sanity_val_steps=0,
        log_every_n_steps=1000,
        **{"enable_checkpointing": False, **settings},
    )
    return data, agent, trainer
