"""A user's own environments, encoders, posteriors and the like, from the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import gymnasium as gym
import pytest
import yaml

from bayes_rl.bayes import LIKELIHOODS, POSTERIORS
from bayes_rl.cli import main
from bayes_rl.continual import METHODS
from bayes_rl.networks import ENCODERS
from tests.helpers.command_line import ROOT, TINY, error_of, run, saved

PAGE = (ROOT / "docs/how-to/add_an_environment.md").read_text(encoding="utf-8")
ENVIRONMENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
PARTS = """
from pathlib import Path

from pytorch_lightning.callbacks import Callback
from torch import nn

from bayes_rl.bayes import LIKELIHOODS, POSTERIORS
from bayes_rl.bayes.likelihoods import GaussianLikelihood
from bayes_rl.bayes.posteriors.mean_field import MeanField
from bayes_rl.continual import METHODS
from bayes_rl.continual.ewc import EWC
from bayes_rl.networks import PlainEncoder, register_encoder


@register_encoder("one_layer", needs_images=False)
def one_layer(shape, hidden_dim, layers):
    return PlainEncoder(nn.Sequential(nn.Flatten(), layers.linear(shape[0], 4)), 4, hidden_dim, layers)


POSTERIORS.register("my_posterior")(type("MyPosterior", (MeanField,), {}))
LIKELIHOODS.register("my_likelihood")(type("MyLikelihood", (GaussianLikelihood,), {}))
METHODS.register("my_method")(type("MyMethod", (EWC,), {}))


class MyCallback(Callback):
    def on_train_end(self, trainer, pl_module):
        Path("called.txt").write_text("called")
"""
TEN_LINES = """
import random
import gymnasium as gym

class Dice(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(6), gym.spaces.Discrete(2)
    def __init__(self): self.rolls = 0
    def reset(self):
        self.rolls = 0
        return random.randrange(6), {}
    def step(self, action):
        self.rolls += 1
        return random.randrange(6), random.random(), random.random() < 0.2, self.rolls == 9, {}
    def close(self): raise RuntimeError

gym.register("Dice-v0", Dice)
"""
MARK = """
with open("imported.txt", "a") as file:
    file.write("x")
"""
QUICK = [
    *TINY[:4],
    *("--trainer.log_every_n_steps=10", "--trainer.max_epochs=1", "--data.frames_per_epoch=160", "--data.num_envs=2"),
    *("--data.replay.min_size=60", "--data.replay.capacity=1000", "--data.evaluation.games=2"),
    "--model.network.hidden_dim=8",
]
NUMBER = iter(range(1000))


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module, new for each test; what it registers is forgotten afterwards."""
    ids = set(gym.registry)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = f"my_module_{next(NUMBER)}"
    registries = (POSTERIORS, LIKELIHOODS, ENCODERS, METHODS)
    parts = [mock.patch.dict(part) for registry in registries for part in (registry._entries, registry._places)]
    for part in parts:
        part.start()
    yield module
    for part in parts:
        part.stop()
    sys.modules.pop(module, None)
    for added in set(gym.registry) - ids:
        gym.registry.pop(added)


def forget(name: str) -> None:
    """Forget a module and its environment, as a new process does."""
    sys.modules.pop(name, None)
    gym.registry.pop("Corridor-v0", None)
    for registry, entry in ((ENCODERS, "one_layer"), (POSTERIORS, "my_posterior")):
        registry._entries.pop(entry, None)
        registry._places.pop(entry, None)
    for registry, entry in ((LIKELIHOODS, "my_likelihood"), (METHODS, "my_method")):
        registry._entries.pop(entry, None)
        registry._places.pop(entry, None)


def test_the_page_s_environment_trains_and_plays_by_the_page_s_commands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_envs.py").write_text(ENVIRONMENT)
    lines = re.findall(r"^bayes-rl (.+)$", PAGE, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["fit", "validate"]
    run(monkeypatch, *lines[0].split(), *QUICK[2:])
    assert "reads  a vector of 8 numbers" in capsys.readouterr().out
    sys.modules.pop("my_envs")
    forget(name)
    run(monkeypatch, *lines[1].split())
    assert "Corridor-v0: raw scores of whole greedy games" in capsys.readouterr().out
    sys.modules.pop("my_envs")


def test_a_module_named_once_reaches_every_part_and_every_later_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Environment, encoder, posterior, likelihood and callback in training; then commands that name no module."""
    Path(f"{name}.py").write_text(ENVIRONMENT + PARTS)
    own = ["--model.network.encoder=one_layer", "--model.posterior.family=my_posterior"]
    own += ["--model.likelihood.family=my_likelihood", f"--trainer.callbacks={name}.MyCallback"]
    run(monkeypatch, "fit", *QUICK, "--data.env=Corridor-v0", "--import_modules", name, "--name=own", *own)
    assert Path("called.txt").read_text() == "called"
    directory = Path("runs/own/version_0")
    assert yaml.safe_load((directory / "config.yaml").read_text())["import_modules"] == name
    last = directory / "checkpoints/last.ckpt"
    steps = saved(last)["global_step"]
    for verb, *words in (["fit", "--trainer.max_epochs=2"], ["validate"], ["test"]):
        forget(name)
        run(monkeypatch, verb, "--ckpt_path", "last", "--name", "own", *words)
    assert saved(last)["global_step"] == 2 * steps
    forget(name)
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "export", str(last), "agent.safetensors"])
    main()
    capsys.readouterr()
    run(monkeypatch, "validate", "--ckpt_path", "agent.safetensors", "--import_modules", name)
    assert "Corridor-v0: raw scores" in capsys.readouterr().out


def test_a_configuration_lists_modules_for_several_tasks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of a user's module, and a user's method of keeping them; `report` needs no module."""
    second = "\ngym.register('Hall-v0', Corridor)\n"
    Path(f"{name}.py").write_text(ENVIRONMENT + second + PARTS)
    Path("tasks.yaml").write_text(yaml.safe_dump({"import_modules": [name, "json"], "data": {"env": "breakout"}}))
    words = [*QUICK, "--trainer.max_epochs=2"]
    tasks = f"--data.tasks=[{name}:Corridor-v0, Hall-v0]"
    run(
        *(monkeypatch, "fit", *words, "--config=tasks.yaml", tasks, "--name=several"),
        *("--data.curriculum.frames_per_task=160", "--model.consolidation.method=my_method"),
    )
    forget(name)
    gym.registry.pop("Hall-v0")
    Path("references.json").write_text('{"Corridor-v0": [0, 1], "Hall-v0": [0, 1]}')
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "report", "runs/several/version_0", "--references=references.json"])
    main()
    assert "Hall-v0" in Path("report/report.md").read_text()
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--import_modules=my_modul"],
            "--import_modules: 'my_modul' names no module 'my_modul' .*nearest: 'my_module",
        ),
        (["--import_modules=../x"], "--import_modules: '../x' names no module"),
        (["--import_modules=[json, 3]"], r"--import_modules: \['json', 3\] must be the name of a module"),
        (["--data.env=my_modul:My-v0"], "--data.env: 'my_modul:My-v0' names no module 'my_modul'"),
        (["--data.env=json:My-v0"], "--data.env: 'My-v0' is no known .*an id of your own: --data.env MODULE:My-v0"),
        (["--model.network.encoder=one_layer"], "'one_layer' is not one of .*one of your own: --import_modules MODULE"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    Path("my_module.py").write_text("")
    assert re.search(text, error_of(monkeypatch, capsys, "fit", *QUICK, *words))


def test_an_environment_of_ten_lines_that_is_random_by_itself_trains_resumes_and_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{name}.py").write_text(TEN_LINES)
    run(monkeypatch, "fit", *QUICK, f"--data.env={name}:Dice-v0", "--name=dice")
    printed = capsys.readouterr().out
    warning = "warning: Dice-v0: games with one seed and the same actions differ"
    assert printed.count(warning) == 1
    assert "ale-py" not in printed
    assert "'Dice-v0' cannot be drawn here: NotImplementedError" in printed
    last = Path("runs/dice/version_0/checkpoints/last.ckpt")
    steps, replay = saved(last)["global_step"], saved(last)["ReplayDataModule"]["stream"]["replay"]["written"]
    run(monkeypatch, "fit", "--ckpt_path=last", "--name=dice", "--trainer.max_epochs=2")
    assert capsys.readouterr().out.count(warning) == 1
    assert saved(last)["global_step"] == 2 * steps
    assert (saved(last)["ReplayDataModule"]["stream"]["replay"]["written"] > replay).all()
    run(monkeypatch, "validate", "--ckpt_path=last", "--name=dice")
    assert "Dice-v0: raw scores of whole greedy games" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["module", "script", "constructor"])
def test_an_error_in_a_user_s_code_is_one_line_and_its_stack_trace_a_file(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    error = "SystemExit(0)" if place == "script" else "KeyError('level 3')"
    fault = f"raise {error}\n"
    if place != "constructor":
        Path(f"{name}.py").write_text(fault)
        reason = "SystemExit: 0" if place == "script" else "KeyError: 'level 3'"
        beginning = f"--data.env: '{name}:Corridor-v0' fails while {name} is imported: {reason}"
    else:
        Path(f"{name}.py").write_text(
            ENVIRONMENT.replace("    def reset", f"    def __init__(self):\n        {fault}\n    def reset")
        )
        beginning = "--data.env: 'Corridor-v0' fails in its constructor: KeyError: 'level 3'"
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "fit", *QUICK, f"--data.env={name}:Corridor-v0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [f"bayes-rl: error: {beginning}; its stack trace is in runs/error.log"]
    trace = Path("runs/error.log").read_text()
    assert f"{name}.py" in trace
    assert fault.strip() in trace


def test_a_checkpoint_alone_imports_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that lies outside of its run names a module; only the user or a configuration may name modules."""
    Path(f"{name}.py").write_text(ENVIRONMENT + MARK)
    run(monkeypatch, "fit", *QUICK, f"--data.env={name}:Corridor-v0", "--name=own")
    assert Path("imported.txt").read_text() == "x"
    for suffix in (".ckpt", ".ckpt.json"):
        Path(f"elsewhere{suffix}").write_bytes(Path(f"runs/own/version_0/checkpoints/last{suffix}").read_bytes())
    forget(name)
    text = error_of(monkeypatch, capsys, "validate", "--ckpt_path", "elsewhere.ckpt")
    assert text.endswith(f"names a module that only the checkpoint names; to import it, add --import_modules {name}")
    assert Path("imported.txt").read_text() == "x"
    run(monkeypatch, "validate", "--ckpt_path", "elsewhere.ckpt", "--import_modules", name)


def test_the_current_folder_is_searched_only_for_what_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    error_of(monkeypatch, capsys, "fit", *QUICK, "--data.env=breakot")
    assert sys.path == before
    error_of(monkeypatch, capsys, "fit", *QUICK, "--data.env=gymnasium:CartPole-v9")
    assert sys.path == [str(Path.cwd()), *before]


def test_gymnasium_s_own_syntax_names_gymnasium_s_own_games(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run(monkeypatch, "fit", *QUICK, "--data.env=gymnasium:CartPole-v1", "--name=pole", "--trainer.fast_dev_run=true")
