"""Runs of two processes: in parts as in one go, their checkpoints, and what the command line refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_rl.cli.arguments import with_bundled_configs
from bayes_rl.errors import ConfigError
from bayes_rl.training.checkpoint_io import (
    AtomicCheckpointIO,
    load_verified,
    manifest_of,
    read_manifest,
    read_rank_file,
    write_rank_file,
)
from bayes_rl.utils.files import remove_temporaries
from tests.helpers.command_line import SHORTEST, error_of, run
from tests.helpers.equal_runs import checkpoint, comparable_curves, differences, of_ranks
from tests.helpers.killed_saves import killed_at
from tests.helpers.rank_fits import CALL, SHORT, TWO
from tests.helpers.rank_process import call_on_ranks
from tests.helpers.slow_cases import slow_but

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=5"]
MINATAR = [
    *("fit", *QUIET, *TWO, "--data.num_envs=4", "--data.replay.capacity=2000", "--data.replay.min_size=100"),
    *("--data.replay.batch_size=8", "--data.evaluation.games=2", "--data.rules.max_episode_frames=200"),
    *("--model.network.hidden_dim=16", "--name=game"),
]
RUNS = {
    "members": [*SHORT, "--model.posterior.family=members", "--model.exploration=both"],
    "process": [
        *(*SHORT, "--model.network.bayesian=gaussian_process", "--model.network.prior_function_scale=1"),
        *("--model.objective.update_pairs=random", "--model.network.random_features=8"),
    ],
    "every_weight": [*SHORT, "--model.network.bayesian=none", "--model.optimizer.family=ivon"],
    "tasks": [
        *(*MINATAR, "--data.tasks=[MinAtar/Breakout-v1, MinAtar/Asterix-v1, MinAtar/Freeway-v1]"),
        *("--data.frame_stack=1", "--data.rules.frame_skip=1", "--model.network.encoder=minatar"),
        *("--data.frames_per_epoch=200", "--data.curriculum.frames_per_task=200"),
        *("--data.curriculum.keep_replays=true", "--data.curriculum.task_conditioning=heads"),
        *("--model.consolidation.method=online_ewc", "--model.consolidation.fisher_samples=50"),
    ],
}
"""Words of runs of two ranks, three epochs long."""


@pytest.mark.parametrize("name", slow_but(RUNS))
def test_one_epoch_and_two_more_are_three_in_one_go_on_both_ranks(name: str, tmp_path: Path) -> None:
    words, parts = RUNS[name], str(tmp_path / "parts")
    commands = [
        (str(tmp_path / "straight"), [*words, "--trainer.max_epochs=3"]),
        (parts, [*words, "--trainer.max_epochs=1"]),
        (parts, ["fit", "--ckpt_path=last", *TWO, "--trainer.max_epochs=3"]),
    ]
    found = call_on_ranks(2, CALL, tmp_path, commands)
    assert found[0][0]["cores"] == len(os.sched_getaffinity(0)) // 2
    agents = [[done["agent"] for done in of_rank] for of_rank in found]
    assert agents[0] == agents[1]
    assert agents[0][0] == agents[0][2] != agents[0][1]
    straight, resumed = (tmp_path / folder / "runs/game/version_0" for folder in ("straight", "parts"))
    assert differences(checkpoint(straight), checkpoint(resumed)) == []
    first, second = of_ranks(straight), of_ranks(resumed)
    assert differences(first, second) == []
    assert not torch.equal(first[0]["data"]["stream"]["stack"], first[1]["data"]["stream"]["stack"])
    assert differences(comparable_curves(straight), comparable_curves(resumed)) == []


@pytest.mark.slow
def test_four_ranks_train_and_stay_equal(tmp_path: Path) -> None:
    """Four processes of two environments each: one agent, the games of a validation shared out, one checkpoint."""
    words = [*SHORT, "--trainer.devices=4", "--data.num_envs=8", "--data.replay.capacity=800"]
    found = [of_rank[0] for of_rank in call_on_ranks(4, CALL, tmp_path, [(str(tmp_path), words)])]
    assert all(differences(found[0], other) == [] for other in found[1:])
    assert found[0]["test/games"] == 4
    states = of_ranks(tmp_path / "runs/game/version_0")
    assert [state["data"]["rank"] for state in states] == [0, 1, 2, 3]
    stacks = [state["data"]["stream"]["stack"] for state in states]
    assert not any(torch.equal(a, b) for i, a in enumerate(stacks) for b in stacks[:i])


VALIDATION = ["validate", "--data.evaluation.games=12", *TWO]


@pytest.fixture(scope="module")
def run_and_validation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run of two ranks, and what each rank says of a validation of the last checkpoint."""
    folder = tmp_path_factory.mktemp("two")
    last = folder / "runs/game/version_0/checkpoints/last.ckpt"
    commands = [(str(folder), SHORT), (str(folder / "validated"), [*VALIDATION, f"--ckpt_path={last}"])]
    found = call_on_ranks(2, CALL, folder, commands)  # one group of processes: each takes seconds to begin
    return folder, [of_rank[1] for of_rank in found]


@pytest.fixture(scope="module")
def finished(run_and_validation: tuple[Path, list[dict[str, Any]]]) -> Path:
    """The folder of a run of two ranks."""
    return run_and_validation[0]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The last checkpoint of a copy of the run of two ranks."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path / "runs/game/version_0/checkpoints/last.ckpt"


def test_another_number_of_ranks_is_refused_and_can_collect_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["fit", "--ckpt_path=runs/game/version_0/checkpoints/last.ckpt", "--trainer.devices=1", *QUIET]
    line = error_of(monkeypatch, capsys, *resume, "--trainer.max_epochs=3")
    assert "--trainer.devices: '1' is not as many ranks as have saved" in line
    assert "nearest: 2 ranks" in line
    assert "--data.refill_replay true" in line
    done = run(monkeypatch, *resume, "--trainer.max_epochs=3", "--data.refill_replay=true")
    assert done.trainer.global_step == 60
    assert done.datamodule.stream.updates == 60
    (entry,) = read_manifest(copied)
    assert "ranks" not in entry
    assert not list(copied.parent.glob("last.rank*"))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_games_are_shared_out_and_joined(
    ranks: int,
    run_and_validation: tuple[Path, list[dict[str, Any]]],
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every score, coverage, correlation and area of all ranks is that of one process, and on all the same."""
    words = [*VALIDATION, f"--ckpt_path={copied}", f"--trainer.devices={ranks}"]
    found = run_and_validation[1]
    if ranks != 2:
        found = [of_rank[0] for of_rank in call_on_ranks(ranks, CALL, tmp_path, [(str(tmp_path), words)])]
    first, *others = map(dict, found)
    alone = run(monkeypatch, *words, "--trainer.devices=1").trainer.callback_metrics
    for other in others:
        assert differences(first, other) == []
    del first["agent"], first["cores"]
    assert first["val/games"] == 12
    assert {"val/return_iqm", "val/coverage_90", "val/novelty_auroc_noise", "val/error_correlation_low"} <= {*first}
    assert first == pytest.approx({key: float(value) for key, value in alone.items()}, abs=1e-6, rel=1e-6, nan_ok=True)


def test_a_checkpoint_without_its_manifest_does_not_count(copied: Path) -> None:
    """The file and the states of both ranks are whole; without the manifest they are not one checkpoint."""
    assert read_rank_file(copied, 0)["data"]["rank"] == 0
    assert read_rank_file(copied, 1)["data"]["rank"] == 1
    manifest_of(copied).unlink()
    with pytest.raises(ConfigError, match=r"no manifest last\.ckpt\.json that seals the state of its ranks"):
        read_rank_file(copied, 1)


def test_a_state_of_a_rank_that_is_missing_or_changed_is_refused(copied: Path) -> None:
    (file,) = copied.parent.glob("last.rank1.*.state")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match="not what was saved"):
        read_rank_file(copied, 1)
    file.unlink()
    with pytest.raises(ConfigError, match=r"lacks the file last\.rank1"):
        read_rank_file(copied, 1)


@pytest.mark.slow
def test_a_kill_while_ranks_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before every operation on a file: what the checkpoint holds is one save, of both ranks."""
    moment, was_killed, seen = 0, True, set()
    while was_killed:
        path = tmp_path / f"{moment}/last.ckpt"

        def save(number: int, path: Path = path) -> None:
            seals = [write_rank_file(path, rank, {"number": number, "rank": rank}) for rank in range(2)]
            AtomicCheckpointIO().save_checkpoint({"number": number}, path, {"ranks": seals})

        save(1)
        was_killed = killed_at(moment, monkeypatch, lambda save=save: save(2))  # type: ignore[misc]
        number = load_verified(path)[0]["number"]
        seen.add((number, was_killed))
        assert [read_rank_file(path, rank) for rank in range(2)] == [{"number": number, "rank": r} for r in range(2)]
        save(3)
        assert load_verified(path)[0]["number"] == 3
        assert len(list(path.parent.glob("*.state"))) == 2
        remove_temporaries(path.parent)
        AtomicCheckpointIO().remove_checkpoint(path)
        assert not list(path.parent.iterdir())
        moment += 1
    assert moment > 12
    assert seen == {(1, True), (2, True), (2, False)}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--trainer.devices=4"], "--data.num_envs: 2 is not divided by 4 ranks; nearest: 4"),
        (["--data.replay.batch_size=5"], "--data.replay.batch_size: 5 is not divided by 2 ranks; nearest: 4"),
        (["--data.replay.capacity=501"], "--data.replay.capacity: 501 is not divided by 2 ranks; nearest: 500"),
        (["--data.evaluation.games=3"], "--data.evaluation.games: 3 is not divided by 2 ranks; nearest: 4"),
        (["--model.compile=cudagraphs"], "--model.compile: 'cudagraphs' records"),
        (["--trainer.strategy=ddp_spawn"], "--trainer.strategy: 'ddp_spawn' starts processes of its own"),
        (["--trainer.num_nodes=2", "--trainer.devices=1", "--data.num_envs=3"], "--data.num_envs: 3 is not divided by"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_what_ranks_cannot_share_is_refused_before_they_start(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in error_of(monkeypatch, capsys, *SHORT, *words)


def test_ranks_that_torchrun_has_started_must_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise each of them would train an agent of its own."""
    started = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**started, "TORCHELASTIC_RUN_ID": "a"}.items():
        monkeypatch.setenv(name, str(value))
    line = error_of(monkeypatch, capsys, "fit", *SHORTEST, "--trainer.accelerator=cpu")
    assert "--trainer.devices: 'auto' is not what torchrun has started, 2 processes" in line
    assert "nearest: --trainer.devices 2 --trainer.num_nodes 1" in line


def test_a_folder_of_runs_is_no_configuration() -> None:
    """Rank 0 makes the folder of a run before the other ranks read the words."""
    Path("minatar").mkdir()
    (word,) = with_bundled_configs(["--config=minatar"])
    assert word.endswith("configs/minatar.yaml")
