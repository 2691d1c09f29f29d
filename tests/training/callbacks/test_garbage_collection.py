"""Python looks for garbage less often during training, and as before after it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import pytorch_lightning as pl

from bayes_rl.errors import RunError
from bayes_rl.training.callbacks.garbage_collection import ALLOCATIONS, GarbageCollection
from tests.helpers.agents import fit, make_batch, make_module


class Look(pl.Callback):
    def __init__(self, fails: bool) -> None:
        self.fails, self.found = fails, (0, 0, 0)

    def on_train_batch_end(self, *_: Any) -> None:
        self.found, self.frozen = gc.get_threshold(), gc.get_freeze_count()
        if self.fails:
            raise RunError("failed")


@pytest.mark.parametrize("fails", [False, True])
def test_training_searches_less_often_and_what_follows_as_before(fails: bool) -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    look = Look(fails)
    try:
        fit(make_module(), [make_batch()], GarbageCollection(), look)
    except RunError:
        assert fails
    assert look.found == (ALLOCATIONS, *before[1:])
    assert look.frozen > 1000
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


@pytest.mark.parametrize("youngest", [10**6, 0])
def test_a_higher_threshold_of_the_user_stays_and_0_which_means_never(youngest: int) -> None:
    before, look = gc.get_threshold(), Look(fails=False)
    gc.set_threshold(youngest, 7, 8)
    try:
        fit(make_module(), [make_batch()], GarbageCollection(), look)
        assert look.found == gc.get_threshold() == (youngest, 7, 8)
    finally:
        gc.set_threshold(*before)


def test_what_the_user_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        fit(make_module(), [make_batch()], GarbageCollection())
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
