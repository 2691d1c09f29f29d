"""Several games in turn: common spaces, the order of tasks, switches of the stream, whole runs by the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.agent.optimizer import parameter_groups
from bayes_rl.bayes.settings import PosteriorSettings
from bayes_rl.cli import resume_rules as resume
from bayes_rl.data.curriculum import Curriculum, CurriculumSettings, make_curriculum
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.base import EnvSettings, VectorEnvs
from bayes_rl.errors import ConfigError
from bayes_rl.networks.encoders import ENCODERS, build_encoder
from bayes_rl.networks.layer_factory import LayerFactory
from bayes_rl.types import Batch, Transition
from tests.cli.test_life_cycle import ROOT, curves, error_of, run, weights
from tests.helpers.scripted_envs import ScriptedEnvs

MINATAR = ["MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "MinAtar/SpaceInvaders-v1"]


# ------------------------------------------------------------------ the order of tasks
@pytest.mark.parametrize(("tasks", "epochs", "cycles"), [(1, 1, 1), (3, 1, 1), (2, 4, 1), (3, 2, 2), (2, 3, 3)])
def test_the_curriculum_is_the_plan_written_out(tasks: int, epochs: int, cycles: int) -> None:
    settings = tuple(EnvSettings(name) for name in ("breakout", "tennis", "pong")[:tasks])
    curriculum = Curriculum(settings, epochs, cycles)
    written = [(visit, visit % tasks) for visit in range(tasks * cycles) for _ in range(epochs)]
    assert curriculum.visits == tasks * cycles
    for epoch, (visit, task) in enumerate(written):
        assert (curriculum.visit(epoch), curriculum.task(visit)) == (visit, task)
        last = epoch + 1 == len(written) or written[epoch + 1][0] != visit
        assert curriculum.ends(epoch) == last
    assert curriculum.visit(len(written) + 5) == tasks * cycles - 1
    assert not curriculum.ends(len(written) + epochs - 1)


def test_a_single_game_is_a_visit_without_an_end() -> None:
    curriculum = make_curriculum(EnvSettings("breakout"), None, CurriculumSettings(frames_per_task=7), 100)
    assert (curriculum.visits, curriculum.visit(10**9), curriculum.ends(10**9)) == (1, 0, False)
    assert curriculum.names == ["breakout"]


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("data.frames_per_task", (150, 100, 1)),
        ("data.frames_per_task", (0, 100, 1)),
        ("data.cycles", (200, 100, 0)),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(key: str, arguments: tuple[int, int, int]) -> None:
    def make(frames_per_task: int, frames_per_epoch: int, cycles: int) -> Curriculum:
        visits = CurriculumSettings(frames_per_task, cycles)
        return make_curriculum(EnvSettings("?"), ["breakout", "tennis"], visits, frames_per_epoch)

    with pytest.raises(ConfigError) as error:
        make(*arguments)
    assert error.value.key == key


# ------------------------------------------------------------------ the stream
def scripted(first: int, envs: int = 3) -> tuple[VectorEnvs, ReplayBuffer]:
    """Games whose screens say `first` + environment, and an empty replay."""

    class Other(ScriptedEnvs):
        def _screens(self) -> NDArray[np.uint8]:
            return (super()._screens() + np.array([first, 0, 0])).astype(np.uint8)

    return Other(envs), ReplayBuffer(600, envs, (3,), np.dtype(np.uint8), frame_stack=1, n_step=1)


def stream_of(keep: bool = False, restart: bool = True) -> ReplayStream:
    return ReplayStream(
        *scripted(0),
        lambda observations: torch.zeros(len(observations), dtype=torch.int64),
        EpsilonSchedule(1.0, 0.0, 60),
        batch_size=8,
        updates_per_step=1 / 3,
        batches_per_epoch=10,
        min_replay_size=30,
        frame_skip=1,
        seed=4,
        keep_replays=keep,
        restart_epsilon=restart,
    )


def seen(batches: list[Batch]) -> set[int]:
    """First numbers of the screens: which task's games they come from, in tens."""
    return {int(x) // 10 for batch in batches for x in batch.transition.observation[:, 0]}


def test_a_switch_leaves_the_old_games_and_fills_the_new_replay_at_random_first() -> None:
    stream = stream_of()
    old = stream.envs
    assert seen(list(stream)) == {0}
    frames, episodes = stream.frames, stream.episodes.copy()
    assert stream.epsilon == pytest.approx(0.5)  # 10 of 20 vector steps
    stream.switch(1, *scripted(10))
    assert old.pending is None  # type: ignore[attr-defined]
    assert len(stream.replay) == 0
    assert stream.epsilon == 1.0
    assert (stream.episodes == episodes).all()  # so that no seed is used twice
    batches = list(stream)
    assert seen(batches) == {1}
    assert {batch.task for batch in batches} == {1}
    assert batches[0].num_data >= 30
    assert batches[-1].frames - batches[0].frames == 27  # ten updates, one for three steps of three environments
    assert batches[0].frames - frames >= 27  # the prefill
    assert stream.updates == 20
    assert stream.epsilon == pytest.approx(0.5)


def test_epsilon_can_go_on_where_it_was() -> None:
    stream = stream_of(restart=False)
    list(stream)
    stream.switch(1, *scripted(10))
    assert stream.epsilon == 1.0  # the prefill
    list(stream)
    assert stream.epsilon == pytest.approx(0.0)


def test_kept_replays_are_rehearsed_in_equal_shares_and_counted_as_data() -> None:
    stream = stream_of(keep=True)
    list(stream)
    for task in (1, 2):
        stream.switch(task, *scripted(10 * task))
        batches = [batch for _ in range(30) for batch in stream]
    assert seen(batches) == {0, 1, 2}
    for task in range(3):
        mine = [batch for batch in batches if batch.task == task]
        assert seen(mine) == {task}
        # 300 draws of probability 1/3: 4 standard errors are 4 x sqrt(300 x 2 / 9) = 33
        assert abs(len(mine) - 100) < 33
    assert [task for task, _ in stream.finished] == [0, 1]
    held = [len(replay) for replay in (stream.finished[0][1], stream.finished[1][1], stream.replay)]
    assert batches[-1].num_data == sum(held)


# ------------------------------------------------------------------ what the networks are told
FEATURES, ACTIONS = 5, 3


def batch_of(task: int) -> Batch:
    n = 6
    state, after = torch.randn(2, n, FEATURES)
    transition = Transition(state, torch.randint(ACTIONS, (n,)), torch.randn(n), torch.full((n,), 0.9), after)
    return Batch(transition, 1000, 0, task)


def agent(conditioning: str, **settings: Any) -> VariationalActorCritic:
    torch.manual_seed(2)
    module = VariationalActorCritic(
        encoder="mlp",
        hidden_dim=8,
        observation_shape=(FEATURES,),
        num_actions=ACTIONS,
        num_tasks=3,
        task_conditioning=conditioning,
        **settings,
    )
    module._trainer = type("Quiet", (), {"log_every_n_steps": 0, "precision": "32", "gradient_clip_val": None})()  # type: ignore[assignment]
    return module


OWN = {"gains": (".gain.", ".shift."), "heads": ("actors.", "critics.")}


@pytest.mark.parametrize("conditioning", ["gains", "heads"])
@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize("bayesian", ["heads", "all", "none"])
def test_a_task_trains_what_is_shared_and_its_own_and_nothing_of_the_others(
    conditioning: str, shared_trunk: bool, bayesian: str
) -> None:
    module = agent(conditioning, shared_trunk=shared_trunk, bayesian=bayesian, weight_decay=0.1)
    optimizer = torch.optim.AdamW(parameter_groups(module.twin, {"actor": 1e-2, "critic": 1e-2}, 0.1))
    for task in (0, 2, 1, 1):
        before = copy.deepcopy(module.twin.state_dict())
        optimizer.zero_grad()
        module.training_step(batch_of(task), 0).backward()
        optimizer.step()
        for name, value in module.twin.state_dict().items():
            if any(word in name for word in OWN[conditioning]):
                number = int(
                    name.split(".gain.")[-1].split(".shift.")[-1].split(".")[-1 if conditioning == "gains" else 1]
                )
                owner = number if conditioning == "gains" else number // 2
                assert torch.equal(value, before[name]) == (owner != task), name
            else:
                assert not torch.equal(value, before[name]), name


def test_gains_start_as_ones_and_belong_to_every_layer_of_the_trunk() -> None:
    plain, gained = agent("none"), agent("gains")
    observation = torch.randn(4, FEATURES)
    for task in range(3):
        assert torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=task).q_values)
    with torch.no_grad():
        for name, value in gained.twin.named_parameters():
            if name.endswith("gain.1"):
                value.mul_(2.0)
    assert not torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=1).q_values)
    assert torch.equal(plain.twin(observation).q_values, gained.twin(observation, task=2).q_values)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_has_gains_of_its_channels(encoder: str) -> None:
    shape = (2, 44, 44) if encoder != "mlp" else (7,)
    told = build_encoder(encoder, shape, 8, LayerFactory(PosteriorSettings(), "all", num_tasks=2, conditioning="gains"))
    bare = build_encoder(encoder, shape, 8, LayerFactory(PosteriorSettings(), "all"))
    layers = [name for name, _ in bare.named_parameters() if name.endswith("weight_mu")]
    assert sum(name.endswith("gain.1") for name, _ in told.named_parameters()) == len(layers)
    assert told(torch.randn(3, *shape)).shape == bare(torch.randn(3, *shape)).shape


def test_acting_and_judging_follow_the_task() -> None:
    module = agent("heads")
    module._trainer = None
    observation = torch.randn(50, FEATURES)
    answers = [module.act(observation, task=task) for task in range(3)]
    assert not torch.equal(answers[0], answers[1])
    module.task = 1
    assert torch.equal(module.act(observation), answers[1])
    q = module.estimate_values(observation, task=2).q_mean
    assert not torch.allclose(q, module.estimate_values(observation, task=0).q_mean)


# ------------------------------------------------------------------ whole runs
TWO = [
    *("--config", str(ROOT / "configs/continual.yaml"), "--data.tasks=[MinAtar/Breakout-v1, MinAtar/Freeway-v1]"),
    *("--data.frames_per_epoch=400", "--data.frames_per_task=800", "--data.min_replay_size=100"),
    *("--data.replay_capacity=2000", "--data.eval_games=2", "--data.max_episode_frames=50", "--data.batch_size=8"),
    *("--model.hidden_dim=8", "--model.fisher_samples=20", "--trainer.log_every_n_steps=10"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]


def test_a_sequence_plays_all_tasks_and_keeps_an_agent_of_each_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = run(monkeypatch, "fit", *TWO)
    folder = Path("runs/continual/version_0")
    table = np.load(folder / "metrics.npy", allow_pickle=False)
    assert table["visit"].tolist() == [-1, 0, 0, 1, 1]
    # 104: the prefill of each visit, in steps of 8 environments; 8: the step under way at the switch
    assert table["frames"].tolist() == [0, 504, 904, 1416, 1816]
    tags = set(curves(folder))
    for name in ("MinAtar-Breakout-v1", "MinAtar-Freeway-v1"):
        assert np.isfinite(table[f"{name}/return_mean"]).all()
        assert {f"val/{name}/return_mean", f"test/{name}/return_mean", f"val/{name}/coverage_90"} <= tags
    names = sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))
    assert names == ["end_of_task_epoch=1.ckpt", "end_of_task_epoch=3.ckpt", "last.ckpt"]
    assert int(program.model.consolidator.ewc.consolidations) == 2  # type: ignore[union-attr]
    assert len(list((folder / "videos").iterdir())) == 2
    assert [p.name for p in sorted((folder / "replay/rank0").iterdir())] == ["visit0", "visit1"]
    run(monkeypatch, "validate", *TWO, "--ckpt_path=last")
    printed = capsys.readouterr().out
    assert "MinAtar-Breakout-v1" in printed
    assert "MinAtar-Freeway-v1" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--model.consolidation=online_ewc", "--data.task_conditioning=heads"],
        pytest.param(
            ["--model.consolidation=vcl", "--model.bayesian=all", "--data.task_conditioning=gains"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                *("--model.consolidation=ewc", "--model.fisher=empirical", "--model.protect=actor"),
                *("--data.keep_replays=true", "--model.critic_at_switch=reset", "--data.epsilon_at_switch=continue"),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["online", "vcl", "rehearsal"],
)
def test_a_run_resumed_before_or_after_a_switch_equals_the_uninterrupted_one(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles = [*TWO, *options, "--data.frames_per_task=400", "--data.cycles=2"]
    run(monkeypatch, "fit", *cycles, "--name=straight")
    for epochs in (1, 3, 4):  # at a task's end, in the second cycle, and to the end
        again = ["--ckpt_path=last"] if epochs > 1 else []
        run(monkeypatch, "fit", *cycles, "--name=parts", f"--trainer.max_epochs={epochs}", *again)
    straight, parts = (Path(f"runs/{name}/version_0") for name in ("straight", "parts"))
    a, b = weights(straight / "checkpoints/last.ckpt"), weights(parts / "checkpoints/last.ckpt")
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    tables = [np.load(folder / "metrics.npy", allow_pickle=False) for folder in (straight, parts)]
    assert tables[0]["visit"].tolist() == [-1, 0, 1, 2, 3]
    assert tables[0].tobytes() == tables[1].tobytes()  # bit for bit: some of it is not a number
    one, two = curves(straight), curves(parts)
    for tag in ("train/nll", "train/ewc_penalty", "train/epsilon", "train/return_mean"):
        assert one[tag] == two[tag]


def test_a_strength_of_0_is_bitwise_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "none": ["--model.ewc_lambda=null"],
        "ewc": ["--model.ewc_lambda=0"],
        "online_ewc": ["--model.ewc_lambda=0"],
    }
    for name, more in names.items():
        run(monkeypatch, "fit", *TWO, f"--model.consolidation={name}", f"--name={name}", *more)
    results = [weights(Path(f"runs/{name}/version_0/checkpoints/last.ckpt")) for name in names]
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


def test_the_posterior_of_a_task_is_the_prior_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    vcl = [
        *TWO,
        "--data.task_conditioning=heads",
        "--model.consolidation=vcl",
        "--model.bayesian=all",
        "--model.ewc_lambda=null",
    ]
    run(monkeypatch, "fit", *vcl, "--trainer.max_epochs=2")
    state = weights(Path("runs/continual/version_0/checkpoints/last.ckpt"))
    means = [name for name in state if name.startswith("twin.") and name.endswith("weight_mu")]
    assert means
    to_come = ("twin.actors.2.", "twin.actors.3.", "twin.critics.2.", "twin.critics.3.")
    assert sum(name.startswith(to_come) for name in means) == 4
    for name in means:
        stem = name.removesuffix("weight_mu")
        if name.startswith(to_come):  # heads of the second task believe what they always did
            assert not state[f"{stem}prior_mean"].any()
            assert (state[f"{stem}prior_precision"] == 10).all()
            continue
        assert torch.equal(state[f"{stem}prior_mean"], state[name])
        log_var = state[f"{stem}weight_log_var"].clamp(-11, 11)
        torch.testing.assert_close(state[f"{stem}prior_precision"], (-log_var).exp())
    run(monkeypatch, "fit", *vcl, "--ckpt_path=last")
    later = weights(Path("runs/continual/version_0/checkpoints/end_of_task_epoch=1.ckpt"))
    assert all(torch.equal(state[name], later[name]) for name in means)


def test_a_checkpoint_of_other_tasks_is_refused_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "fit", *TWO, "--trainer.max_epochs=1")
    capsys.readouterr()
    other = "--data.tasks=[MinAtar/Freeway-v1, MinAtar/Breakout-v1]"
    for command in ("fit", "validate"):
        line = error_of(monkeypatch, capsys, command, *TWO, "--ckpt_path=last", other)
        assert "data.tasks" in line
        assert "MinAtar/Breakout-v1" in line
    line = error_of(monkeypatch, capsys, "fit", *TWO, "--ckpt_path=last", "--data.frames_per_task=400")
    assert "data.frames_per_task" in line
    run(monkeypatch, "fit", *TWO, "--ckpt_path=last", "--trainer.max_epochs=2")


def test_critics_begin_anew_where_they_are_told_to() -> None:
    module = agent("none", critic_at_switch="reset", optimizer_at_switch="reset", critic_lr=1.0)
    optimizer = torch.optim.AdamW(parameter_groups(module.twin, {"actor": 1e-2, "critic": 1e-2}, 0.0))
    module._trainer.optimizers = [optimizer]  # type: ignore[union-attr]
    module.training_step(batch_of(0), 0).backward()
    optimizer.step()
    before = copy.deepcopy(module.twin.state_dict())
    module._reset_for_task()
    assert not optimizer.state
    for name, value in module.twin.state_dict().items():
        drawn = name.startswith("critics") and "bias" not in name
        assert torch.equal(value, before[name]) != drawn or "bias" in name, name
        if name.startswith("critics"):
            assert torch.equal(value, module.target_twin.state_dict()[name])


def test_the_data_module_says_what_the_networks_have_to_know() -> None:
    data = ReplayDataModule(
        tasks=MINATAR, frames_per_task=200_000, task_conditioning="heads", frame_skip=1, frame_stack=2
    )
    assert (data.num_tasks, data.task_conditioning, data.num_actions) == (3, "heads", 6)
    assert data.observation_shape == (34, 10, 10)
    assert [games.task for games in data.val_dataloader()] == [0, 1, 2]
    seeds = [tuple(games.seeds) for games in data.val_dataloader()]
    assert len(set(seeds)) == 3
    assert data.curriculum.epochs == 2
    assert set(data.hparams) >= resume.NETWORKS
