"""Lessons: the programs of `docs/tutorials` run on a small budget, and become pages."""

from __future__ import annotations

import ast
import base64
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bayes_rl.sweep.cluster import missing_packages
from tests.helpers.command_line import ROOT

LESSONS = {path.stem: path for path in sorted((ROOT / "docs/tutorials").glob("*.py"))}


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Extension that makes pages and notebooks of lessons."""
    monkeypatch.syspath_prepend(ROOT / "docs/extensions")
    return importlib.import_module("lessons")


def lesson(name: str, folder: Path) -> str:
    """Run a lesson in a folder, and return what it prints."""
    budget = {"LESSON_EPOCHS": "2", "LESSON_SEEDS": "2"}
    variables = {**os.environ, **budget, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "error::UserWarning", str(LESSONS[name])]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_lesson_has_a_page() -> None:
    pages = {path.stem for path in LESSONS.values() if path.with_suffix(".md").is_file()}
    assert pages == {*LESSONS} == {page.stem for page in (ROOT / "docs/tutorials").glob("*.md")}
    for name, path in LESSONS.items():
        assert f"```{{lesson}} {name}.py" in path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_lesson_on_posterior_families_trains(tmp_path: Path) -> None:
    printed = lesson("posterior_family", tmp_path)
    assert "standard deviation of the outputs: ['1.0" in printed or "['0.9" in printed
    assert printed.count("actors.") == printed.count("critics.") == 2
    assert "val/epistemic_std: " in printed


@pytest.mark.slow
def test_the_lesson_on_uncertainty_writes_picture_and_video(tmp_path: Path) -> None:
    printed = lesson("reading_uncertainty", tmp_path)
    assert (tmp_path / "uncertainty.png").is_file()
    assert [*(tmp_path / "videos").iterdir()]
    assert "returns of this game are inside their intervals" in printed


@pytest.mark.slow
def test_the_lesson_on_resuming_compares_and_exports(tmp_path: Path) -> None:
    printed = lesson("resume_kill_export", tmp_path)
    assert " tensors, 0 of them different" in printed
    assert (tmp_path / "cartpole.safetensors").is_file()


@pytest.mark.slow
def test_the_first_lesson_trains_in_both_ways(tmp_path: Path) -> None:
    printed = lesson("first_agent", tmp_path)
    assert "mean score of 10 test games" in printed
    assert re.search(r"actions of the best checkpoint: \[\d, \d\]", printed)
    assert (tmp_path / "runs/first/version_0/learning_curve.png").is_file()


@pytest.mark.slow
def test_the_lesson_on_environments_trains(tmp_path: Path) -> None:
    printed = lesson("own_environment", tmp_path)
    assert "passes Gymnasium's checks" in printed
    assert "read as a vector of 2 numbers" in printed
    assert "cold: heater o" in printed


@pytest.mark.slow
def test_the_lesson_on_encoders_trains_both_agents(tmp_path: Path) -> None:
    printed = lesson("own_encoder", tmp_path)
    assert "bayesian trunk: 3 Bayesian layers, features [5, 16]" in printed
    assert len(re.findall(r"bayesian (none|all): score", printed)) == 2


@pytest.mark.slow
def test_the_lesson_on_bayesian_agents_shows_the_difference(tmp_path: Path) -> None:
    printed = lesson("plain_to_bayesian", tmp_path)
    removed, added = (re.findall(rf"^\{mark}  .*", printed, re.MULTILINE) for mark in "-+")
    assert len(removed) == 3
    assert len(added) == 5
    assert len(re.findall(r"spread of Q", printed)) == 2


@pytest.mark.slow
def test_the_lesson_on_sparse_rewards_trains_both_agents(tmp_path: Path) -> None:
    printed = lesson("sparse_rewards", tmp_path)
    agents = re.split(r"^(?=\w)", printed, flags=re.MULTILINE)[1:]
    assert [agent.splitlines()[0] for agent in agents] == ["random actions", "Thompson sampling"]
    assert all("return of the greedy game" in agent for agent in agents)


@pytest.mark.slow
def test_the_lesson_on_several_games_scores_every_game_after_every_visit(tmp_path: Path) -> None:
    printed = lesson("several_games", tmp_path)
    lines = re.findall(r"^  after (CartPole|Acrobot)-v1: CartPole-v1 \d+, Acrobot-v1 -\d+$", printed, re.MULTILINE)
    assert lines == ["CartPole", "Acrobot"] * 2


@pytest.mark.slow
def test_the_lesson_on_processes_trains_by_two_and_sweeps_if_it_can(tmp_path: Path) -> None:
    printed = lesson("processes_and_sweep", tmp_path)
    assert (tmp_path / "runs/two/version_0/checkpoints/last.ckpt").is_file()
    assert {path.name for path in (tmp_path / "runs/two/version_0/replay").iterdir()} >= {"rank0", "rank1"}
    assert ("no sweep: " in printed) == bool(missing_packages())
    assert (tmp_path / "sweeps/lr/report.md").is_file() != bool(missing_packages())


@pytest.mark.slow
def test_the_lesson_on_figures_writes_figure_number_and_caption(tmp_path: Path) -> None:
    printed = lesson("paper_figures", tmp_path)
    assert len(re.findall(r"mean [\d.]+ \([\d.]+ to [\d.]+\)", printed)) >= 2
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert "2 seeds (1 to 2)" in (tmp_path / "caption.txt").read_text()


def test_cells_of_text_and_code_become_a_page(lessons: ModuleType) -> None:
    program = '"""Lesson."""\n\n# %% [markdown]\n# # Title\n#\n# Text `x`.\n\n# %%\nx = 1  # %% of\n'
    assert lessons.markdown(program) == "# Title\n\nText `x`.\n\n```python\nx = 1  # %% of\n```"


def code_of(notebook: dict[str, Any]) -> str:
    """Return the code of a notebook as one program."""
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", LESSONS)
def test_a_notebook_is_valid_and_has_the_code_of_its_program(name: str, lessons: ModuleType) -> None:
    """The rules are those of the format 4.5; the program is read by Python, which knows no cells."""
    program = LESSONS[name].read_text(encoding="utf-8")
    notebook = json.loads(lessons.notebook(program, "# Title", folder=LESSONS[name].parent))
    assert {*notebook} == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    assert notebook["metadata"]["language_info"]["name"] == "python"
    keys = {
        "markdown": [
            {"id", "cell_type", "metadata", "source"},
            {"id", "cell_type", "metadata", "source", "attachments"},
        ],
        "code": [{"id", "cell_type", "metadata", "source", "execution_count", "outputs"}],
    }
    for cell in notebook["cells"]:
        assert {*cell} in keys[cell["cell_type"]]
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert cell["metadata"] == {}
        assert all(isinstance(line, str) for line in cell["source"])
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    first, *others = ast.parse(program).body
    assert isinstance(first, ast.Expr), "the docstring of the program"
    assert [ast.dump(line) for line in ast.parse(code_of(notebook)).body] == [ast.dump(line) for line in others]


def test_links_and_images_of_a_notebook(tmp_path: Path, lessons: ModuleType) -> None:
    (tmp_path / "picture.png").write_bytes(b"bytes")
    program = "# %% [markdown]\n# [A\n# b](c.md#d) [e](https://f) ![g](picture.png) [h](i.json)\n"
    addresses = {"c.md#d": "../c.html#d", "i.json": ""}
    (cell,) = json.loads(lessons.notebook(program, address=addresses.get, folder=tmp_path))["cells"]
    assert "".join(cell["source"]) == "[A\nb](../c.html#d) [e](https://f) ![g](attachment:picture.png) h"
    assert base64.b64decode(cell["attachments"]["picture.png"]["image/png"]) == b"bytes"


@pytest.mark.parametrize("name", LESSONS)
def test_links_of_a_lesson_lead_to_files(name: str, lessons: ModuleType) -> None:
    text = lessons.markdown(LESSONS[name].read_text(encoding="utf-8"))
    for link in lessons.LINK.finditer(text):
        path = link["target"].partition("#")[0]
        assert "://" in path or (LESSONS[name].parent / path).exists(), link[0]


def test_a_page_has_every_cell(tmp_path: Path) -> None:
    cells = "# %% [markdown]\n# First.\n\n# %%\nsecond = 2\n\n# %% [markdown]\n# ## Third\n#\n# Fourth.\n\n"
    cells += "# %%\nfifth = 5\n"
    paths = [str(ROOT / "docs/extensions")]
    (tmp_path / "conf.py").write_text(f"import sys\nsys.path[:0] = {paths}\nextensions = ['myst_parser', 'lessons']\n")
    (tmp_path / "lesson.py").write_text(cells)
    (tmp_path / "index.md").write_text("# Title\n\n```{lesson} lesson.py\n```\n")
    words = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--quiet",
        "-b",
        "text",
        str(tmp_path),
        str(tmp_path / "site"),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/index.txt").read_text()
    words = ["Title", "notebook: lesson.ipynb", "First.", "second = 2", "Third", "Fourth.", "fifth = 5"]
    places = [page.index(word) for word in words]
    assert places == sorted(places)
    notebook = json.loads((tmp_path / "site/lesson.ipynb").read_text())
    assert notebook["cells"][0]["source"] == ["# Title"]
    assert code_of(notebook) == "second = 2\n\nfifth = 5"


@pytest.mark.parametrize("name", LESSONS)
def test_the_text_of_a_lesson_is_in_cells(name: str, lessons: ModuleType) -> None:
    """Comments of several lines in code would be text that no page sets as text."""
    cells = lessons.cells(LESSONS[name].read_text(encoding="utf-8"))
    code = [line for kind, content in cells if kind == "code" for line in content.splitlines()]
    assert code
    assert not [line for line in code if line.startswith("# ")]
