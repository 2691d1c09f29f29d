"""Atomic writes and JSON with a checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bayes_rl.utils.files import (
    read_checksummed_json,
    write_atomic,
    write_checksummed_json,
)


def test_every_byte_of_sealed_json_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_checksummed_json(path, {"b": [1, "x"], "a": {"c": None}})
    assert read_checksummed_json(path) == {"b": [1, "x"], "a": {"c": None}}
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(ValueError, match=r"a\.json"):
                read_checksummed_json(path)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file: Any) -> None:
        file.write(b"new")
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_temporary_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "file.tmp").symlink_to(victim)
    write_atomic(tmp_path / "file", lambda file: file.write(b"new"))
    assert victim.read_bytes() == b"mine"
