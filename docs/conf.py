"""Configuration of the documentation site: `make docs` builds the site into `build/docs`, without a network."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "extensions"))

_setup = configparser.ConfigParser()
_setup.read(DOCS.parent / "setup.cfg", encoding="utf-8")

project = "bayes_rl"
author = project_copyright = "The bayes_rl authors"
release = version = _setup["metadata"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    # of docs/extensions
    "docstrings",
    "lessons",
    "option_reference",
    "public_names",
    "repository_links",
]
nitpicky = True
nitpick_ignore_regex = [
    # The reference has no links to other projects, whose inventories are on the web.
    (r"py:.*", r"(abc|collections|gymnasium|numpy|pathlib|pytorch_lightning|torch|torchmetrics|typing)\..*"),
    (r"py:.*", r"Tensor|NDArray|BoolArray|np\..*|(dict|tuple)\[.*"),
    (r"py:exc", r"ExportError|ResetNeeded"),
    # Names inside the package.
    (r"py:.*", r"bayes_rl\..*\.(T|_Gaussian|_Histogram|LowOverheadModule|StreamLoader|Values)|(.*\.)?EvaluatedLayers"),
]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = f"bayes_rl {release}"

# Pages
smartquotes = False  # they would make one dash of the two of an option
included_pages = {"README.md": "readme", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
myst_heading_anchors = 4

# Reference of the package
public_package = "bayes_rl"
default_role = "literal"  # docstrings have code in single backticks
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # a named tuple has its fields once
napoleon_attr_annotations = False


def add_title(app: Sphinx, page: str, text: list[str]) -> None:
    """Give a title to a table that `python -m benchmarks` wrote."""
    if page.startswith("results/") and not text[0].startswith("# "):
        text[0] = f"# Table of `{page.removeprefix('results/').removesuffix('/table')}`\n\n{text[0]}"


def setup(app: Sphinx) -> None:
    """Register the titles of tables."""
    app.connect("source-read", add_title)
