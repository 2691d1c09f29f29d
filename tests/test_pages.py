"""Commands in pages: each names a verb, options and configurations that exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from bayes_rl.cli.arguments import bundled_configs
from bayes_rl.cli.commands import COMMANDS, TRAINER_VERBS
from bayes_rl.cli.parser_errors import option_names
from benchmarks.__main__ import MODULES
from tests.helpers.command_line import ROOT

DOCS = ROOT / "docs"
WRITTEN_BY_COMMANDS = ("runs/", "sweeps/")
"""Beginnings of configurations that a command of the same page has written."""


def pages() -> list[Path]:
    """Return the pages with commands; of a lesson, the program."""
    written = [page for folder in ("tutorials", "how-to", "concepts") for page in (DOCS / folder).glob("*.*")]
    return [ROOT / "README.md", *sorted(page for page in written if page.suffix in (".md", ".py"))]


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Extension that reads lessons."""
    monkeypatch.syspath_prepend(DOCS / "extensions")
    return importlib.import_module("lessons")


def text_of(page: Path, lessons: ModuleType) -> str:
    """Return a page as Markdown."""
    text = page.read_text(encoding="utf-8")
    return str(lessons.markdown(text)) if page.suffix == ".py" else text


def command_lines(text: str) -> list[str]:
    """Return the lines of all blocks of commands, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def words_of_program(line: str) -> list[str] | None:
    """Return the words behind `bayes-rl`, `python cli.py` or `-m bayes_rl`; None if the line has no such program."""
    words = shlex.split(line, comments=True)
    for place, word in enumerate(words):
        after_module = place > 0 and words[place - 1] == "-m" and word == "bayes_rl"
        if after_module or word.rpartition("/")[2] in ("bayes-rl", "cli.py"):
            return words[place + 1 :]
    return None


@cache
def options_of(verb: str) -> frozenset[str]:
    """Return the names of the options of a verb, without their dashes."""
    own: set[str] = set()
    if verb in COMMANDS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            COMMANDS[verb](["--help"])
        own = {*re.findall(r"--(\w+)", text.getvalue())}
    of_fit = {name.removesuffix("+") for name in option_names()} if verb in (*TRAINER_VERBS, "sweep") else set()
    return frozenset(own | of_fit | {"help"} | ({"print_config"} if verb in TRAINER_VERBS else set()))


def problem_of(line: str) -> str:
    """Return what is wrong with a line of commands; "" if nothing is."""
    if verb := re.match(r"make (\w+)", line):
        found = re.search(rf"^{verb[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return "" if found else f"make has no verb {verb[1]}"
    if benchmark := re.search(r"python -m benchmarks (\w+)", line):
        return "" if benchmark[1] in (*MODULES, "list") else f"no benchmark {benchmark[1]}"
    words = words_of_program(line)
    if not words:
        return "" if words is None else "no verb"
    if words[0] in ("--version", "--help"):
        return ""
    if words[0] not in (*TRAINER_VERBS, *COMMANDS):
        return f"no verb {words[0]}"
    for word, value in zip(words, [*words[1:], ""], strict=True):
        name, _, typed = word.removeprefix("--").partition("=")
        if word.startswith("--") and name not in options_of(words[0]):
            return f"{words[0]} has no option --{name}"
        config = typed or value
        known = config in bundled_configs() or (ROOT / config).is_file() or config.startswith(WRITTEN_BY_COMMANDS)
        if word.startswith("--") and name == "config" and not known:
            return f"no configuration {config}"
    return ""


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_name_what_exists(page: Path, lessons: ModuleType) -> None:
    assert [problem for line in command_lines(text_of(page, lessons)) if (problem := problem_of(line))] == []


def test_options_in_text_exist(lessons: ModuleType) -> None:
    known = options_of("fit")
    groups = {name.rpartition(".")[0] for name in known}
    for page in pages():
        for name in re.findall(r"--((?:data|model|trainer)\.[a-z_.]*[a-z_])", text_of(page, lessons)):
            assert name in known | groups, f"--{name} in {page.name}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bayes-rl fit --config cartpole --data.env my:Env-v0  # a comment", ""),
        (".venv/bin/bayes-rl train", "no verb train"),
        ("bayes-rl fit --config cart_pole", "no configuration cart_pole"),
        ("bayes-rl fit --config=configs/none.yaml", "no configuration configs/none.yaml"),
        ("bayes-rl fit --model.encoder mlp", "fit has no option --model.encoder"),
        ("bayes-rl report runs/x --reference a.json", "report has no option --reference"),
        ("bayes-rl sweep lr.yaml --config cartpole --seed 5", "sweep has no option --seed"),
        ("bayes-rl sweep lr.yaml --config cartpole --seeds 5 --trainer.max_epochs 2", ""),
        ('srun bayes-rl fit --name "$name" --ckpt_pth last', "fit has no option --ckpt_pth"),
        ("torchrun --nnodes 2 -m bayes_rl fit --configs cartpole", "fit has no option --configs"),
        ("make docs", ""),
        ("make site", "make has no verb site"),
        ("python -m benchmarks no_such_name", "no benchmark no_such_name"),
        ("tensorboard --logdir runs", ""),
    ],
)
def test_a_wrong_command_is_found(line: str, problem: str) -> None:
    assert problem_of(line) == problem


def test_the_lines_of_a_block_are_joined() -> None:
    assert command_lines("```bash\na \\\n    --b c\nd\n```\n\n```python\ne\n```\n") == ["a --b c", "d"]


def test_all_pages_with_commands_are_checked(lessons: ModuleType) -> None:
    checked = [line for page in pages() for line in command_lines(text_of(page, lessons))]
    assert sum(words_of_program(line) is not None for line in checked) > 30
