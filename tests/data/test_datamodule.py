"""The data module: what the agent has to know of the data, and the documented use from Python."""

from __future__ import annotations

import warnings

import pytorch_lightning as pl
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.resume_rules import NETWORKS
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.utils.settings import leaves

MINATAR = ["MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "MinAtar/SpaceInvaders-v1"]


def test_agent_arguments_describe_the_environment() -> None:
    data = ReplayDataModule(env="CartPole-v1", num_envs=2, frame_stack=3, rules={"frame_skip": 1})
    assert data.agent_arguments() == {
        "game": "CartPole-v1",
        "observation_shape": (12,),
        "num_actions": 2,
        "pixel_scale": 1.0,
        "num_categories": 0,
        "num_tasks": 1,
        "task_conditioning": "none",
    }


def test_agent_arguments_describe_numbered_states_and_pixels() -> None:
    lake = ReplayDataModule(env="FrozenLake-v1", frame_stack=1, rules={"frame_skip": 1}).agent_arguments()
    assert (lake["num_categories"], lake["num_actions"], lake["observation_shape"]) == (16, 4, (1,))
    pong = ReplayDataModule(env="pong").agent_arguments()
    assert (pong["game"], pong["observation_shape"], pong["pixel_scale"]) == ("pong", (4, 84, 84), 255.0)


def test_agent_arguments_describe_several_tasks() -> None:
    tasks = {"tasks": MINATAR, "curriculum": {"task_conditioning": "heads", "frames_per_task": 200_000}}
    arguments = ReplayDataModule(rules={"frame_skip": 1}, frame_stack=2, **tasks).agent_arguments()
    assert (arguments["num_tasks"], arguments["task_conditioning"], arguments["num_actions"]) == (3, "heads", 6)
    assert arguments["observation_shape"] == (34, 10, 10)
    assert VariationalActorCritic({"encoder": "mlp", "hidden_dim": 8}, **arguments).hparams.num_tasks == 3


def test_an_agent_is_trained_and_tested_from_python() -> None:
    """The example of the documentation, with fewer frames."""
    data = ReplayDataModule(
        env="CartPole-v1",
        num_envs=4,
        frame_stack=1,
        rules={"frame_skip": 1, "sticky_actions": 0},
        frames_per_epoch=400,
        replay={"min_size": 100},
        evaluation={"games": 2},
    )
    agent = VariationalActorCritic({"encoder": "mlp", "hidden_dim": 128}, **data.agent_arguments())
    before = [weight.clone() for weight in agent.parameters()]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.utilities.warnings.PossibleUserWarning)
        trainer.fit(agent, datamodule=data)
        (scores,) = trainer.test(agent, datamodule=data, verbose=False)
    assert trainer.global_step == 200  # an update for each four agent steps
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))
    assert scores["test/return_mean"] > 0


def test_the_data_module_says_what_the_networks_have_to_know() -> None:
    data = ReplayDataModule(
        tasks=MINATAR,
        curriculum={"frames_per_task": 200_000, "task_conditioning": "heads"},
        rules={"frame_skip": 1},
        frame_stack=2,
    )
    assert (data.num_tasks, data.task_conditioning, data.num_actions) == (3, "heads", 6)
    assert data.observation_shape == (34, 10, 10)
    assert [games.task for games in data.val_dataloader()] == [0, 1, 2]
    seeds = [tuple(games.seeds) for games in data.val_dataloader()]
    assert len(set(seeds)) == 3
    assert data.curriculum.epochs == 2
    assert set(leaves(dict(data.hparams))) >= NETWORKS
