"""Lessons: programs of `docs/tutorials` with cells of text, as pages.

A cell begins with a line `# %%`, a cell of text with `# %% [markdown]`. A page takes the cells of a program in its
folder by two lines:

    ```{lesson} reading_uncertainty.py
    ```
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx


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


def insert(app: Sphinx, page: str, text: list[str]) -> None:
    """Replace the lines that name a program by the cells of the program.

    This happens before MyST reads the page: a directive with headings in its text comes before text without headings.
    """

    def cells(line: re.Match[str]) -> str:
        path = Path(app.srcdir, page).parent / line[1]
        app.env.note_dependency(str(path))
        return markdown(path.read_text(encoding="utf-8"))

    text[0] = re.sub(r"^```\{lesson\} (\S+)\n```$", cells, text[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the replacement."""
    app.connect("source-read", insert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
