"""Input of the verb `sweep`: wrong input is one line, and nothing is written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bayes_rl.cli.sweep import make_sweep
from bayes_rl.sweep import cluster
from tests.helpers.command_line import SHORTEST, error_of

FIT = [word for word in SHORTEST if not word.startswith("--name")]
SPACE = "model.optimizer.critic_lr: {log_uniform: [1e-4, 1e-2]}\ndata.replay.n_step: {choice: [1, 3]}\n"
USUAL = {"output": None, "seeds": None, "trials": 40, "minutes": None, "no_pruning": False, "threads": 1, "gpus": 0.0}


@pytest.fixture
def space() -> Path:
    path = Path("lr.yaml")
    path.write_text(SPACE)
    return path


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the extra be installed: the input is refused before Ray is imported."""
    monkeypatch.setattr(cluster, "find_spec", lambda name: name)


def options(space: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(space=space, **{**USUAL, **changes})


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.optimizer.critic_lrr: {choice: [1]}", "is no option of fit; nearest: 'model.optimizer.critic_lr'"),
        ("data.replay.n_step: {uniform: [5, 1]}", "--data.replay.n_step: [5, 1] is an empty range; nearest: [1, 5]"),
        ("data.replay.n_step: {choice: [0, 3]}", "--data.replay.n_step: 0 must be at least 1 step"),
        ("model.network.encoder: {choice: [mlp, natur]}", "'natur' is not one of"),
        ("data.num_envs: {choice: [some]}", "--data.num_envs: 'some' is no int"),
        ("data.env: {choice: [a]}\ndata.env: {choice: [b]}", "--data.env: 'lr.yaml' names this option twice"),
        ("- data.env", "SPACE.yaml: 'lr.yaml' is no mapping of options; nearest: "),
        ("", "SPACE.yaml: 'lr.yaml' is no mapping of options; nearest: "),
        ("data: {env", "SPACE.yaml: 'lr.yaml' is no YAML mapping of options: "),
    ],
)
def test_wrong_spaces_are_one_line(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lr.yaml").write_text(text)
    assert expected in error_of(monkeypatch, capsys, "sweep", "lr.yaml", *FIT)


@pytest.mark.usefixtures("_installed", "space")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "required: SPACE.yaml"),
        (["--config=cartpole", "lr.yaml"], "the first word behind sweep is the file SPACE.yaml"),
        (["lr.yml", *FIT], "SPACE.yaml: 'lr.yml' does not exist; nearest: 'lr.yaml'"),
        (["lr.yaml", *FIT, "--seeds=0"], "--seeds: 0 must be at least 1"),
        (["lr.yaml", *FIT, "--seeds=many"], "argument --seeds: invalid int value: 'many'"),
        (["lr.yaml", *FIT, "--trials=0"], "--trials: 0 must be at least 1"),
        (["lr.yaml", *FIT, "--minutes=0"], "--minutes: 0.0 must be a number greater than 0"),
        (["lr.yaml", *FIT, "--gpus=-1"], "--gpus: -1.0 must be at least 0"),
        (["lr.yaml", *FIT, "--seed_everything=3"], "--seed_everything: '3' is set by the sweep; type --seeds"),
        (["lr.yaml", *FIT, "--name=a"], "--name: 'a' is set by the sweep; type --output"),
        (["lr.yaml", *FIT, "--ckpt_path=last"], "--ckpt_path: 'last' is set by the sweep"),
        (["lr.yaml", *FIT, "--trainer.max_steps=5"], "--trainer.max_steps: 5 ends fits at different frames"),
        (["lr.yaml", *FIT, "--trainer.max_epochs=-1"], "--trainer.max_epochs: -1 must be a number"),
        (
            ["lr.yaml", *FIT, "--trainer.val_check_interval=0.5"],
            "val_check_interval: 0.5 adds validations within an epoch",
        ),
        (["lr.yaml", *FIT, "--trainer.limit_val_batches=0"], "--trainer.limit_val_batches: 0 leaves no validation"),
        (["lr.yaml", *FIT, "--data.envv=a"], "unrecognized arguments: --data.envv=a; nearest: 'data.env'"),
        (["lr.yaml", *FIT, "--adress=auto"], "unrecognized arguments: --adress=auto"),
        (["lr.yaml", "--config=cartpol"], "--config: 'cartpol' is neither a file nor a bundled configuration"),
    ],
    ids=lambda value: " ".join(word for word in value if word not in FIT) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_line(
    words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(monkeypatch, capsys, "sweep", *words)


@pytest.mark.usefixtures("space")
def test_without_the_extra_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    line = error_of(monkeypatch, capsys, "sweep", "lr.yaml", *FIT)
    assert line.endswith("sweep needs ray and optuna, not installed; type: pip install 'bayes_rl[cluster]'")


@pytest.mark.usefixtures("space")
def test_an_address_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    line = error_of(monkeypatch, capsys, "sweep", "lr.yaml", *FIT, "--address=127.0.0.1:9")
    assert "--address: '127.0.0.1:9' does not answer: " in line


def test_a_sweep_has_the_options_that_were_typed_and_configured(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("base.yaml").write_text("data: {num_envs: 3}\nmodel: {network: {encoder: mlp}}")
    monkeypatch.setenv("BAYES_RL_FIT__DATA__REPLAY__GAMMA", "0.9")
    sweep = make_sweep(options(space, trials=7), ["--config=base.yaml", *FIT, "--data.num_envs=2"])
    assert sweep.options["data.num_envs"] == 2
    assert sweep.options["data.replay.gamma"] == 0.9
    assert sweep.options["model.network.encoder"] == "mlp"
    assert "config" not in sweep.options
    assert "seed_everything" not in sweep.options
    assert (sweep.num_trials, sweep.validations, sweep.seeds) == (7, 2, (100, 101, 102, 103, 104))
    assert sweep.directory == Path.cwd() / "sweeps/lr"
    assert sweep.pruning


def test_fits_of_equal_minutes_end_by_their_time(space: Path) -> None:
    sweep = make_sweep(options(space, minutes=1441.5, seeds=2, no_pruning=True), FIT)
    assert (sweep.options["trainer.max_time"], sweep.options["trainer.max_epochs"]) == ("01:00:01:30", -1)
    assert (sweep.validations, sweep.seeds, sweep.pruning) == (None, (100, 101), False)


def test_a_grid_is_not_pruned_and_lists_its_seeds() -> None:
    Path("games.yaml").write_text("data.env: {grid: [CartPole-v1, Acrobot-v1]}\nseed_everything: {grid: [1, 2]}")
    sweep = make_sweep(options(Path("games.yaml")), FIT)
    assert (sweep.num_trials, sweep.seeds, sweep.pruning, sweep.comparable) == (2, (1, 2), False, False)
    assert not list(Path.cwd().glob("sweeps"))
