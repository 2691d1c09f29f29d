"""The product as a user holds it: the real command line, from the first fit to a resumed run."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.cli import app as cli
from bayes_rl.cli.parser_errors import option_names
from bayes_rl.training.preflight import logged_tags
from tests.helpers.command_line import ROOT, TINY, curves, error_of, run, weights
from tests.helpers.slow_cases import slow_but

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FEW_UPDATES = [*TINY, "--data.frames_per_epoch=160"]
"""Options of a run of two epochs of 40 updates."""
QUICK_CONFIGS = "cartpole", "minatar", "minatar_ivon", "deep_sea", "minigrid", "continual", "seed"
"""Of those that take longer, README's first command runs quickstart with every test."""


class Fit(NamedTuple):
    """A finished `bayes-rl fit`: its objects, what it printed, and the folder that it ran in."""

    program: cli.BayesCLI
    printed: str
    folder: Path


@pytest.fixture(scope="module")
def tiny_fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """The fit of `TINY`, which tests read; a test that changes its files takes a copy."""
    folder = tmp_path_factory.mktemp("tiny_fit")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        program = run(patch, "fit", *TINY)
    return Fit(program, printed.getvalue(), folder)


@pytest.fixture
def copied(tiny_fit: Fit) -> Path:
    """Directory of a copy of the run of `TINY`, in the folder of the test."""
    shutil.copytree(tiny_fit.folder / "runs", "runs")
    return Path("runs/cartpole/version_0")


@pytest.fixture
def trained(copied: Path) -> Path:
    """Best checkpoint of a copy of the run of `TINY`."""
    return copied / "checkpoints/best.ckpt"


# ------------------------------------------------------------------------------------------------ a whole run
def test_fit_writes_everything_it_names(tiny_fit: Fit) -> None:
    folder = tiny_fit.folder / "runs/cartpole/version_0"
    printed = tiny_fit.printed
    for word in ("games", "mean", "median", "IQM", "min", "max", "checkpoint", "learning curve", "TensorBoard"):
        assert word in printed
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "learning_curve.png", "metrics.npy", "config.yaml"):
        assert (folder / name).is_file()
    table = np.load(folder / "metrics.npy")
    assert table["frames"].tolist() == [912, 1712]  # 14 steps of 8 until 100 are stored, and two epochs of 800
    assert np.isfinite(table["return_mean"]).all()


def test_every_logged_tag_is_documented_and_every_documented_tag_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    ewc = ["--model.consolidation.method=ewc", "--model.consolidation.consolidate_every=20"]
    run(monkeypatch, "fit", *FEW_UPDATES, *ewc, "--model.consolidation.fisher_samples=20")
    tags = set(curves(Path("runs/cartpole/version_0")))
    layers = {tag for tag in tags if tag.startswith("kl/")}
    assert layers == {f"kl/{head}.{pair}" for head in ("actors", "critics") for pair in (0, 1)}
    logged = tags - layers  # documented as kl/NAME
    text = (ROOT / "docs/reference/metrics.md").read_text()
    documented = set(re.findall(r"`((?:train|val|test|time|lr|posterior)/\w+|epoch)`", text))
    names = ("human_normalised", "points_won", "points_lost", "novelty_auroc_other_game", "novelty_auroc_unvisited")
    of_other_games = {f"{stage}/{name}" for stage in ("val", "test") for name in names}
    assert logged == documented - of_other_games - {"epoch"}


def test_the_axis_of_every_curve_is_frames(tiny_fit: Fit) -> None:
    tags, done = curves(tiny_fit.folder / "runs/cartpole/version_0"), tiny_fit.program
    assert {tag for tag in tags if not tag.startswith("test/")} == logged_tags(done.model, done.datamodule) - {"step"}
    assert [step for step, _ in tags["val/return_mean"]] == [912, 1712]
    assert max(step for step, _ in tags["train/nll"]) > 1600
    steps = dict(tags["train/agent_steps"])
    assert all(step == value for step, value in steps.items())  # CartPole has no frame skip


@pytest.mark.slow
def test_a_normal_run_prints_no_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "fit", *TINY], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "warn" not in (done.stdout + done.stderr).lower()


# ------------------------------------------------------------------------------------------------------ resume
@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, "--data.frames_per_epoch=4000", "--name=stopped"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "fit", *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    events = tmp_path / "runs/stopped/version_0"
    deadline = time.monotonic() + 120
    while not list(events.glob("events*")) or sum(p.stat().st_size for p in events.glob("events*")) < 2000:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved" in printed
    stopped = torch.load(events / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < stopped["global_step"] < 2000
    run(monkeypatch, "fit", *options, "--ckpt_path=last")
    run(monkeypatch, "fit", *[*options[:-1], "--name=straight"])
    a = weights(events / "checkpoints/last.ckpt")
    b = weights(tmp_path / "runs/straight/version_0/checkpoints/last.ckpt")
    assert all(torch.equal(a[k], b[k]) for k in b)


EVERY = "--model.consolidation.consolidate_every=9999"
CONTRADICTIONS = {
    "model.network.hidden_dim": ("32", "16"),
    "model.consolidation.ewc_lambda": ("0", "0.5"),
    "data.num_envs": ("4", "8"),
    "data.replay.capacity": ("3000", "2000"),
    "data.updates_per_step": ("1", "0.25"),
    "seed_everything": ("7", "1"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("shared_parser")
def test_options_that_contradict_the_checkpoint_stop_and_harm_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = (ROOT / "tests/configs/cartpole.yaml").read_text()
    Path("mine.yaml").write_text(re.sub(r"\n  consolidation:\n    method:.*", "", configuration))
    tiny = ["--config", "mine.yaml", *FEW_UPDATES[2:]]
    run(monkeypatch, "fit", *tiny, "--model.consolidation.method=ewc", "--model.consolidation.ewc_lambda=0.5", EVERY)
    capsys.readouterr()
    for key, (asked, saved) in CONTRADICTIONS.items():
        line = error_of(monkeypatch, capsys, "fit", *tiny, "--ckpt_path=last", f"--{key}={asked}")
        assert all(word in line for word in (key, asked, saved)), line
    run(monkeypatch, "fit", *tiny, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert len(np.load("runs/mine/version_0/metrics.npy")) == 3


def test_an_agent_cannot_play_a_game_of_another_shape(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(monkeypatch, capsys, "validate", *TINY, f"--ckpt_path={trained}", "--data.env=Acrobot-v1")
    assert "data.env" in line
    assert "Acrobot-v1" in line


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize("option", ["--trainer.max_steps=7", "--trainer.limit_val_batches=0"])
def test_a_run_that_ends_without_a_validation_still_reports(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "fit", *FEW_UPDATES, option)
    assert "median" in capsys.readouterr().out


@pytest.mark.slow
def test_a_large_seed_and_no_logger_leave_nothing_outside_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "fit", *FEW_UPDATES, "--seed_everything=4294967295", "--trainer.logger=false")
    assert [p.name for p in Path.cwd().iterdir()] == ["runs"]
    run(monkeypatch, "fit", *FEW_UPDATES, "--trainer.logger=false", "--ckpt_path=last", "--trainer.max_epochs=3")


@pytest.mark.slow
def test_ewc_of_pixels_under_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [
        "--config",
        str(ROOT / "configs/quickstart.yaml"),
        "--trainer.max_steps=9",
        "--model.consolidation.method=ewc",
    ]
    options += [
        "--model.consolidation.consolidate_every=4",
        "--model.consolidation.fisher_samples=8",
        "--data.replay.batch_size=4",
    ]
    options += ["--data.replay.min_size=64", "--data.replay.capacity=2000", "--data.evaluation.games=1"]
    options += [
        "--data.rules.max_episode_frames=100",
        "--trainer.enable_progress_bar=false",
        "--data.frames_per_epoch=1000",
    ]
    module = run(monkeypatch, "fit", *options).model
    assert module.consolidator is not None
    assert int(module.consolidator.ewc.consolidations) == 2


@pytest.mark.slow
def test_a_lost_replay_is_an_error_that_says_how_to_go_on(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (copied / "replay/rank0").iterdir():
        file.unlink()
    more = ["--trainer.max_epochs=3", "--ckpt_path=last"]
    monkeypatch.setattr(sys, "argv", ["cli.py", "fit", *TINY, *more])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    run(monkeypatch, "fit", *TINY, *more, "--data.refill_replay=true")


# ------------------------------------------------------------------------------------- validate, test, predict
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_games_of_a_checkpoint(
    verb: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, verb, *TINY, f"--ckpt_path={trained}")
    first = capsys.readouterr().out
    assert "median" in first
    assert str(trained) in first
    run(monkeypatch, verb, *TINY, f"--ckpt_path={trained}")
    table = re.compile(r"^  \w.*$", re.M)
    assert table.findall(first) == table.findall(capsys.readouterr().out)  # games are named by their seeds


def test_predict_writes_a_video_of_every_game(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    run(monkeypatch, "predict", *TINY, f"--ckpt_path={trained}")
    assert len(list(Path("runs").rglob("videos/seed*"))) >= 3


def test_a_window_without_a_display_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg")
    monkeypatch.setattr(
        sys, "argv", ["cli.py", "predict", *TINY, f"--ckpt_path={trained}", "--data.evaluation.render=human"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "data.evaluation.render" in capsys.readouterr().err


def test_a_checkpoint_loads_alone_and_holds_no_code(trained: Path) -> None:
    module = VariationalActorCritic.load_from_checkpoint(trained, weights_only=True)
    assert module.hparams.observation_shape == (4,)
    assert module.act(torch.zeros(5, 4)).shape == (5,)


def test_deterministic_algorithms_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Lightning sets it, for good
    small = [
        "--config",
        str(ROOT / "configs/minatar.yaml"),
        "--trainer.fast_dev_run=true",
        "--data.replay.batch_size=4",
    ]
    small += ["--data.replay.min_size=64", "--data.replay.capacity=2000", "--trainer.enable_progress_bar=false"]
    try:
        run(monkeypatch, "fit", *small, "--trainer.deterministic", "true")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------------- configs
@pytest.mark.parametrize("config", slow_but(CONFIGS, *QUICK_CONFIGS, id=lambda p: p.stem))
def test_every_configuration_runs(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false", "--data.replay.min_size=64"]
    small += ["--data.replay.batch_size=4", "--data.replay.capacity=2000", "--data.rules.max_episode_frames=60"]
    small += ["--data.evaluation.games=1"]
    own = {
        "seed": ["--model.network.hidden_dim=16", "--model.consolidation.fisher_samples=4"],
        "fast_gpu": ["--data.num_envs=8", "--data.replay.device=cpu", "--model.compile=none"],
    }
    run(monkeypatch, "fit", "--config", str(config), *small, *own.get(config.stem, []))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_line_of_a_configuration_says_why(config: Path) -> None:
    for line in config.read_text().splitlines():
        assert re.fullmatch(r"#.*|(?:  )?\w+:|seed_everything: \d+|(?:  ){1,2}\w+: \S.* # .+", line), line


def test_the_quickstart_is_the_configuration_of_all_atari_games_with_a_smaller_budget() -> None:
    """A line of `quickstart` stands in `atari`, too, unless it says how long to train."""
    quickstart, atari = (ROOT / f"configs/{name}.yaml" for name in ("quickstart", "atari"))
    pairs = list(zip(quickstart.read_text().splitlines(), atari.read_text().splitlines(), strict=True))
    others = {line.split(":")[0].strip() for line, other in pairs[1:] if line != other}
    assert others == {"max_epochs", "frames_per_epoch", "hold_frames", "decay_frames"}
    for path in (quickstart, atari):
        config = yaml.safe_load(path.read_text())
        steps = config["model"]["optimizer"]
        frames = config["trainer"]["max_epochs"] * config["data"]["frames_per_epoch"]
        assert steps["hold_frames"] + steps["decay_frames"] == frames


def test_every_option_has_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between an option's name and its type stand at least two words, except where the parser adds its own."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "fit", "--help")
    assert not stop.value.code
    text = re.sub(r" ENV: \S+", "", " ".join(capsys.readouterr().out.split()))
    options = [n for n in option_names() if n.startswith(("data.", "model.")) and not n.endswith(".help")]
    linked = ["data.seed"]
    for name in [n for n in options if n not in linked and not n.endswith("+")]:
        sentence = re.search(rf"ARG: --{re.escape(name)} (?:\S+, --\S+ )?\S+ (?!\(type: )([^-].*?) \(type: ", text)
        assert sentence, name
        assert len(sentence[1].split()) >= 2, name


# ---------------------------------------------------------------------------------------------------- bad input
BAD: dict[str, tuple[list[str], list[str]]] = {
    "unknown game": (["--data.env=brekout"], ["data.env", "brekout", "'breakout'"]),
    "unknown id": (["--data.env=ALE/Brekout-v5"], ["data.env", "'ALE/Breakout-v5'"]),
    "continuous actions": (["--data.env=Pendulum-v1"], ["data.env", "Pendulum-v1", "discrete"]),
    "negative capacity": (["--data.replay.capacity=-5"], ["data.replay.capacity", "-5"]),
    "n-step beyond the ring": (["--data.replay.n_step=90000"], ["data.replay.n_step", "90000"]),
    "batch beyond the replay": (["--data.replay.batch_size=200000"], ["data.replay.batch_size", "200000", "100000"]),
    "wrong option": (["--data.n_steps=4"], ["data.n_steps", "'data.replay.n_step'"]),
    "shortened option": (["--trainer.max_epoch=3"], ["trainer.max_epoch", "'trainer.max_epochs'"]),
    "missing checkpoint": (["--ckpt_path=nothing.ckpt"], ["ckpt_path", "nothing.ckpt"]),
    "no last checkpoint": (["--ckpt_path=last"], ["ckpt_path", "last"]),
    "checkpoint that is none": ([f"--ckpt_path={ROOT / 'LICENSE'}"], ["ckpt_path", "LICENSE"]),
    "configuration that is not YAML": ([f"--config={ROOT / 'LICENSE'}"], ["--config", "LICENSE"]),
    "missing configuration": ([f"--config={ROOT / 'configs/quikstart.yaml'}"], ["--config", "quickstart.yaml"]),
    "not a number": (["--data.replay.gamma=high"], ["data.replay.gamma", "high"]),
    "gamma above one": (["--data.replay.gamma=1.5"], ["data.replay.gamma", "1.5"]),
    "unknown encoder": (["--model.network.encoder=natur"], ["model.network.encoder", "natur", "'nature'"]),
    "encoder that does not fit": (["--data.env=CartPole-v1"], ["model.network.encoder", "nature", "'mlp'"]),
    "unknown life loss": (["--data.replay.life_loss=penalti"], ["data.replay.life_loss", "penalti", "'penalty'"]),
    "negative precision": (["--model.posterior.prior_precision=-1"], ["model.posterior.prior_precision", "-1"]),
    "epsilon above one": (["--data.epsilon.start=2"], ["data.epsilon.start", "2"]),
    "crop outside": (["--data.rules.crop=[0,300,0,160]"], ["data.rules.crop", "300"]),
    "negative learning rate": (["--model.optimizer.critic_lr=-1"], ["model.optimizer.critic_lr", "-1"]),
    "no environments": (["--data.num_envs=0"], ["data.num_envs", "0"]),
    "no frame skip": (["--data.rules.frame_skip=0"], ["data.rules.frame_skip", "0"]),
    "negative seed": (["--seed_everything=-1"], ["seed_everything", "-1"]),
    "no seed": (["--seed_everything=false"], ["seed_everything", "False"]),
    "environment of a missing package": (["--data.env=Ant-v5"], ["data.env", "Ant-v5"]),
    "shape that follows from the data": (["--model.num_actions=7"], ["model.num_actions", "7"]),
    "a word for a number": (["--trainer.max_epochs=ten"], ["--trainer.max_epochs: 'ten' is no int or null"]),
    "precision that there is none of": (
        ["--trainer.precision=bf16-mixd"],
        ["--trainer.precision: 'bf16-mixd' is not one of 32-true, bf16-mixed, 16-mixed", "nearest: 'bf16-mixed'"],
    ),
    "precision that cannot work": (["--trainer.precision=bf16-true"], ["trainer.precision", "bf16-mixed"]),
    "two processes and three games": (
        ["--trainer.devices=2", "--trainer.accelerator=cpu", "--data.evaluation.games=3"],
        ["data.evaluation.games", "3", "2 ranks", "nearest: 4"],
    ),
    "unknown likelihood": (["--model.likelihood.family=gausian"], ["model.likelihood.family", "gausian", "'gaussian'"]),
    "unknown posterior": (["--model.posterior.family=member"], ["model.posterior.family", "member", "'members'"]),
    "unknown prior": (["--model.posterior.prior=laplace"], ["model.posterior.prior", "laplace", "gaussian"]),
    "unknown part of the network": (["--model.network.bayesian=head"], ["model.network.bayesian", "head", "'heads'"]),
    "unknown exploration": (["--model.exploration=tompson"], ["model.exploration", "tompson", "'thompson'"]),
    "thompson without a distribution": (
        ["--model.exploration=thompson", "--model.network.bayesian=none"],
        ["model.exploration", "thompson", "--model.network.bayesian heads"],
    ),
    "prior function without an index": (
        ["--model.network.prior_function_scale=3"],
        ["model.network.prior_function_scale", "3", "members"],
    ),
    "no members": (["--model.posterior.family=members", "--model.posterior.size=0"], ["model.posterior.size", "0"]),
    "log-uniform low rank": (
        ["--model.posterior.family=low_rank", "--model.posterior.prior=log_uniform"],
        ["model.posterior.prior", "log_uniform", "gaussian"],
    ),
    "variance beyond its limit": (["--model.posterior.init_log_var=-30"], ["model.posterior.init_log_var", "-30"]),
    "empty range of values": (
        ["--model.likelihood.family=hl_gauss", "--model.likelihood.value_range=[3,3]"],
        ["model.likelihood.value_range", "3"],
    ),
    "one bin": (
        ["--model.likelihood.family=two_hot", "--model.likelihood.num_bins=1"],
        ["model.likelihood.num_bins", "1"],
    ),
    "no noise": (["--model.likelihood.noise_std=0"], ["model.likelihood.noise_std", "0"]),
    "EWC of a mixture": (
        [
            "--model.posterior.family=members",
            "--model.consolidation.method=ewc",
            "--model.consolidation.consolidate_every=5",
        ],
        ["model.consolidation.method", "--model.posterior.family mean_field"],
    ),
    "penalty of nothing": (
        ["--model.consolidation.ewc_lambda=3"],
        ["model.consolidation.ewc_lambda", "3.0", "--model.consolidation.method online_ewc"],
    ),
    "games that share no network": (
        ["--data.tasks=[breakout, CartPole-v1]"],
        ["data.tasks", "breakout is an Atari game", "CartPole-v1 is not"],
    ),
    "unknown task": (["--data.tasks=[breakout, tenis]"], ["data.tasks", "'tenis'", "nearest: 'tennis'"]),
    "a task twice": (["--data.tasks=[tennis, tennis]"], ["data.tasks", "--data.curriculum.cycles"]),
    "nothing to act at": (["--model.consolidation.method=ewc"], ["model.consolidation.method", "--data.tasks"]),
    "one task": (["--data.tasks=[tennis]"], ["data.tasks", "--data.env tennis"]),
    "a game beside tasks": (["--data.tasks=[tennis, pong]", "--data.env=pong"], ["data.env", "--data.tasks"]),
    "setting of all tasks": (
        ["--data.tasks=[tennis, pong]", "--data.rules.sticky_actions=2"],
        ["data.rules.sticky_actions", "2"],
    ),
    "no frames": (["--data.tasks=[tennis, pong]", "--data.frames_per_epoch=0"], ["data.frames_per_epoch", "0"]),
    "no task": (["--data.tasks=[]"], ["data.tasks", "names no game"]),
    "part of an epoch": (
        [
            "--data.tasks=[breakout, tennis]",
            "--data.curriculum.frames_per_task=70_000",
            "--data.frames_per_epoch=20_000",
        ],
        ["data.curriculum.frames_per_task", "70000", "nearest: 80000"],
    ),
    "more epochs than tasks": (
        [
            *(
                "--data.tasks=[breakout, tennis]",
                "--data.curriculum.frames_per_task=20_000",
                "--data.frames_per_epoch=20_000",
            ),
            "--trainer.max_epochs=3",
        ],
        ["trainer.max_epochs", "3", "2 epochs"],
    ),
    "gains of one task": (
        ["--data.curriculum.task_conditioning=gains"],
        ["data.curriculum.task_conditioning", "gains", "--data.tasks"],
    ),
    "cycles of one task": (["--data.curriculum.cycles=2"], ["data.curriculum.cycles", "2", "--data.tasks"]),
    "conditioning by another name": (
        ["--data.curriculum.task_conditioning=gain"],
        ["data.curriculum.task_conditioning", "nearest: 'gains'"],
    ),
    "argument of no environment": (["--data.env_kwargs={sise: 3}"], ["data.env_kwargs", "sise"]),
    "unknown accelerator": (["--trainer.accelerator=gppu"], ["trainer.accelerator", "gppu"]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("shared_parser")
def test_bad_input_is_one_line(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = BAD[case]
    line = error_of(monkeypatch, capsys, "fit", *arguments)
    assert all(word in line for word in words), line


def test_an_argument_that_an_environment_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.env=bayes_rl/DeepSea-v0", "--data.env_kwargs={size: 1}", "--model.network.encoder=mlp"]
    Path("runs").mkdir()
    Path("runs/error.log").touch()  # takes the stack trace of the constructor, and is the only file that changes
    before = {path.name for path in Path.cwd().rglob("*")}
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    (line,) = (printed.out + printed.err).strip().splitlines()
    assert stop.value.code == 2
    assert line.startswith("bayes-rl: error: --data.env_kwargs: {'size': 1} is refused by bayes_rl/DeepSea-v0: ")
    assert {path.name for path in Path.cwd().rglob("*")} == before


def test_an_unknown_key_in_a_configuration_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text("data:\n  n_stepp: 3\n")
    line = error_of(monkeypatch, capsys, "fit", "--config=mine.yaml")
    assert "data.n_stepp" in line
    assert "'data.replay.n_step'" in line


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
@pytest.mark.usefixtures("shared_parser")
def test_games_without_an_agent_are_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "ckpt_path" in error_of(monkeypatch, capsys, verb, *TINY)


def test_a_pickle_that_would_run_code_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("ran",)

    torch.save({"state_dict": {}, "hyper_parameters": Hostile()}, "hostile.ckpt")
    line = error_of(monkeypatch, capsys, "validate", "--ckpt_path=hostile.ckpt")
    assert "ckpt_path" in line
    assert not Path("ran").exists()
