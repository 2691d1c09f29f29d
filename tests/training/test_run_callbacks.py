"""Callbacks of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from bayes_rl.training.callbacks.checkpoints import KeptCheckpoint
from bayes_rl.training.run_callbacks import make_callbacks
from tests.helpers.command_line import TINY, run, weights
from tests.helpers.slow_cases import slow_but

pytestmark = pytest.mark.usefixtures("shared_parser")

INTERVALS = {
    "each epoch": [],
    "half an epoch": ["--trainer.val_check_interval=0.5"],
    "a third, which does not divide the epoch": ["--trainer.val_check_interval=0.34"],
    "60 of 200 updates": ["--trainer.val_check_interval=60"],
    "70 updates across epochs": ["--trainer.val_check_interval=70", "--trainer.check_val_every_n_epoch=null"],
    "270 updates across epochs": ["--trainer.val_check_interval=270", "--trainer.check_val_every_n_epoch=null"],
    "every second epoch": ["--trainer.check_val_every_n_epoch=2"],
    "a time": ["--trainer.val_check_interval=00:00:00:01", "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:03"],
    "until a step in the middle of an epoch": ["--trainer.val_check_interval=0.25", "--trainer.max_steps=290"],
}

QUICK_INTERVALS = ("a third, which does not divide the epoch",)


class ValidatedWeights(pl.Callback):
    """Record of the score and the weights of every validation of a fit, and of the frames that it came after."""

    def __init__(self) -> None:
        self.validations: list[tuple[float, int, dict[str, torch.Tensor]]] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        score = float(trainer.callback_metrics["val/return_mean"])
        state = {name: value.clone() for name, value in module.twin.state_dict().items()}
        self.validations.append((score, module.frames, state))


@pytest.mark.parametrize("interval", slow_but(INTERVALS, *QUICK_INTERVALS))
def test_the_best_checkpoint_holds_weights_that_were_validated(interval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ValidatedWeights()
    monkeypatch.setattr("bayes_rl.cli.app.make_callbacks", lambda *options: [*make_callbacks(*options), record])
    run(monkeypatch, "fit", *TINY, "--data.epsilon.decay_frames=400", *INTERVALS[interval])
    path = Path("runs/cartpole/version_0/checkpoints/best.ckpt")
    best = max(record.validations, key=lambda validation: validation[0])  # the first one of the highest score
    saved = {name[5:]: value for name, value in weights(path).items() if name.startswith("twin.")}
    assert len(record.validations) > 1 or interval in ("every second epoch", "270 updates across epochs")
    assert torch.load(path, weights_only=True)["frames"] == best[1]
    assert saved.keys() == best[2].keys()
    assert all(torch.equal(saved[name], best[2][name]) for name in saved)


def test_the_best_checkpoint_is_chosen_by_the_score_that_counts(tmp_path: Path) -> None:
    """Not by the raw mean, by which standing still is best in Tennis; older checkpoints still find their state."""
    best, last = [c for c in make_callbacks(tmp_path, None, False) if isinstance(c, KeptCheckpoint)]
    assert (best.monitor, best.mode, best.filename) == ("val/return_counted", "max", "best")
    assert (last.monitor, last.filename) == (None, "last")
    assert best.state_key.startswith("KeptCheckpoint{'monitor': 'val/return_mean', 'mode': 'max', ")
    assert best.state_key != last.state_key
