"""Memory that is available to a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_rl.utils import memory


def test_the_least_of_machine_and_control_group_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.available_memory()
    monkeypatch.chdir(tmp_path)
    for name, text in {"max": "9000000", "current": "8000000", "stat": "anon 7\ninactive_file 500000"}.items():
        Path(name).write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", (("max", "current", "stat"), ("none", "none", "none")))
    assert memory.available_memory() == 1_500_000
    Path("max").write_text("max\n")
    assert memory.available_memory() == pytest.approx(machine, rel=0.5)
    assert machine > 2**20
