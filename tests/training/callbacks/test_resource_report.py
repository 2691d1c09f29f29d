"""Report of memory, disk and time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bayes_rl.training.callbacks.resource_report import ResourceReport


def test_time_is_printed_once_from_training_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = SimpleNamespace(updates=0, frames=1000)
    data = SimpleNamespace(
        stream=stream,
        batches_per_epoch=25_000,
        replay_settings=SimpleNamespace(min_size=1000),
        updates_per_step=0.25,
        settings=SimpleNamespace(frame_skip=1),
        curriculum=SimpleNamespace(visit=lambda epoch: 0),
    )
    trainer: Any = SimpleNamespace(datamodule=data, max_epochs=4, max_steps=-1, limit_train_batches=1.0)
    teller, agent = ResourceReport(), SimpleNamespace()

    def train(updates: int, seconds: float) -> str:
        stream.updates, stream.frames, clock[0] = (
            stream.updates + updates,
            stream.frames + 4 * updates,
            clock[0] + seconds,
        )
        teller.on_train_batch_end(trainer, agent)  # type: ignore[arg-type]
        return capsys.readouterr().out

    assert train(1, 50) == ""  # waiting for the prefill
    assert train(1000, 4.9) == ""
    teller.on_validation_start(trainer, agent)  # type: ignore[arg-type]
    assert train(1, 300) == ""
    assert train(100, 5) == ""  # too few updates
    assert train(898, 5) == "time   about 16 minutes more at 399 frames/s, without games\n"  # 392 000 of 400 000 left
    assert train(1000, 100) == ""
