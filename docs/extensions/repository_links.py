"""Links from pages to files of the repository that are no pages.

In Markdown such a link is a relative path, for example `../../bayes_rl/losses.py`, which GitHub opens. In the site the
link leads to the file in the repository on the web if `setup.cfg` has a `url`, and otherwise to a page of the site
with the text of the file. A link to a folder leads to a page that lists the files of the folder.

Pages of the site include `README.md` and other Markdown files of the top level. The configuration value
`included_pages` has the name of the page for each of these files, so that links to a file lead to the page, and links
in a file lead to where they lead on GitHub.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cfg": "ini"}
"""Suffix of a file to the language of the file."""
LINKED: set[str] = set()
"""Files and folders that pages link to, relative to the repository."""


def web_address(path: str) -> str | None:
    """Return the address of a file or folder in the repository on the web, or None without a `url` in `setup.cfg`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    url = setup["metadata"].get("url")
    return f"{url.rstrip('/')}/blob/main/{path}" if url else None


def page_name(path: str) -> str:
    """Return the name of the page of a file or folder."""
    return f"source/{path}"


class RepositoryLinks(SphinxTransform):
    """Transform of links to files of the repository into references of the type `repository`."""

    default_priority = 500  # before Sphinx resolves references and copies downloads

    def apply(self, **kwargs: Any) -> None:
        """Replace the links that MyST cannot resolve."""
        links = [*self.document.findall(addnodes.pending_xref), *self.document.findall(addnodes.download_reference)]
        for link in links:
            if link.get("reftype") == "myst":
                self._replace(link)

    def _replace(self, link: nodes.Element) -> None:
        path, anchor = self._target(link)
        docs, page = self.env.srcdir, None
        if not path.is_relative_to(ROOT) or not path.exists():
            return  # MyST warns
        name = path.relative_to(ROOT).as_posix()
        if name in self.config.included_pages:
            page = self.config.included_pages[name]
        elif path.suffix == ".md" and path.is_relative_to(docs):
            page = path.relative_to(docs).with_suffix("").as_posix()
        elif path.is_relative_to(docs) and path.suffix != ".py":
            return  # a download
        attributes: dict[str, Any] = {"refdomain": "", "reftype": "repository", "reftarget": name}
        if page is None:
            LINKED.add(name)
        else:
            attributes = {"refdomain": "doc", "reftype": "myst", "reftarget": page, "reftargetid": anchor}
        reference = addnodes.pending_xref("", *link.children, refdoc=self.env.docname, refexplicit=True, **attributes)
        reference.source, reference.line = link.source, link.line
        link.replace_self(reference)

    def _target(self, link: nodes.Element) -> tuple[Path, str | None]:
        """Return the path that a link leads to, and the anchor in the file."""
        if link["refdomain"] == "doc":  # a Markdown file
            return Path(self.env.srcdir, f"{link['reftarget']}.md"), link["reftargetid"]
        name, _, anchor = link["reftarget"].partition("#")
        source = Path(link.source or self.env.doc2path(self.env.docname))  # the included file in an including page
        return (source.parent / name).resolve(), anchor or None


def resolve(app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element) -> nodes.reference | None:
    """Return the link to a file or folder of the repository."""
    if node["reftype"] != "repository":
        return None
    address = web_address(node["reftarget"])
    if address is not None:
        return nodes.reference("", "", content, internal=False, refuri=address)
    address = app.builder.get_relative_uri(node["refdoc"], page_name(node["reftarget"]))
    return nodes.reference("", "", content, internal=True, refuri=address)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield name, context and template of the page of every linked file and folder."""
    if web_address("") is not None:
        return
    for name in sorted(LINKED):
        path = ROOT / name
        body = folder_list(app, path) if path.is_dir() else code(app, path)
        yield page_name(name), {"title": name, "body": f"<h1>{escape(name)}</h1>\n{body}"}, "page.html"


def code(app: Sphinx, path: Path) -> str:
    """Return the text of a file as HTML."""
    language = LANGUAGES.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8")
    return app.builder.highlighter.highlight_block(text, language)  # type: ignore[attr-defined]


def folder_list(app: Sphinx, folder: Path) -> str:
    """Return the list of the files of a folder as HTML, with links to those that have a page."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        name, row = path.relative_to(ROOT).as_posix(), f"<code>{escape(path.name)}</code>"
        if name in LINKED:
            address = app.builder.get_relative_uri(page_name(folder.relative_to(ROOT).as_posix()), page_name(name))
            row = f'<a href="{escape(address)}">{row}</a>'
        module = path / "__init__.py" if path.is_dir() else path
        if module.suffix == ".py" and module.is_file():
            text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            row += f" {escape(text.partition(chr(10))[0])}"
        rows.append(f"<li>{row}</li>")
    return f"<ul>{''.join(rows)}</ul>"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform, the resolver and the pages."""
    app.add_config_value("included_pages", {}, "env", dict)
    app.add_transform(RepositoryLinks)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
