"""Random sample of bounded size: uniform, reproducible, with copies of its states."""

from __future__ import annotations

import pytest
import torch

from bayes_rl.evaluation.state_sample import StateSample


def sample_of(states: int, size: int, seed: int) -> dict[int, torch.Tensor]:
    sample = StateSample(size, seed)
    for number in range(states):
        sample.add(torch.tensor([number, -number]))
        assert len(sample.observations) == min(number + 1, size)
    return sample.observations


@pytest.mark.parametrize(("states", "size"), [(0, 3), (3, 3), (2, 5), (40, 7), (5, 0)])
def test_it_keeps_each_state_under_its_number(states: int, size: int) -> None:
    for seed in range(5):
        kept = sample_of(states, size, seed)
        assert len(kept) == min(states, size)
        assert all(state.tolist() == [number, -number] for number, state in kept.items())


def test_every_state_is_kept_with_the_same_probability() -> None:
    """Of 20 states 5 are kept: 500 of 2000 samples hold each, standard deviation 19.4; 5 deviations."""
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[list(sample_of(20, 5, seed))] += 1
    assert (counts - 500).abs().max() < 97


def test_a_sample_is_a_function_of_its_seed() -> None:
    assert sample_of(50, 5, 1).keys() == sample_of(50, 5, 1).keys()
    assert sample_of(50, 5, 1).keys() != sample_of(50, 5, 2).keys()


def test_a_state_is_a_copy_that_holds_no_batch_alive() -> None:
    batch, sample = torch.zeros(100, 3), StateSample(2, 0)
    sample.add(batch[4])
    batch[4] = 7
    assert sample.observations[0].tolist() == [0, 0, 0]
    assert sample.observations[0].untyped_storage().nbytes() == 12
