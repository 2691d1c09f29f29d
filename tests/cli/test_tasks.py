"""Several games in turn by the command line: whole runs, resumed runs, refused checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.command_line import TWO_TASKS as OFTEN_UPDATED
from tests.helpers.command_line import curves, error_of, run, weights

pytestmark = pytest.mark.usefixtures("shared_parser")

TWO_TASKS = [
    *(*OFTEN_UPDATED, "--data.updates_per_step=0.05", "--model.consolidation.fisher_samples=8"),
    "--data.evaluation.games=1",
]
"""Options of a run of two tasks with few updates and games: these tests are about what happens between tasks."""


def test_a_sequence_plays_all_tasks_and_keeps_an_agent_of_each_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = run(monkeypatch, "fit", *TWO_TASKS)
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
    run(monkeypatch, "validate", *TWO_TASKS, "--ckpt_path=last")
    printed = capsys.readouterr().out
    assert "MinAtar-Breakout-v1" in printed
    assert "MinAtar-Freeway-v1" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--model.consolidation.method=online_ewc", "--data.curriculum.task_conditioning=heads"],
        pytest.param(
            [
                "--model.consolidation.method=vcl",
                "--model.network.bayesian=all",
                "--data.curriculum.task_conditioning=gains",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                *(
                    "--model.consolidation.method=ewc",
                    "--model.consolidation.fisher=empirical",
                    "--model.consolidation.protected_networks=actor",
                ),
                *(
                    "--data.curriculum.keep_replays=true",
                    "--model.consolidation.critic_at_switch=reset",
                    "--data.curriculum.epsilon_at_switch=continue",
                ),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["online", "vcl", "rehearsal"],
)
def test_a_run_resumed_before_or_after_a_switch_equals_the_uninterrupted_one(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles = [*TWO_TASKS, *options, "--data.curriculum.frames_per_task=400", "--data.curriculum.cycles=2"]
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


@pytest.mark.slow
def test_a_strength_of_0_is_bitwise_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "none": ["--model.consolidation.ewc_lambda=null"],
        "ewc": ["--model.consolidation.ewc_lambda=0"],
        "online_ewc": ["--model.consolidation.ewc_lambda=0"],
    }
    two = [word for word in TWO_TASKS if "fisher_samples" not in word]  # without a penalty there is no Fisher
    for name, more in names.items():
        run(monkeypatch, "fit", *two, f"--model.consolidation.method={name}", f"--name={name}", *more)
    results = [weights(Path(f"runs/{name}/version_0/checkpoints/last.ckpt")) for name in names]
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


def test_the_posterior_of_a_task_is_the_prior_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    vcl = [
        *TWO_TASKS,
        "--data.curriculum.task_conditioning=heads",
        "--model.consolidation.method=vcl",
        "--model.network.bayesian=all",
        "--model.consolidation.ewc_lambda=null",
        "--data.curriculum.frames_per_task=400",
    ]
    run(monkeypatch, "fit", *vcl, "--trainer.max_epochs=1")
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
    later = weights(Path("runs/continual/version_0/checkpoints/end_of_task_epoch=0.ckpt"))
    assert all(torch.equal(state[name], later[name]) for name in means)


def test_a_checkpoint_of_other_tasks_is_refused_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "fit", *TWO_TASKS, "--trainer.max_epochs=1")
    capsys.readouterr()
    other = "--data.tasks=[MinAtar/Freeway-v1, MinAtar/Breakout-v1]"
    for command in ("fit", "validate"):
        line = error_of(monkeypatch, capsys, command, *TWO_TASKS, "--ckpt_path=last", other)
        assert "data.tasks" in line
        assert "MinAtar/Breakout-v1" in line
    line = error_of(monkeypatch, capsys, "fit", *TWO_TASKS, "--ckpt_path=last", "--data.curriculum.frames_per_task=400")
    assert "data.curriculum.frames_per_task" in line
    run(monkeypatch, "fit", *TWO_TASKS, "--ckpt_path=last", "--trainer.max_epochs=2")
