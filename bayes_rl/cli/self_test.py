"""Self test of an installation: train a tiny agent, train it again in two parts, and compare.

`python -m bayes_rl.cli.self_test` prints all output of the training, and what was tested as the last line.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.process import share_cores, silence_warnings
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.replay import ReplaySettings
from bayes_rl.envs.base import EpisodeRules
from bayes_rl.errors import RunError
from bayes_rl.evaluation.settings import GameSettings
from bayes_rl.networks.settings import NetworkSettings
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO

UPDATES, EPOCHS = 60, 2
"""Updates of the whole training, and epochs that the updates are divided into."""


def fit(folder: Path, epochs: int, checkpoint: Path | None = None) -> VariationalActorCritic:
    """Train a tiny agent on CartPole, save `last.ckpt`, and return the agent.

    Args:
        folder: folder of the checkpoint and of the replay.
        epochs: epochs after which the training ends.
        checkpoint: checkpoint to resume from, or None to begin.

    Raises:
        RunError: if the training ends early or changes no weight.
    """
    pl.seed_everything(1, verbose=False)
    data = ReplayDataModule(
        env="CartPole-v1",
        num_envs=2,
        frame_stack=1,
        frames_per_epoch=120,
        rules=EpisodeRules(frame_skip=1, sticky_actions=0, max_episode_frames=50),
        replay=ReplaySettings(capacity=500, min_size=40, batch_size=8, life_loss="none"),
        evaluation=GameSettings(games=1),
    )
    data.directory = folder / "replay"
    network = NetworkSettings(encoder="mlp", hidden_dim=16)
    agent = VariationalActorCritic(network=network, **data.agent_arguments())
    before = [parameter.detach().clone() for parameter in agent.twin.parameters()]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
    )
    trainer.fit(agent, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    if trainer.global_step != UPDATES * epochs // EPOCHS:
        raise RunError(f"the training ended after {trainer.global_step} updates")
    if all(map(torch.equal, before, agent.twin.parameters())):
        raise RunError("the training changed no weight")
    return agent


def different_tensors(whole: VariationalActorCritic, parts: VariationalActorCritic) -> list[str]:
    """Return the names of the tensors of two agents that are not equal to the last bit."""
    other = parts.state_dict()
    return [name for name, tensor in whole.state_dict().items() if not _are_same(tensor, other[name])]


def _are_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.nan_to_num(), second.nan_to_num()) and torch.equal(first.isnan(), second.isnan())


def run() -> str:
    """Train an agent at once and another in two parts, and return what was tested in one line.

    Raises:
        RunError: if the two agents differ.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        whole = fit(Path(place, "whole"), EPOCHS)
        fit(Path(place, "parts"), 1)
        parts = fit(Path(place, "parts"), EPOCHS, Path(place, "parts/last.ckpt"))
    if names := different_tensors(whole, parts):
        raise RunError(f"the resumed agent differs from the other agent in {len(names)} tensors, {names[0]} first")
    seconds = time.monotonic() - start
    return f"ok: {UPDATES} updates, resumed after {UPDATES // EPOCHS} with equal weights, {seconds:.1f} s"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    silence_warnings()
    share_cores()
    print(run())
