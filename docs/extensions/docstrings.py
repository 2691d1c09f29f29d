"""Docstrings of the package as reStructuredText, the language of `sphinx.ext.autodoc`.

The docstrings have Google style, with code in backticks as in Markdown.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode


def translate(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Translate a docstring, before `sphinx.ext.napoleon` reads the sections of the docstring."""
    if what == "data":
        lines[:] = docstring_of_constant(name.rpartition(".")[2], value) or lines
    code = False
    for place, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            code = not code
            start, _, language = line.partition("```")
            lines[place] = f"{start}.. code-block:: {language}\n" if code else ""
        elif code:
            lines[place] = f"    {line}"
        else:
            lines[place] = without_substitutions(line)
    lines[:] = "\n".join(lines).split("\n")


def without_substitutions(line: str) -> str:
    """Return a line in which bars stand for themselves, for example in |x|; bars in backticks do anyway."""
    parts = line.split("`")
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    return "`".join(parts)


def docstring_of_constant(name: str, value: Any) -> list[str]:
    """Return the text below a constant in the module that defines the constant, which other modules may export."""
    for module in [*sys.modules.values()]:
        if not module.__name__.startswith("bayes_rl.") or getattr(module, name, None) is not value:
            continue
        documented = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
        if ("", name) in documented:
            return documented["", name]
    return []


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element) -> Any:
    """Return the link to an object whose docstring gives the last part of the name, for example to `ConfigError`."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    found = {
        entry.node_id: entry
        for name, entry in domain.objects.items()
        if re.fullmatch(rf"(.+\.)?{re.escape(node['reftarget'])}", name)
    }
    if len(found) != 1:
        return None
    (entry,) = found.values()
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the translation and the resolver."""
    app.connect("autodoc-process-docstring", translate, priority=400)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
