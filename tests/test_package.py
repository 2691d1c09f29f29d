"""Public names of the package, and what importing a part of it loads."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import bayes_rl
from bayes_rl import ReplayDataModule, VariationalActorCritic
from bayes_rl.types import AGENT_ARGUMENTS


def modules_after(statement: str) -> set[str]:
    """Names of the modules that a new process has loaded after `statement`."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("package", ["bayes_rl", "bayes_rl.bayes", "bayes_rl.losses", "bayes_rl.networks"])
def test_the_learning_half_loads_no_emulator_and_no_trainer(package: str) -> None:
    loaded = modules_after(f"import {package}")
    assert package in loaded
    assert not loaded & {"ale_py", "gymnasium", "minatar", "pytorch_lightning"}


def test_public_names_are_imported_on_first_use() -> None:
    assert set(bayes_rl.__all__) == {"ReplayDataModule", "VariationalActorCritic", "load_agent"}
    assert set(bayes_rl.__all__) <= set(dir(bayes_rl))
    assert {name: getattr(bayes_rl, name).__name__ for name in bayes_rl.__all__} == {n: n for n in bayes_rl.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'ReplayDataModul'"):
        getattr(bayes_rl, "ReplayDataModul")  # noqa: B009


def test_the_data_s_arguments_are_arguments_of_the_agent() -> None:
    data = ReplayDataModule(env="CartPole-v1", num_envs=2, frame_stack=3, frame_skip=1)
    assert tuple(data.agent_arguments()) == AGENT_ARGUMENTS
    assert set(AGENT_ARGUMENTS) <= set(inspect.signature(VariationalActorCritic).parameters)
