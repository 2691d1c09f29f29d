"""Committed results: seeds that chose settings are never reported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
FIRST_OF_SEARCH = 100
"""Settings are chosen on seeds from this one on; smaller seeds are reported."""


def seeds(value: Any) -> Iterator[int]:
    """Yield the seeds of all rows of a file."""
    if isinstance(value, list):
        for part in value:
            yield from seeds(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "seed" and isinstance(part, int):
                yield part
            elif key == "seeds" and isinstance(part, list):
                yield from (seed for seed in part if isinstance(seed, int))
            else:
                yield from seeds(part)


def mixes(found: set[int]) -> bool:
    """Return whether seeds that chose settings stand beside seeds that are reported."""
    return any(seed >= FIRST_OF_SEARCH for seed in found) and any(seed < FIRST_OF_SEARCH for seed in found)


def test_mixed_seeds_are_found() -> None:
    assert mixes(set(seeds({"rows": [{"seed": 1, "curve": [{"score": 3}]}, {"seed": 100}]})))
    assert not mixes(set(seeds({"rows": [{"seed": 1}, {"seed": 5}], "seeds": "1 to 5"})))


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in RESULTS.rglob("*.json")}),
    ids=lambda folder: folder.relative_to(RESULTS.parent).as_posix(),
)
def test_no_table_mixes_seeds_that_chose_with_reported_seeds(folder: Path) -> None:
    """The rows of a table are one file, or the files of one folder."""
    found = {path: set(seeds(json.loads(path.read_text(encoding="utf-8")))) for path in folder.glob("*.json")}
    assert [path.name for path, of_file in found.items() if mixes(of_file)] == []
    if folder != RESULTS:  # where each file is a table of its own
        assert not mixes(set().union(*found.values()))


def test_no_result_names_a_folder_of_a_machine() -> None:
    folder = re.compile(r"[ \"=]/(?:tmp|home|root|work|mnt)/")
    assert [path.name for path in RESULTS.rglob("*.json") if folder.search(path.read_text(encoding="utf-8"))] == []


def test_settings_of_the_quickstart_were_chosen_on_seeds_of_the_search() -> None:
    stored = json.loads((RESULTS / "quickstart_search.json").read_text(encoding="utf-8"))
    assert min(seeds(stored["rows"])) >= FIRST_OF_SEARCH
