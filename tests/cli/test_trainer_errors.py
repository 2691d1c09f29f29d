"""Errors of parts of the trainer: one line with key and value, and nothing that was learned is lost."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from bayes_rl.cli import app, main
from bayes_rl.cli.arguments import whole_numbers
from tests.helpers.command_line import SHORTEST, UPDATES, error_of, run
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")


class Failing(pl.Callback):
    """Callback that raises an error in one of its hooks, once there were `after` updates."""

    def __init__(self, hook: str, after: int) -> None:
        def fail(trainer: Any, *_: Any) -> None:
            if trainer.global_step >= after:
                raise ZeroDivisionError("nothing can be divided by nothing")

        setattr(self, hook, fail)


FAILURES = {
    "on_train_batch_end": (7, 7),
    "on_validation_start": (20, 20),
    "on_validation_end": (20, 20),
    "on_train_epoch_end": (20, 20),
    "on_train_epoch_start": (20, 20),
    "on_train_end": (40, 40),
}
"""Hook to the updates after which the hook fails, and the updates that are saved."""


MONITOR = ["--trainer.callbacks=EarlyStopping"]


@pytest.mark.parametrize("hook", slow_but(FAILURES, "on_train_batch_end", "on_validation_end"))
def test_an_error_of_a_callback_is_one_line_and_loses_no_update(
    hook: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after, kept = FAILURES[hook]
    words = [f"--trainer.callbacks={__name__}.Failing", f"--trainer.callbacks.hook={hook}"]
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *SHORTEST, *words, f"--trainer.callbacks.after={after}"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("bayes-rl: error: ")]
    assert line.startswith("bayes-rl: error: --trainer.callbacks: 'Failing' is refused: nothing can be divided")
    last = Path("runs/game/version_0/checkpoints/last.ckpt")
    assert str(last) in line
    assert torch.load(last, weights_only=True)["global_step"] == kept
    more = ["--trainer.callbacks=null", "--trainer.max_epochs=3", "--trainer.enable_progress_bar=false"]
    assert run(monkeypatch, "fit", "--ckpt_path=last", *more).trainer.global_step == 3 * UPDATES


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        (["--trainer.accelerator=gpu"], "--trainer.accelerator: 'gpu' "),
        (["--trainer.strategy=ddp_spawn"], "--trainer.strategy: 'ddp_spawn' "),
        (
            ["--trainer.logger=WandbLogger"],
            "--trainer.logger: 'WandbLogger' needs a module that is not",
        ),
        (["--trainer.logger=CSVLogger"], "--trainer.logger: 'CSVLogger' needs an argument: "),
        (["--trainer.val_check_interval=500"], "--trainer.val_check_interval: 500 is more than the 20 updates"),
        (["--trainer.default_root_dir=a_file"], "--trainer.default_root_dir: 'a_file' cannot be written to: "),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=x"],
            "--trainer.callbacks: 'EarlyStopping' ",
        ),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/return_man"],
            "--trainer.callbacks: 'EarlyStopping' monitors 'val/return_man', which this fit does not log",
        ),
        (["--trainer.max_time=5"], "--trainer.max_time: '5' is refused: "),
        (["--trainer.accelerator=tpu"], "--trainer.accelerator: 'tpu' is refused: "),
        (
            [*MONITOR, "--trainer.callbacks.monitor=val/crps", "--trainer.callbacks.mode=up"],
            "--trainer.callbacks: 'EarlyStopping' is refused: `mode` can be min, max, got up",
        ),
        (
            [*MONITOR, "--trainer.callbacks.monitor=val/crps", "--trainer.limit_val_batches=0"],
            "--trainer.callbacks: 'EarlyStopping' monitors 'val/crps', which this fit does not log",
        ),
        (
            [*MONITOR, "--trainer.callbacks.monitor=train/nll", "--trainer.log_every_n_steps=0"],
            "--trainer.callbacks: 'EarlyStopping' monitors 'train/nll', which this fit does not log",
        ),
        (["--data.rules.crop=3"], "--data.rules.crop: '3' is no [int, int, int, int] or null"),
        (["--model.likelihood.value_range=3"], "--model.likelihood.value_range: "),
        (["--data.replay.n_step=few"], "--data.replay.n_step: 'few' is no int"),
        (["--data.replay.n_step=2.5e0"], "--data.replay.n_step: '2.5' is no int"),
    ],
)
def test_the_error_names_the_key_that_was_typed(
    words: list[str], beginning: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a_file").write_text("")
    if torch.cuda.is_available() and "gpu" in words[0]:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(pl.Trainer, "_run", lambda *_, **__: pytest.fail("training began"))
    line = error_of(monkeypatch, capsys, "fit", *SHORTEST, *words).removeprefix("bayes-rl: error: ")
    assert line.startswith(beginning), line
    assert not re.search("Union|Namespace|Parser key|<class|Not a valid subclass", line), line


def test_the_closing_table_names_places_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_epoch = [*SHORTEST, "--trainer.max_epochs=1"]
    run(monkeypatch, "fit", *one_epoch, "--trainer.logger=false")
    assert "TensorBoard" not in capsys.readouterr().out
    run(monkeypatch, "fit", *one_epoch, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=curves")
    printed = capsys.readouterr().out
    assert "TensorBoard" not in printed
    (place,) = re.findall(r"^CSV +(\S+)$", printed, re.M)
    assert (Path(place) / "metrics.csv").is_file()


def test_whole_numbers_with_an_exponent_and_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("data:\n  replay: {capacity: 2e3}\n")
    monkeypatch.setenv("BAYES_RL_FIT__DATA__REPLAY__N_STEP", "7e0")
    monkeypatch.setenv("BAYES_RL_FIT__TRAINER__MAX_EPOCHS", "9")
    configs: list[Any] = []

    def keep(self: app.BayesCLI) -> None:
        configs.append(self.config["fit"])
        raise SystemExit(0)

    monkeypatch.setattr(app.BayesCLI, "before_instantiate_classes", keep)
    typed = ["--data.frames_per_epoch=1.2e2", "--data.replay.gamma=1e-1", "--trainer.log_every_n_steps", "2e1"]
    with pytest.raises(SystemExit):
        run(monkeypatch, "fit", *SHORTEST, "--config=mine.yaml", *typed)
    data, trainer = configs[0].data, configs[0].trainer
    assert (data.frames_per_epoch, data.replay.capacity, data.replay.gamma, data.replay.n_step) == (120, 2000, 0.1, 7)
    assert whole_numbers("{a: 1e3, b: '1e3', c: 1e-3, d: 2.5e0}") == "{a: 1000, b: '1e3', c: 1e-3, d: 2.5e0}"
    assert trainer.log_every_n_steps == 20
    assert trainer.max_epochs == 2  # the command line wins over the environment


def test_an_environment_variable_that_names_no_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_RL_FIT__TRAINER__MAX_EPOCH", "3")
    line = error_of(monkeypatch, capsys, "fit", *SHORTEST)
    assert "--trainer.max_epoch: '3' names no option; nearest: 'trainer.max_epochs'" in line
    assert "BAYES_RL_FIT__TRAINER__MAX_EPOCH" in line


def test_an_environment_variable_without_a_verb_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_RL_VALIDATE__NAME", "of another verb")
    monkeypatch.setenv("BAYES_RL_NAME", "zz")
    line = error_of(monkeypatch, capsys, "fit", *SHORTEST)
    assert "--name: 'zz' is set for no verb (environment variable BAYES_RL_NAME)" in line
    assert line.endswith("; nearest: 'BAYES_RL_FIT__NAME'")


@pytest.mark.parametrize("precision", ["17", "16", "64-true"])
def test_only_precisions_that_work_are_proposed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    line = error_of(monkeypatch, capsys, "fit", *SHORTEST, f"--trainer.precision={precision}")
    assert re.search(rf"'?{precision}'? is (none|not one) of 32-true, bf16-mixed, 16-mixed$", line)
