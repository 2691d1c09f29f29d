"""Diagram of the way of the data: `python docs/data_flow.py` writes `docs/data_flow.svg`.

Boxes and labels have a background of their own, so that the diagram is readable on light and on dark pages.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 760, 400
BOX_WIDTH, BOX_HEIGHT = 176, 96
COLUMNS, ROWS = (8, 292, 576), (34, 270)
LINE, INK = "#7d8590", "#1b2430"
PLAYS, LEARNS = ("#e3eefc", "#3b73b9"), ("#fcefd9", "#b06f12")
"""Fill and border of a box."""


class Box(NamedTuple):
    """A part of the program.

    Attributes:
        title: of the box.
        lines: what the part holds.
        column: of the box, from the left.
        row: of the box, from the top.
    """

    title: str
    lines: tuple[str, str]
    column: int
    row: int


BOXES = (
    Box("environments", ("games, stepped", "together"), 0, 0),
    Box("stream", ("acts, steps, stores,", "draws minibatches"), 1, 0),
    Box("replay", ("transitions,", "n-step returns"), 2, 0),
    Box("networks", ("two actors,", "two critics"), 2, 1),
    Box("objective", ("ELBO, actor loss,", "EWC penalty"), 1, 1),
    Box("consolidation", ("anchors, Fisher", "information"), 0, 1),
)
"""Parts in the order of the data's way."""

ARROWS = (
    (((184, 66), (292, 66)), "observations", (238, 50)),
    (((292, 98), (184, 98)), "actions", (238, 114)),
    (((468, 82), (576, 82)), "transitions", (522, 66)),
    (((700, 130), (700, 270)), "minibatches", (700, 220)),
    (((576, 302), (468, 302)), "estimates", (522, 286)),
    (((468, 334), (576, 334)), "gradients", (522, 350)),
    (((292, 302), (184, 302)), "task end", (238, 286)),
    (((184, 334), (292, 334)), "penalty", (238, 350)),
    (((620, 270), (620, 178), (380, 178), (380, 130)), "policy", (500, 178)),
)
"""Arrows: points of the line, label, centre of the label."""


def box(place: int, part: Box) -> str:
    """Return the SVG of a box with the number of its place in the data's way."""
    x, y = COLUMNS[part.column], ROWS[part.row]
    fill, border = LEARNS if part.row else PLAYS
    middle = x + BOX_WIDTH / 2
    first, second = part.lines
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" stroke="{border}"/>'
        f'<circle cx="{x + 14}" cy="{y}" r="12" fill="{border}"/>'
        f'<text x="{x + 14}" y="{y + 5}" font-size="14" font-weight="bold" fill="#ffffff">{place}</text>'
        f'<text x="{middle}" y="{y + 33}" font-size="18" font-weight="bold">{part.title}</text>'
        f'<text x="{middle}" y="{y + 58}">{first}</text><text x="{middle}" y="{y + 78}">{second}</text>'
    )


def arrow(points: tuple[tuple[int, int], ...], label: str, centre: tuple[int, int]) -> str:
    """Return the SVG of an arrow and its label."""
    line = " ".join(f"{x},{y}" for x, y in points)
    x, y = centre
    width = 7 * len(label) + 14
    return (
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2" marker-end="url(#tip)"/>'
        f'<rect x="{x - width / 2}" y="{y - 10}" width="{width}" height="20" rx="6" fill="#ffffff"/>'
        f'<text x="{x}" y="{y + 5}" font-size="13">{label}</text>'
    )


def diagram() -> str:
    """Return the diagram as SVG."""
    title = "The way of the data: environments, stream, replay, networks, objective, consolidation"
    tip = f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/>'
    parts = [arrow(*each) for each in ARROWS] + [box(place, part) for place, part in enumerate(BOXES, start=1)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"',
        f'  role="img" font-family="sans-serif" font-size="14" text-anchor="middle" fill="{INK}">',
        f"<title>{title}</title>",
        f'<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto"'
        f' markerUnits="userSpaceOnUse">{tip}</marker></defs>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(diagram(), encoding="utf-8")
