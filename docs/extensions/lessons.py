"""Lessons: programs of `docs/tutorials` with cells of text, as pages and as notebooks.

A cell begins with a line `# %%`, a cell of text with `# %% [markdown]`. A page takes the cells of a program in its
folder by two lines:

    ```{lesson} reading_uncertainty.py
    ```

The build writes the cells as a notebook, too. The notebook lies beside the page, and the page links to the notebook.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from repository_links import ROOT, page_name, web_address
from sphinx.application import Sphinx

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
"""Link or image in Markdown."""


class Cell(NamedTuple):
    """Cell of a program.

    Attributes:
        kind: `markdown` or `code`.
        content: text of the cell, without the marks of comments.
    """

    kind: str
    content: str


def cells(program: str) -> list[Cell]:
    """Return the cells of a program; what stands above the first cell is left out."""
    found = []
    for cell in re.split(r"^# %%", program, flags=re.MULTILINE)[1:]:
        kind, _, content = cell.partition("\n")
        if kind.strip() == "[markdown]":
            found.append(Cell("markdown", re.sub(r"^# ?", "", content.strip(), flags=re.MULTILINE)))
        else:
            found.append(Cell("code", content.strip()))
    return found


def markdown(program: str) -> str:
    """Return a program with cells as Markdown."""
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells(program)]
    return "\n\n".join(parts)


def notebook(program: str, title: str = "", address: Callable[[str], str] = str, folder: Path = Path()) -> str:
    """Return a program with cells as a notebook of the format 4.5.

    Args:
        program: text of the program.
        title: text of the first cell; "" for none.
        address: function from the target of a link in the program to its target in the notebook; "" for no link.
        folder: of the program; images have paths relative to the folder, and become parts of the notebook.
    """
    title_cell = [Cell("markdown", title)] if title else []
    written = []
    for number, (kind, content) in enumerate([*title_cell, *cells(program)]):
        cell: dict[str, Any] = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        else:
            images: dict[str, Any] = {}
            content = LINK.sub(partial(_link, address=address, folder=folder, images=images), content)
            cell |= {"attachments": images} if images else {}
        written.append({**cell, "source": content.splitlines(keepends=True)})
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    document = {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _link(link: re.Match[str], address: Callable[[str], str], folder: Path, images: dict[str, Any]) -> str:
    """Return a link of a notebook, and add an image to the images of its cell."""
    target = link["target"]
    if "://" in target or target.startswith("#"):
        return link[0]
    if not link["image"]:
        leads_to = address(target)
        return f"[{link['text']}]({leads_to})" if leads_to else link["text"]
    path = (folder / target).resolve()
    images[path.name] = {f"image/{path.suffix[1:]}": base64.b64encode(path.read_bytes()).decode()}
    return f"![{link['text']}](attachment:{path.name})"


def built_address(app: Sphinx, page: str, target: str) -> str:
    """Return where a link of a page leads in the built site, as a path relative to the page.

    The site holds a file of `docs` that is no page and no program as a download, at a place that Sphinx chooses. A link
    to such a file leads nowhere: "".
    """
    name, _, anchor = target.partition("#")
    path = (Path(app.srcdir, page).parent / name).resolve()
    docs = Path(app.srcdir).resolve()
    if path.is_relative_to(docs) and path.suffix not in (".md", ".py", ""):
        return ""
    if path.suffix == ".md" and path.is_relative_to(docs):
        built = path.relative_to(docs).with_suffix("").as_posix()
    else:
        file = path.relative_to(ROOT).as_posix()
        on_the_web = web_address(file)
        if on_the_web is not None:
            return on_the_web
        built = getattr(app.config, "included_pages", {}).get(file) or page_name(file)
    return posixpath.relpath(f"{built}.html", posixpath.dirname(page)) + (f"#{anchor}" if anchor else "")


def insert(app: Sphinx, page: str, text: list[str]) -> None:
    """Replace the lines that name a program by a link to the notebook and the cells, and write the notebook.

    This happens before MyST reads the page: a directive with headings in its text comes before text without headings.
    """
    title = re.match(r"# .+", text[0])

    def lesson(line: re.Match[str]) -> str:
        path = Path(app.srcdir, page).parent / line[1]
        app.env.note_dependency(str(path))
        program = path.read_text(encoding="utf-8")
        written = Path(app.outdir, page).with_name(f"{path.stem}.ipynb")
        written.parent.mkdir(parents=True, exist_ok=True)
        document = notebook(
            program, title[0] if title else "", lambda target: built_address(app, page, target), path.parent
        )
        written.write_text(document, encoding="utf-8")
        # HTML, because MyST would look for the notebook among the sources.
        link = f'The program as a notebook: <a href="{written.name}" download="">{written.name}</a>.'
        return f"{link}\n\n{markdown(program)}"

    text[0] = re.sub(r"^```\{lesson\} (\S+)\n```$", lesson, text[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the replacement."""
    app.connect("source-read", insert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
