"""The data module: what the agent has to know of the data, and the documented use from Python."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli.resume_rules import NETWORKS
from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.data import datamodule
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.envs.base import EnvSettings, VectorEnvs
from bayes_rl.errors import ConfigError
from bayes_rl.types import Transition
from bayes_rl.utils.settings import leaves
from tests.helpers.agents import SampleData, fit, make_batch, make_module, make_trainer

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


def test_settings_are_checked_with_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulators load their games one after the other: 256 of them took 22 s to check the settings of a fit."""
    made: list[int] = []
    make_envs = datamodule.make_envs

    def counted(settings: EnvSettings, num_envs: int) -> VectorEnvs:
        made.append(num_envs)
        return make_envs(settings, num_envs)

    monkeypatch.setattr(datamodule, "make_envs", counted)
    ReplayDataModule(env="CartPole-v1", num_envs=5, frame_stack=1, rules={"frame_skip": 1})
    assert made == [1]
    with pytest.raises(ConfigError, match=r"data\.num_envs"):
        ReplayDataModule(env="CartPole-v1", num_envs=0, frame_stack=1, rules={"frame_skip": 1})


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


@pytest.mark.parametrize("games", [MINATAR, ["breakout", "tennis"]], ids=["MinAtar", "Atari"])
def test_a_reference_plays_with_the_spaces_of_the_sequence(games: list[str]) -> None:
    common: dict[str, Any] = {"rules": {"frame_skip": 4 if games[0] == "breakout" else 1}, "frame_stack": 2}
    sequence = ReplayDataModule(tasks=games, curriculum={"frames_per_task": 100_000}, **common)
    for number, game in enumerate(games):
        alone = ReplayDataModule(env=game, spaces_of=games, **common)
        assert alone.curriculum.settings == (sequence.curriculum.settings[number],)
        assert alone.num_tasks == 1
        for key in ("observation_shape", "num_actions", "pixel_scale", "num_categories"):
            assert alone.agent_arguments()[key] == sequence.agent_arguments()[key]  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"env": "MinAtar/Asterix-v1", "spaces_of": MINATAR}, "does not name --data.env MinAtar/Asterix-v1"),
        ({"env": "breakout", "spaces_of": ["breakout", "CartPole-v1"]}, "mixes kinds"),
        ({"env": "breakout", "spaces_of": ["breakout"]}, "names one game"),
        ({"tasks": MINATAR, "spaces_of": MINATAR}, "is for a single --data.env"),
    ],
)
def test_spaces_that_cannot_be_shared_are_refused_by_the_option_s_name(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        ReplayDataModule(**options)
    assert error.value.key == "data.spaces_of"
    assert str(error.value).startswith("--data.spaces_of: ")


def cartpole(**options: Any) -> ReplayDataModule:
    rules = {"frame_skip": 1, "sticky_actions": 0}
    return ReplayDataModule(env="CartPole-v1", num_envs=4, frame_stack=1, rules=rules, **options)


def test_an_agent_is_trained_and_tested_from_python() -> None:
    """The example of the documentation, with fewer frames."""
    data = cartpole(frames_per_epoch=200, replay={"min_size": 100}, evaluation={"games": 2})
    agent = VariationalActorCritic({"encoder": "mlp", "hidden_dim": 128}, **data.agent_arguments())
    before = [weight.clone() for weight in agent.parameters()]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.utilities.warnings.PossibleUserWarning)
        trainer.fit(agent, datamodule=data)
        (scores,) = trainer.test(agent, datamodule=data, verbose=False)
    assert trainer.global_step == 100  # an update for each four agent steps
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))
    assert scores["test/return_mean"] > 0


def test_every_epoch_under_a_limit_of_updates_ends_by_a_validation() -> None:
    class Validations(pl.Callback):
        def __init__(self) -> None:
            self.at: list[int] = []

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.at.append(trainer.global_step)

    data = cartpole(frames_per_epoch=40, replay={"min_size": 20, "batch_size": 8}, evaluation={"games": 1})
    agent = make_module(**data.agent_arguments())
    validations = Validations()
    limits = {"limit_train_batches": 6, "limit_val_batches": 1.0, "num_sanity_val_steps": 0, "max_epochs": 3}
    trainer = make_trainer(validations, **limits)
    trainer.fit(agent, datamodule=data)
    assert validations.at == [6, 12, 18]


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


@pytest.mark.parametrize(("ranks", "newest"), [(1, 9), (2, 5)])
def test_the_stream_learns_the_newest_transitions_of_its_rank(
    ranks: int, newest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = {"min_size": 20, "capacity": 200, "batch_size": 8, "newest_share": 0.25, "newest": 9, "n_step": 1}
    data = ReplayDataModule(
        env="CartPole-v1", num_envs=2, frame_stack=1, rules={"frame_skip": 1, "sticky_actions": 0}, replay=replay
    )
    agent = SimpleNamespace(
        act=lambda observations: torch.zeros(len(observations), dtype=torch.int64),
        explores_at_random=True,
        explores_by_draw=False,
    )
    strategy = SimpleNamespace(broadcast=lambda value: value)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=0, lightning_module=agent, strategy=strategy, limit_train_batches=0.5
    )
    data.setup("fit")
    stream = data.stream
    assert (stream.num_newest, stream.newest) == (2 // ranks, newest)
    assert stream.epoch_limit == stream.batches_per_epoch // 2
    asked: list[tuple[Any, ...]] = []

    def recorded(*arguments: Any) -> Transition:
        asked.append(arguments)
        return sample(*arguments)

    sample = stream.replay.sample
    monkeypatch.setattr(stream.replay, "sample", recorded)
    if ranks == 1:  # a stream of two ranks would wait for the other one
        next(iter(stream))
        size, _, *limits = asked[0]
        assert (size, limits) == (8, [9, 2])
    stream.envs.close()


# ------------------------------------------------------------------ transitions for the Fisher information
@pytest.mark.parametrize(("count", "newest", "expected"), [(10, 0.25, 100), (300, 0.25, 300), (10, 1.0, 400)])
def test_fisher_transitions_come_from_the_newest_part_of_the_replay(count: int, newest: float, expected: int) -> None:
    """Observations count the steps: 400 of them in the replay, the first ones by the oldest policies."""
    data = ReplayDataModule(env="CartPole-v1", num_envs=2, frame_stack=1, rules={"frame_skip": 1})
    replay = ReplayBuffer(1000, 2, (1,), np.dtype(np.float32), frame_stack=1, n_step=1)
    no, zeros = np.zeros(2, bool), np.zeros(2, np.int64)
    for step in range(200):
        screens = np.full((2, 1), step, np.float32)
        replay.add(screens, zeros, np.zeros(2, np.float32), no, no, no, screens + 1)
    data.stream = SimpleNamespace(replay=replay, rank=0, updates=0)  # type: ignore[assignment]
    steps = torch.cat([data.sample_transitions(count, newest).observation for data.stream.updates in range(40)])
    assert len(data.sample_transitions(count, newest).action) == count
    oldest = 199 - expected // 2  # the newest step is not complete yet
    assert steps.max() == 198
    assert max(0, oldest) <= steps.min() <= oldest + 5
    assert abs(steps.mean() - (198 + max(0, oldest)) / 2) < 4 * expected / 2 / (12 * len(steps)) ** 0.5


@pytest.mark.parametrize(("newest", "oldest_steps"), [(1.0, (0, 0)), (0.5, (62, 24))])
def test_final_screens_take_no_place_from_transitions_for_the_fisher_information(
    newest: float, oldest_steps: tuple[int, int]
) -> None:
    """Ring 0 has an episode and a final screen for each of 100 steps, ring 1 one episode: 199 and 99 complete windows.

    Half of all windows is 149, 75 from either ring.
    """
    data = ReplayDataModule(env="CartPole-v1", num_envs=2, frame_stack=1, rules={"frame_skip": 1})
    replay = ReplayBuffer(1000, 2, (1,), np.dtype(np.float32), frame_stack=1, n_step=1)
    no, zeros = np.zeros(2, bool), np.zeros(2, np.int64)
    for step in range(100):
        screens = np.array([[step], [1000 + step]], np.float32)
        replay.add(screens, zeros, np.zeros(2, np.float32), np.array([True, False]), no, no, screens)
    data.stream = SimpleNamespace(replay=replay, rank=0, updates=0)  # type: ignore[assignment]
    drawn = [data.sample_transitions(20, newest).observation for data.stream.updates in range(300)]
    assert set(torch.cat(drawn).flatten().tolist()) == {
        *range(oldest_steps[0], 100),
        *range(1000 + oldest_steps[1], 1099),
    }


def test_the_agent_takes_the_newest_quarter_unless_told_otherwise() -> None:
    assert ConsolidationSettings().fisher_newest == 0.25
    for options, share in (({}, 0.25), ({"fisher_newest": 0.5}, 0.5)):
        module = make_module({"consolidation": {"method": "ewc", "consolidate_every": 1, **options}})
        asked: list[float] = []

        class Data(SampleData):
            def sample_transitions(self, count: int, newest_share: float) -> Transition:
                asked.append(newest_share)  # noqa: B023
                return super().sample_transitions(count, newest_share)

        fit(module, [make_batch()], data=Data)
        assert asked == [share]
