"""The installed package: its parts, its public names, what importing a part loads, and a wheel in an empty folder."""

from __future__ import annotations

import configparser
import importlib
import inspect
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import bayes_rl
from bayes_rl import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.types import AGENT_ARGUMENTS

PACKAGE = Path(bayes_rl.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = sorted(path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py"))


def test_setup_lists_every_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in FOLDERS), "bayes_rl.configs"])
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {ROOT / folder for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: ".".join(folder.parts))
def test_every_public_name_is_documented(folder: Path) -> None:
    package = importlib.import_module(".".join(folder.parts))
    assert package.__doc__
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            own = value.__doc__ or ""
            assert own, name
            assert not own.startswith(f"{name}("), f"{name} has the docstring that dataclasses make"


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a new process has loaded after `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_learning_half_loads_no_emulator_and_no_trainer() -> None:
    packages = ["bayes_rl", "bayes_rl.bayes", "bayes_rl.losses", "bayes_rl.networks"]
    loaded = modules_after(f"import {', '.join(packages)}")  # one process: each takes seconds to begin
    assert loaded.issuperset(packages)
    assert not loaded & {"ale_py", "gymnasium", "minatar", "pytorch_lightning"}


def test_public_names_are_imported_on_first_use() -> None:
    assert set(bayes_rl.__all__) == {"ReplayDataModule", "VariationalActorCritic", "load_agent"}
    assert set(bayes_rl.__all__) <= set(dir(bayes_rl))
    assert {name: getattr(bayes_rl, name).__name__ for name in bayes_rl.__all__} == {n: n for n in bayes_rl.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'ReplayDataModul'"):
        getattr(bayes_rl, "ReplayDataModul")  # noqa: B009


def test_the_data_s_arguments_are_arguments_of_the_agent() -> None:
    data = ReplayDataModule(env="CartPole-v1", num_envs=2, frame_stack=3, rules={"frame_skip": 1})
    assert tuple(data.agent_arguments()) == AGENT_ARGUMENTS
    assert set(AGENT_ARGUMENTS) <= set(inspect.signature(VariationalActorCritic).parameters)


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_environment_and_folder(tmp_path: Path) -> None:
    """Dependencies come from this environment by a `.pth` file; this checkout stays out of sight."""
    source, wheels, away = tmp_path / "source", tmp_path / "wheels", tmp_path / "away"
    away.mkdir()
    shutil.copytree(PACKAGE, source / "bayes_rl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def call(*words: str | Path, path: Path = away) -> str:
        done = subprocess.run(words, cwd=path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # setuptools makes the wheel without a download: no build isolation.
    build = "from setuptools import build_meta; build_meta.build_wheel('../wheels')"
    wheels.mkdir()
    call(sys.executable, "-c", build, path=source)
    (wheel,) = wheels.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    installed = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"bayes_rl"}
    # Added behind the wheel, and without its own `.pth` files, which would bring an editable install of this checkout.
    (installed / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    place = call(python, "-c", "import bayes_rl; print(bayes_rl.__file__)")
    assert Path(place.strip()) == installed / "bayes_rl/__init__.py"
    recordings = {path.name for path in (installed / "bayes_rl/evaluation/recordings").iterdir()}
    assert recordings == {path.name for path in (PACKAGE / "evaluation/recordings").iterdir()}

    agents = {path.name for path in (installed / "bayes_rl/trained_agents").iterdir()}
    assert agents == {path.name for path in (PACKAGE / "trained_agents").iterdir()}

    command = tmp_path / "venv/bin/bayes-rl"
    quick = ["--trainer.enable_progress_bar", "false", "--data.replay.min_size", "64"]
    call(command, "fit", "--config", "cartpole", "--trainer.fast_dev_run", "true", *quick)
    for verb in ("report", "export"):
        assert f"usage: bayes-rl {verb}" in call(command, verb, "--help")
    call(python, "-c", "from bayes_rl import ReplayDataModule, VariationalActorCritic, load_agent")


def test_no_test_file_imports_another() -> None:
    tests = ROOT / "tests"
    imports = re.compile(r"^\s*(?:from|import) tests\.(?!helpers)[\w.]*test_\w+", re.MULTILINE)
    assert [path.name for path in tests.rglob("test_*.py") if imports.search(path.read_text(encoding="utf-8"))] == []
