"""Lessons: programs of `docs/tutorials` with cells of text, as pages.

A cell begins with a line `# %%`, a cell of text with `# %% [markdown]`. The directive writes the cells of the program
in the folder of the page:

    ```{lesson} reading_uncertainty.py
    ```
"""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def markdown(program: str) -> str:
    """Return a program with cells as Markdown; what stands above the first cell is left out."""
    parts = []
    for cell in re.split(r"^# %%", program, flags=re.MULTILINE)[1:]:
        kind, _, content = cell.partition("\n")
        if kind.strip() == "[markdown]":
            parts.append(re.sub(r"^# ?", "", content.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{content.strip()}\n```")
    return "\n\n".join(parts)


class Lesson(SphinxDirective):
    """Directive that writes the cells of a program."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the cells as nodes."""
        path = Path(self.env.doc2path(self.env.docname)).parent / self.arguments[0]
        self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(markdown(path.read_text(encoding="utf-8")), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("lesson", Lesson)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
