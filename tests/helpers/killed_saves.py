"""Saves that a kill ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """Stands in for SIGKILL: nothing after it happens."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> bool:
    """Do `act` until the `moment`-th step that changes or syncs a file; whether it came to that."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count >= moment:
                raise Killed
            count += 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            act()
        except Killed:
            return True
    return False
