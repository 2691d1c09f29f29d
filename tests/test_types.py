"""Data types: minibatches of transitions."""

from __future__ import annotations

import torch

from bayes_rl.types import Transition


def test_a_split_holds_every_transition_once_and_in_order() -> None:
    numbers = torch.arange(7)
    whole = Transition(numbers[:, None], numbers, numbers + 0.5, numbers + 0.25, numbers[:, None] + 1)
    parts = whole.split(3)
    assert [len(part.action) for part in parts] == [3, 3, 1]
    joined = [torch.cat(tensors) for tensors in zip(*(part[:5] for part in parts), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(joined, whole[:5], strict=True))
    assert parts[0].realised_return is None
