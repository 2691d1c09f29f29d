"""Documentation site: the generated reference is complete, and a gap or a broken link fails."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from bayes_rl.cli.parser_errors import option_names
from bayes_rl.training.tensorboard_layout import CHARTS, GAMES, RANGES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """Module of `docs/extensions` with the name of the parameter."""
    monkeypatch.syspath_prepend(DOCS / "extensions")
    return importlib.import_module(request.param)


def build(source: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does."""
    options = ["--fresh-env", "--fail-on-warning", "--quiet", *words]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(output)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("extension", ["option_reference"], indirect=True)
def test_the_reference_has_every_option_with_type_and_text(extension: ModuleType) -> None:
    """`option_names` asks the constructors, not the parser that the reference is written from."""
    page = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    (sections,) = re.findall(r"^```\{option-reference\} (.+)$", page, re.MULTILINE)
    text = extension.markdown(sections.split())
    entries = re.findall(r"^````\{confval\} (\S+)\n:type: `(.+)`\n:default: `(.+)`\n\n(.+)", text, re.MULTILINE)
    listed = {name for name, *_ in entries}
    assert len(listed) == len(entries) == text.count("{confval}")
    groups = {"trainer", "model", "data", *(name.rpartition(".")[0] for name in listed)}
    constructors = {name.removesuffix("+") for name in option_names() if not re.search(r"(^|\.|-)h(elp)?$", name)}
    assert constructors - groups - listed == {"data.seed"}, "the command line sets this option by --seed_everything"
    assert listed - constructors == {"weights_only", "verbose", "return_predictions"}, "options of Lightning's verbs"


@pytest.mark.parametrize("extension", ["option_reference"], indirect=True)
@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (float | None, "float or null"),
        (list[str] | str | None, "list[str] or str or null"),
        (tuple[int, ...], "tuple[int, ...]"),
    ],
)
def test_types_in_words(extension: ModuleType, hint: object, words: str) -> None:
    assert extension.type_in_words(hint) == words


@pytest.mark.parametrize("extension", ["option_reference"], indirect=True)
def test_the_help_of_verbs_with_a_parser_of_their_own(extension: ModuleType) -> None:
    page = (REFERENCE / "command_line.md").read_text(encoding="utf-8")
    verbs = re.findall(r"^```\{verb-help\} (\w+)$", page, re.MULTILINE)
    assert verbs == list(extension.COMMANDS)
    for verb in verbs:
        assert extension.verb_help(verb).startswith(f"usage: bayes-rl {verb}")


@pytest.mark.parametrize("extension", ["public_names"], indirect=True)
def test_every_package_with_public_names_has_a_page(extension: ModuleType) -> None:
    """The build checks every name; here every package is checked without a build."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (REFERENCE / "api").glob("*.md"))
    modules = re.findall(r"automodule:: (\S+)", text)
    assert {package.__name__ for package in extension.packages("bayes_rl")} <= set(modules)


@pytest.mark.parametrize("extension", ["public_names"], indirect=True)
def test_a_name_that_two_packages_export_is_documented_once(extension: ModuleType) -> None:
    names = extension.missing_names("bayes_rl", ())
    assert {"bayes_rl.ReplayDataModule", "bayes_rl.data.ReplayDataModule"} <= set(names)
    rest = extension.missing_names("bayes_rl", {"bayes_rl.ReplayDataModule"})
    assert set(names) - set(rest) == {"bayes_rl.ReplayDataModule", "bayes_rl.data.ReplayDataModule"}


@pytest.mark.parametrize(
    ("documentation", "missing"), [("\n    '''Return 2.'''", ""), ("", "small.inside.second")], ids=["whole", "gap"]
)
def test_a_public_name_without_documentation_fails_the_build(tmp_path: Path, documentation: str, missing: str) -> None:
    source, package = tmp_path / "source", tmp_path / "source/small"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("'''Package.'''\n__all__ = []\n")
    functions = f"def first():\n    '''Return 1.'''\n\n\ndef second():{documentation}\n    return 2\n"
    names = "'''Package inside.'''\n__all__ = ['first', 'second']\n\n\n"
    (package / "inside/__init__.py").write_text(names + functions)
    paths = [str(source), str(DOCS / "extensions")]
    conf = f"import sys\nsys.path[:0] = {paths}\nextensions = ['sphinx.ext.autodoc', 'public_names']\n"
    (source / "conf.py").write_text(conf + "public_package = 'small'\n")
    (source / "index.rst").write_text("Title\n=====\n\n.. automodule:: small.inside\n   :members:\n")
    done = build(source, tmp_path / "site", "-b", "dummy")
    assert (done.returncode != 0) == bool(missing), done.stderr
    assert re.findall(r"the public name (\S+) is", done.stderr) == ([missing] if missing else [])


def glossary() -> list[list[tuple[str, str]]]:
    """Return terms and their meanings, a list for each section."""
    sections = (REFERENCE / "glossary.md").read_text(encoding="utf-8").split("\n## ")[1:]
    return [re.findall(r"^\| (?!term )(.+?) \| (.+) \|$", section, re.MULTILINE) for section in sections]


def test_each_term_of_the_glossary_is_used_and_has_one_or_two_sentences() -> None:
    pages = [page for page in DOCS.rglob("*.md") if page.name != "glossary.md"]
    files = [*pages, ROOT / "README.md", *(ROOT / "bayes_rl").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    used = re.sub(r"[\s_-]+", " ", " ".join(file.read_text(encoding="utf-8") for file in files)).lower()
    entries = [entry for section in glossary() for entry in section]
    terms = [term for term, _ in entries]
    assert len(terms) == len({*terms}) > 80
    for term, meaning in entries:
        assert re.search(rf"\b{re.escape(term.lower().replace('-', ' '))}s?\b", used), f"{term} is used nowhere"
        sentences = re.split(r"(?<=[.:;]) (?=[A-Z])", meaning)
        assert 1 <= len(sentences) <= 2, term
        assert meaning.endswith("."), term


def test_the_glossary_is_in_order_and_holds_the_terms_that_the_style_fixes() -> None:
    for section in glossary():
        terms = [term.lower() for term, _ in section]
        assert terms == sorted(terms)
    style = (DOCS / "design/words_and_style.md").read_text(encoding="utf-8")
    (rule,) = re.findall(r"^3\. The field's terms, always the same: (.+?)\.$", style, re.MULTILINE | re.DOTALL)
    fixed = {" ".join(term.split()) for term in re.sub(r"\(.*?\)", "", rule, flags=re.DOTALL).split(",")}
    assert {"observation", "task switch", "update"} <= fixed
    assert fixed <= {term for section in glossary() for term, _ in section}


def test_the_curves_that_the_how_to_reads_are_in_the_reference_and_in_the_layout() -> None:
    page = (DOCS / "how-to/read_the_curves.md").read_text(encoding="utf-8")
    tags = {*re.findall(r"`((?:train|val|time)/\w+)`", page)}
    reference = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    assert len(tags) > 25
    assert {tag for tag in tags if f"`{tag}`" not in reference} == set()
    ranges = {f"val/{name}" for charts in RANGES.values() for names in charts.values() for name in names}
    patterns = [pattern for charts in CHARTS.values() for patterns in charts.values() for pattern in patterns]
    assert {tag for tag in tags - ranges if not any(re.fullmatch(pattern, tag) for pattern in patterns)} == set()
    five = [curve for patterns in CHARTS["Overview"].values() for curve in patterns]
    section = page.split("\n## ")[1]
    assert all(f"`{pattern.replace(GAMES, 'val/')}`" in section for pattern in five)
    assert all(f"| {name}: " in section for name in CHARTS["Overview"])


def test_the_diagram_is_the_one_that_its_program_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    diagram = importlib.import_module("data_flow").diagram()
    assert (DOCS / "data_flow.svg").read_text(encoding="utf-8") == diagram


def test_the_citation_names_software_and_preferred_work() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["title"]) == ("1.2.0", "bayes_rl")
    work = citation["preferred-citation"]
    assert [author["family-names"] for author in work["authors"]] == ["Kortegaard", "Andresen"]
    assert (work["title"], work["year"]) == ("Bayesian Reinforcement Learning", 2022)


def test_the_form_for_bugs_requires_what_a_bug_is_found_by() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    fields = {field["id"]: field for field in form["body"]}
    required = {name for name, field in fields.items() if field["validations"]["required"]}
    assert {"command", "doctor", "configuration"} <= required
    assert "bayes-rl doctor" in fields["doctor"]["attributes"]["description"]


class _Links(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Return the links of a built site that lead to no file or anchor of the site, each with its page."""
    pages = {page: _Links(page) for page in site.rglob("*.html")}
    broken = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a> <a href="b.html#away">2</a> <img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="#there">3</a></p>')
    assert broken_links(tmp_path) == ["a.html: b.html#away", "a.html: c.png"]


def broken_notebook_links(site: Path) -> list[str]:
    """Return the links of notebooks in a built site that lead to no file of the site, each with its notebook."""
    broken = []
    for notebook in sorted(site.rglob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
            parts = urlsplit(link)
            if not parts.scheme and not (notebook.parent / parts.path).resolve().is_file():
                broken.append(f"{notebook.relative_to(site)}: {link}")
    return broken


def test_a_broken_link_of_a_notebook_is_found(tmp_path: Path) -> None:
    source = ["[1](a.html#there) [2](b.html) ![3](attachment:c.png)\n", "[4\n", "5](https://d)"]
    cells = [{"cell_type": "markdown", "source": source}, {"cell_type": "code", "source": ["x[0](y)"]}]
    (tmp_path / "lesson.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "a.html").write_text("")
    assert broken_notebook_links(tmp_path) == ["lesson.ipynb: b.html"]


@pytest.mark.slow
def test_the_site_has_no_broken_link(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert broken_links(tmp_path) == []
    assert len([*tmp_path.rglob("*.ipynb")]) == len([*(DOCS / "tutorials").glob("*.py")])
    assert broken_notebook_links(tmp_path) == []
    inventory = (tmp_path / "objects.inv").read_bytes()
    assert inventory.startswith(b"# Sphinx inventory")
