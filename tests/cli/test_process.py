"""Settings of the process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bayes_rl.cli.process import silence_warnings


class _Record(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def record() -> Iterator[_Record]:
    """Record of what Lightning says of checkpoints."""
    handler, log = _Record(), logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.WARNING)  # other tests silence all of Lightning
    yield handler
    log.setLevel(level)
    log.removeHandler(handler)


def test_a_save_says_nothing_about_loading(record: _Record) -> None:
    """Lightning 2.6.6 writes the first line at each save."""
    silence_warnings()
    log = logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    log.warning("`weights_only` was not set, defaulting to `False`.")
    log.warning("Restored all states")
    assert record.lines == ["Restored all states"]
