"""Screens of a game at equal distances in time."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_rl.evaluation.screen_record import ScreenRecord


@pytest.mark.parametrize("size", [2, 3, 8, 64])
@pytest.mark.parametrize("steps", [1, 2, 5, 8, 9, 63, 64, 65, 1000])
def test_screens_are_kept_at_equal_distances_and_cover_the_game(size: int, steps: int) -> None:
    record, screen = ScreenRecord(size), np.zeros(1, np.int64)
    for step in range(steps):
        screen[0] = step  # the environment writes into its memory again
        record.add(step, screen)
    kept = [*record.screens]
    assert kept == [*range(0, steps, record.every)]
    assert [int(image[0]) for image in record.screens.values()] == kept
    assert min(steps, size / 2) <= len(kept) <= size
    assert record.every.bit_count() == 1
    assert record.every == 1 or steps > size
