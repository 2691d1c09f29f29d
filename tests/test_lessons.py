"""Lessons: the programs of `docs/tutorials` run on a small budget, and become pages."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import ROOT

LESSONS = {path.stem: path for path in sorted((ROOT / "docs/tutorials").glob("*.py"))}


def lesson(name: str, folder: Path) -> str:
    """Run a lesson in a folder, and return what it prints."""
    variables = {**os.environ, "LESSON_EPOCHS": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "error::UserWarning", str(LESSONS[name])]
    done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_lesson_has_a_page() -> None:
    pages = {path.stem for path in LESSONS.values() if path.with_suffix(".md").is_file()}
    assert pages == {*LESSONS} == {"posterior_family", "reading_uncertainty", "resume_kill_export"}
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


def test_cells_of_text_and_code_become_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/extensions")
    program = '"""Lesson."""\n\n# %% [markdown]\n# # Title\n#\n# Text `x`.\n\n# %%\nx = 1  # %% of\n'
    page = importlib.import_module("lessons").markdown(program)
    assert page == "# Title\n\nText `x`.\n\n```python\nx = 1  # %% of\n```"


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
    places = [page.index(words) for words in ("Title", "First.", "second = 2", "Third", "Fourth.", "fifth = 5")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", LESSONS)
def test_the_text_of_a_lesson_is_in_cells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments of several lines in code would be text that no page sets as text."""
    monkeypatch.syspath_prepend(ROOT / "docs/extensions")
    page = importlib.import_module("lessons").markdown(LESSONS[name].read_text(encoding="utf-8"))
    code = [line for block in page.split("```python")[1:] for line in block.split("```")[0].splitlines()]
    assert code
    assert not [line for line in code if line.startswith("# ")]
