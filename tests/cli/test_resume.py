"""A run in parts is the same run: every number of its checkpoint, curves, table and replay."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import CSVLogger

from bayes_rl.cli import main
from bayes_rl.cli.app import BayesCLI
from tests.helpers.command_line import ROOT, error_of, run
from tests.helpers.equal_runs import checkpoint, comparable_curves, differences, referenced
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=5"]
SMALL = ["--data.replay.capacity=2000", "--data.replay.min_size=100", "--data.replay.batch_size=8", "--data.num_envs=4"]
SMALL += ["--model.network.hidden_dim=16", "--data.evaluation.games=2", "--data.rules.max_episode_frames=400"]
OFTEN = ["--data.updates_per_step=0.25"]
GAMES = {
    "breakout": ["--config", str(ROOT / "configs/quickstart.yaml"), "--data.frames_per_epoch=800", *OFTEN],
    "minatar": ["--config", str(ROOT / "configs/minatar.yaml"), "--data.frames_per_epoch=200"],
    "cartpole": ["--config", str(ROOT / "configs/cartpole.yaml"), "--data.frames_per_epoch=200"],
    "every_weight": [
        *("--config", str(ROOT / "configs/minatar_ivon.yaml"), "--data.frames_per_epoch=200"),
        "--model.exploration=thompson",
    ],
}


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> BayesCLI:
    """Do what `bayes-rl WORDS` does in a folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return run(monkeypatch, *words)


# ------------------------------------------------------------------------------------------------------- in parts
@pytest.mark.parametrize("game", slow_but(GAMES, "minatar"))
def test_one_epoch_and_two_more_are_three_in_one_go(game: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*GAMES[game], *QUIET, *SMALL, "--trainer.precision=32-true", "--name=game"]
    run_in(tmp_path / "straight", monkeypatch, "fit", *options, "--trainer.max_epochs=3")
    run_in(tmp_path / "parts", monkeypatch, "fit", *options, "--trainer.max_epochs=1")
    run_in(tmp_path / "parts", monkeypatch, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    straight, parts = (tmp_path / name / "runs/game/version_0" for name in ("straight", "parts"))
    assert differences(checkpoint(straight), checkpoint(parts)) == []
    assert differences(comparable_curves(straight), comparable_curves(parts)) == []
    assert {"val/novelty_auroc_noise", "val/error_correlation_low"} <= set(comparable_curves(parts))
    one, two = (np.load(run / "metrics.npy") for run in (straight, parts))
    assert one.dtype == two.dtype
    assert one.tobytes() == two.tobytes()
    a, b = referenced(straight), referenced(parts)
    assert {"screens", "actions", "rewards", "flags", "ages"} == {name.split(".")[0] for name in a}
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_scheduled_step_sizes_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = ["--model.optimizer.schedule=cosine", "--model.optimizer.warmup_frames=90"]
    options = [*GAMES["cartpole"], *QUIET, *SMALL, *schedule, "--model.optimizer.decay_frames=200", "--name=game"]
    run_in(tmp_path / "straight", monkeypatch, "fit", *options, "--trainer.max_epochs=2")
    run_in(tmp_path / "parts", monkeypatch, "fit", *options, "--trainer.max_epochs=1")
    run_in(tmp_path / "parts", monkeypatch, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    straight, parts = (tmp_path / name / "runs/game/version_0" for name in ("straight", "parts"))
    assert differences(checkpoint(straight), checkpoint(parts)) == []
    logged = comparable_curves(straight)
    assert differences(logged, comparable_curves(parts)) == []
    for name in ("train/actor_lr", "train/critic_lr"):
        rates = [value for _, value in logged[name]]
        highest = rates.index(max(rates))
        assert 0 < highest < len(rates) - 1
        assert rates == [*sorted(rates[:highest]), *sorted(rates[highest:], reverse=True)]


def test_the_walk_sees_every_kind_of_difference() -> None:
    tree = {"a": [torch.zeros(2), {"b": 1}], "c": (1.5, "x"), "d": None}
    assert differences(tree, tree) == []
    for other in (
        {**tree, "a": [torch.ones(2), {"b": 1}]},
        {**tree, "a": [torch.zeros(2).double(), {"b": 1}]},
        {**tree, "a": [torch.zeros(2), {"b": 2}]},
        {**tree, "c": (1.5, "x", 1)},
        {**tree, "d": 0},
        {**tree, "e": 0},
    ):
        assert len(differences(tree, other)) == 1


# ------------------------------------------------------------------------------------------------ what is typed
@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one epoch, moved after the run: the paths that the run has seen lead nowhere."""
    ran = tmp_path_factory.mktemp("one_epoch") / "ran"
    options = [*GAMES["cartpole"], *QUIET, *SMALL, "--name=game", "--trainer.max_epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        run_in(ran, patch, "fit", *options, f"--trainer.default_root_dir={ran / 'runs'}")
    return ran.rename(ran.with_name("kept"))


@pytest.fixture
def small(one_epoch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a copy of a run of one epoch."""
    here = tmp_path / "here"
    shutil.copytree(one_epoch, here)
    monkeypatch.chdir(here)
    yield here
    assert [path.name for path in one_epoch.parent.iterdir()] == ["kept"], "the test wrote where the run was"


def test_what_differs_from_the_checkpoint_is_named_and_has_to_be_meant(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["fit", "--ckpt_path=last", "--trainer.max_epochs=2"]
    line = error_of(
        monkeypatch,
        capsys,
        *more,
        "--data.replay.n_step=3",
        "--model.objective.tau=0.5",
        "--data={replay: {gamma: 0.5}}",
        "--model.likelihood.value_range=[-10.0,10.0]",
    )
    assert "value_range" not in line  # a list is what a checkpoint makes of a tuple
    for word in (
        "data.replay.n_step: 5 in the checkpoint, 3 typed",
        "model.objective.tau: 0.01",
        "data.replay.gamma: 0.99",
        "--allow_overrides",
    ):
        assert word in line
    for option in ("--model.network.hidden_dim=8", "--data.num_envs=2", "--seed_everything=7", "--data.env=Acrobot-v1"):
        line = error_of(monkeypatch, capsys, *more, "--allow_overrides", "--data.replay.n_step=3", option)
        assert option[2:].split("=")[0] in line
        assert "new run" in line
    before = torch.load(small / "runs/game/version_0/checkpoints/last.ckpt", weights_only=True)
    small.rename(tmp_path / "there")  # as on another machine: no path of the old one is used
    monkeypatch.chdir(tmp_path / "there")
    typed = ["--data.replay.n_step=3", "--allow_overrides", "--trainer.gradient_clip_val=5"]
    resumed = run_in(tmp_path / "there", monkeypatch, *more, *typed)
    assert (resumed.datamodule.hparams.replay["n_step"], resumed.trainer.gradient_clip_val) == (3, 5)
    printed = capsys.readouterr().out
    assert "data.replay.n_step: 5 in the checkpoint, 3 typed\n" in printed
    assert "trainer.gradient_clip_val: 10 in the run's config.yaml, 5" in printed
    assert sorted(tmp_path.iterdir()) == [tmp_path / "there"]
    best = resumed.trainer.checkpoint_callback  # it has not forgotten the score to beat
    assert best.best_model_score >= next(
        s["best_model_score"] for s in before["callbacks"].values() if s.get("monitor")
    )
    assert Path(best.best_model_path) == tmp_path / "there/runs/game/version_0/checkpoints/best.ckpt"
    played = run_in(tmp_path / "there", monkeypatch, "validate", "--ckpt_path=last", "--data.evaluation.games=3")
    assert (played.datamodule.evaluation.games, played.datamodule.replay_settings.n_step) == (3, 3)
    assert "  games                   3.00" in capsys.readouterr().out


def test_a_lost_replay_is_collected_again_once(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["fit", "--ckpt_path=last", "--trainer.max_epochs=2"]
    for file in (small / "runs/game/version_0/replay/rank0").iterdir():
        file.unlink()
    monkeypatch.setattr(sys, "argv", ["bayes-rl", *more])
    with pytest.raises(SystemExit) as stop:  # found when the state is restored, after the first lines of a run
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data.refill_replay true" in line
    assert run_in(small, monkeypatch, *more, "--data.refill_replay=true").datamodule.refill_replay
    assert not run_in(small, monkeypatch, "fit", "--ckpt_path=last", "--trainer.max_epochs=3").datamodule.refill_replay


# ------------------------------------------------------------------------------------------- what a resume remembers
def exit_code_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """Do what `bayes-rl WORDS` does, and return the code with which the command exits."""
    monkeypatch.setattr(sys, "argv", ["bayes-rl", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


TYPED_ONCE = [
    *("--trainer.max_epochs=2", "--trainer.max_steps=90000", "--trainer.max_time=01:00:00:00"),
    *("--trainer.gradient_clip_val=0.5", "--trainer.gradient_clip_algorithm=value", "--trainer.precision=bf16-mixed"),
    *("--trainer.limit_val_batches=1.0", "--trainer.detect_anomaly=true", "--trainer.num_sanity_val_steps=1"),
    *("--trainer.val_check_interval=0.5", "--trainer.log_every_n_steps=7", "--trainer.min_epochs=1"),
    *("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/games", "--trainer.callbacks.patience=99"),
    *("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv"),
]


def test_every_trainer_option_typed_on_a_resume_holds_for_the_next_one(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small / "runs/game/version_0/config.yaml"
    first = run_in(small, monkeypatch, "fit", "--ckpt_path=last", "--name=game", *TYPED_ONCE)
    remembered = yaml.safe_load(config.read_text())
    assert (remembered["ckpt_path"], remembered["data"]["refill_replay"]) == (None, False)
    next_fit = run_in(small, monkeypatch, "fit", "--ckpt_path=last", "--name=game", "--trainer.max_epochs=3")
    trainers = [dict(program.config["fit"]["trainer"].as_dict(), max_epochs=0) for program in (first, next_fit)]
    assert trainers[0] == trainers[1]
    assert (next_fit.trainer.gradient_clip_val, next_fit.trainer.log_every_n_steps) == (0.5, 7)  # type: ignore[attr-defined]
    assert isinstance(next_fit.trainer.logger, CSVLogger)
    assert any(isinstance(c, EarlyStopping) for c in next_fit.trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ([], "1 epochs are trained and --trainer.max_epochs is 1: nothing is left; nearest: 2"),
        (["--trainer.max_epochs=0"], "1 epochs are trained and --trainer.max_epochs is 0: nothing is left; nearest: 2"),
        (
            ["--trainer.max_epochs=9", "--trainer.max_steps=7"],
            "50 updates are trained and --trainer.max_steps is 7: nothing is left; nearest: 51",
        ),
    ],
)
def test_a_run_at_its_limit_says_so_and_trains_nothing(
    small: Path, typed: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small)
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    assert exit_code_of(monkeypatch, "fit", "--ckpt_path=last", "--name=game", *typed) == 0
    assert capsys.readouterr().out == f"runs/game/version_0/checkpoints/last.ckpt: {line}\n"
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before


def test_a_run_at_its_limit_of_time_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["--trainer.max_time=00:00:00:01", "--trainer.max_epochs=-1"]
    run_in(tmp_path, monkeypatch, "fit", *GAMES["cartpole"], *QUIET, *SMALL, "--name=game", *limit)
    capsys.readouterr()
    assert exit_code_of(monkeypatch, "fit", "--ckpt_path=last", "--name=game") == 0
    assert "seconds are trained and --trainer.max_time is 00:00:00:01: nothing is left" in capsys.readouterr().out


class FailingAtOnce(Callback):
    """Callback that raises an error before the first update."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        raise ValueError("this callback cannot begin")


def test_options_that_end_a_resumed_run_at_once_are_not_remembered(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small)
    config = small / "runs/game/version_0/config.yaml"
    before = config.read_bytes()
    monitor = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/nothing"]
    for typed in (monitor, [f"--trainer.callbacks={__name__}.FailingAtOnce"]):
        assert exit_code_of(monkeypatch, "fit", "--ckpt_path=last", "--trainer.max_epochs=2", *typed) == 2
        assert config.read_bytes() == before


# ------------------------------------------------------------------------------------------------------- signals
def learning(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A fit in a process of its own, once it has logged updates."""
    curves = folder / "runs/game/version_0"
    before = set(curves.glob("events*"))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "fit", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(process, "device ")
    while not any(file.stat().st_size > 20_000 for file in set(curves.glob("events*")) - before):
        assert process.poll() is None
        time.sleep(0.005)
    return process


def until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if text in line:
            return
    raise AssertionError("".join(printed))


def test_sigterm_saves_and_a_second_ctrl_c_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    last = tmp_path / "runs/game/version_0/checkpoints/last.ckpt"
    # One epoch of many minutes, so that every signal comes in its updates.
    options = ["--config", str(ROOT / "configs/cartpole.yaml"), "--name=game", "--data.frames_per_epoch=400_000"]
    process = learning(tmp_path, *options, *QUIET, *SMALL)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert "saved" in printed
    assert torch.load(last, weights_only=True)["global_step"] > 0
    kept = last.read_bytes()
    process = learning(tmp_path, "--ckpt_path=last")
    process.send_signal(signal.SIGSTOP)  # until both signals wait: no update ends between them
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode in (130, 143), printed
    assert "once more to leave at once" in printed
    assert "saved" not in printed
    assert last.read_bytes() == kept


@pytest.mark.slow
def test_an_interrupted_extension_goes_on_by_the_advised_command(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--trainer.max_epochs=40", "--trainer.gradient_clip_val=3"]
    process = learning(small, "--ckpt_path=last", *more)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "go on with --ckpt_path last" in printed
    before = checkpoint(small / "runs/game/version_0")["global_step"]
    resumed = run_in(small, monkeypatch, "fit", "--ckpt_path", "last")
    assert before < resumed.trainer.global_step == 40 * 50
    assert (resumed.trainer.current_epoch, resumed.trainer.max_epochs) == (40, 40)
    assert resumed.trainer.gradient_clip_val == 3
