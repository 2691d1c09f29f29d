"""A user's own environments, encoders, posteriors and the like, from the command line."""

from __future__ import annotations

import importlib
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
from bayes_rl.cli.user_modules import import_user_modules, module_names
from bayes_rl.continual import METHODS
from bayes_rl.envs.kinds import import_user_module
from bayes_rl.errors import ConfigError, UserCodeError
from bayes_rl.networks import ENCODERS
from bayes_rl.utils.stop_signals import Stopped
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
    for imported in [other for other in sys.modules if other.startswith(module)]:
        sys.modules.pop(imported)
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


@pytest.mark.slow
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
        (["--import_modules=../x"], "--import_modules: '../x' names no module .*; .* set PYTHONPATH to that folder"),
        (["--import_modules=./my_module.py"], "'./my_module.py' is a path, not .*; nearest: 'my_module'$"),
        (["--import_modules=parts/inner.py"], "'parts/inner.py' is a path, not .*; nearest: 'parts.inner'$"),
        (["--import_modules=parts.iner"], "'parts.iner' names no module .*; nearest: 'parts.inner'$"),
        (["--import_modules=a, b"], r"'a, b' names no module .*; a list is written '\[a, b\]'"),
        (
            ["--import_modules=statistics"],
            "'statistics' names a module of Python .* hides the file statistics.py; rename",
        ),
        (["--data.env=my_module.py:My-v0"], "'my_module.py:My-v0' is a path, not .*; nearest: 'my_module'$"),
        (["--data.env=json:"], "--data.env: 'json:' names no game that json registers$"),
        (
            ["--data.env=json:CartPol-v1"],
            "'json:CartPol-v1' names no game that json registers; nearest: 'CartPole-v1'$",
        ),
        (["--data.env=:My-v0"], "--data.env: ':My-v0' is no known .*: --data.env MODULE:My-v0$"),
        (["--import_modules=[json, 3]"], r"--import_modules: \['json', 3\] must be the name of a module"),
        (["--data.env=my_modul:My-v0"], "--data.env: 'my_modul:My-v0' names no module 'my_modul'"),
        (["--data.env=My-v0"], "--data.env: 'My-v0' is no known .*an id of your own: --data.env MODULE:My-v0"),
        (["--model.network.encoder=one_layer"], "'one_layer' is not one of .*one of your own: --import_modules MODULE"),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    import statistics  # noqa: F401  # loaded before the file of its name is asked for

    Path("parts").mkdir()
    for file in ("my_module.py", "parts/inner.py", "statistics.py"):
        Path(file).write_text("raise AssertionError")
    assert re.search(text, error_of(monkeypatch, capsys, "fit", *QUICK, *words))


def test_a_module_of_a_path_outside_of_the_folder_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/far.py").write_text("")
    problem = f"is a path, not the name of a module; nearest: 'far' with PYTHONPATH={tmp_path / 'folder'}"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match=f"{re.escape(problem)}$"):
        import_user_module("../folder/far.py", "import_modules", "../folder/far.py")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--import_modules=A", "--import_modules", "B"], ["A", "B"]),
        (["--config=one.yaml", "--import_modules=B"], ["A", "B"]),
        (["--config=one.yaml", "--import_modules=A"], "A"),
        (["--import_modules=[B]"], ["C", "B"]),
        (["--data.env=A:Corridor-v0"], "C"),
        ([], None),
    ],
)
def test_modules_named_in_several_places_add_up(
    name: str, monkeypatch: pytest.MonkeyPatch, words: list[str], names: str | list[str] | None
) -> None:
    """A is `name`, B and C are others; C is named by an environment variable where it is expected."""
    own = {"A": name, "B": f"{name}_b", "C": f"{name}_c"}
    for module in own.values():
        Path(f"{module}.py").write_text("")
    Path("one.yaml").write_text(f"import_modules: {name}")
    if "C" in (names or ""):
        monkeypatch.setenv("BAYES_RL_FIT__IMPORT_MODULES", own["C"])
    modules = import_user_modules(["fit", *(re.sub(r"\b[AB]\b", lambda m: own[m[0]], word) for word in words)])
    kept = module_names(modules)
    assert kept == ([own[n] for n in names] if isinstance(names, list) else names and own[names])
    assert {module.name for module in modules} <= set(sys.modules)


def test_the_last_environment_alone_decides_which_module_is_imported(name: str) -> None:
    Path(f"{name}.py").write_text("")
    Path("data.yaml").write_text(f"env: {name}:Corridor-v0")
    twice = ["--data.env=missing:My-v0", f"--data.env={name}:Corridor-v0"]
    for words in (twice, ["--data=data.yaml"], [f"--data.env={name}:"]):
        assert [module.name for module in import_user_modules(["fit", *words])] == [name]
        sys.modules.pop(name)


def test_files_of_a_section_and_of_a_group_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{name}.py").write_text(ENVIRONMENT)
    Path("data.yaml").write_text(f"env: {name}:Corridor-v0")
    Path("network.yaml").write_text("{encoder: mlp, hidden_dim: 4}")
    words = ["--data=data.yaml", "--model.network=network.yaml", "--trainer.fast_dev_run=true"]
    cli = run(monkeypatch, "fit", *QUICK[:-1], *words)
    assert cli.datamodule.game == "Corridor-v0"
    assert cli.model.hparams["network"]["hidden_dim"] == 4


@pytest.mark.slow
def test_a_run_s_modules_may_lie_elsewhere_or_have_other_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run of three modules: they are out of sight of another folder, then two are renamed, one in each option."""
    home, parts, other, new = Path.cwd(), f"{name}_parts", f"{name}_other", f"{name}_new"
    Path(f"{name}.py").write_text(ENVIRONMENT)
    Path(f"{parts}.py").write_text(PARTS)
    Path(f"{other}.py").write_text("")
    words = [f"--data.env={name}:Corridor-v0", f"--import_modules={parts}", f"--import_modules={other}"]
    run(monkeypatch, "fit", *QUICK, *words, "--model.network.encoder=one_layer", "--name=own")
    config = Path("runs/own/version_0/config.yaml")
    assert yaml.safe_load(config.read_text())["import_modules"] == [parts, other]

    def forget_all() -> None:
        for module in (parts, new, f"{new}_parts"):
            sys.modules.pop(module, None)
        forget(name)

    forget_all()
    Path("other").mkdir()
    monkeypatch.chdir("other")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(home)])
    last = "../runs/own/version_0/checkpoints/last.ckpt"
    text = error_of(monkeypatch, capsys, "validate", "--ckpt_path", last)
    assert f"names no module '{parts}'" in text
    assert "set PYTHONPATH to that folder; the run's config.yaml names it" in text
    monkeypatch.syspath_prepend(home)
    run(monkeypatch, "validate", "--ckpt_path", last)

    forget_all()
    monkeypatch.chdir(home)
    Path(f"{name}.py").rename(f"{new}.py")
    Path(f"{parts}.py").rename(f"{new}_parts.py")
    importlib.invalidate_caches()
    resume = ["fit", "--ckpt_path=last", "--name=own", "--trainer.max_epochs=2", f"--import_modules={new}_parts"]
    text = error_of(monkeypatch, capsys, "fit", "--ckpt_path=last", "--name=own")
    assert text.endswith("if it has another name now, type --import_modules 'NAME'")
    run(monkeypatch, *resume, f"--data.env={new}:Corridor-v0")
    left_out = f"the run's config.yaml names the module '{parts}', which is not found and left out"
    assert left_out in capsys.readouterr().out
    options = yaml.safe_load(config.read_text())
    assert options["import_modules"] == [other, f"{new}_parts"]
    assert options["data"]["env"] == f"{new}:Corridor-v0"
    progress = saved(Path("runs/own/version_0/checkpoints/last.ckpt"))["loops"]["fit_loop"]["epoch_progress"]
    assert progress["current"]["processed"] == 2


def test_a_renamed_module_of_an_environment_is_told_with_the_option_to_type(name: str) -> None:
    Path("config.yaml").write_text("data: {env: gone:Corridor-v0}")
    with pytest.raises(ConfigError, match=r"if it has another name now, type --data\.env 'NAME:Corridor-v0'$"):
        import_user_modules(["fit", "--config=config.yaml"], "config.yaml")
    with pytest.raises(ConfigError, match=r"'gone' .* set PYTHONPATH to that folder$"):
        import_user_modules(["fit", "--config=config.yaml"])


def test_a_signal_during_an_import_ends_the_process_and_any_other_error_is_one_line(name: str) -> None:
    Path(f"{name}.py").write_text("from bayes_rl.utils.stop_signals import Stopped\nraise Stopped(130)")
    with pytest.raises(Stopped):
        import_user_modules(["fit", f"--import_modules={name}"])
    Path(f"{name}_odd.py").write_text("class Odd(BaseException): ...\nraise Odd('x')")
    with pytest.raises(UserCodeError, match=f"fails while {name}_odd is imported: Odd: x"):
        import_user_modules(["fit", f"--import_modules={name}_odd"])


def test_an_export_with_a_broken_module_has_its_stack_trace_in_a_file(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{name}.py").write_text("def f(:")
    monkeypatch.setattr(sys, "argv", ["bayes-rl", "export", "x.ckpt", "y.safetensors", f"--import_modules={name}"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(rf"'{name}' fails .* SyntaxError: .*; its stack trace is in runs/error.log$", line)
    assert f"{name}.py" in Path("runs/error.log").read_text()


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
