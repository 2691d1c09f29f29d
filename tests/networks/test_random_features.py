"""Random Fourier features: the kernel that they approximate, their unit of length, and their inputs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bayes_rl.networks.random_features import RandomFourierFeatures

FEATURES = 20_000  # the error of the kernel is about 1 / sqrt(FEATURES)


@pytest.mark.parametrize("length_scale", [0.5, 2.0])
def test_inner_products_approximate_the_gaussian_kernel(length_scale: float) -> None:
    features = RandomFourierFeatures((7,), FEATURES, length_scale)
    x = 0.5 * torch.randn(30, 7)
    distances = torch.cdist(x.double(), x.double())
    kernel = torch.exp(-distances.square() / (2 * length_scale**2))
    products = features(x).double() @ features(x).double().T
    torch.testing.assert_close(products, kernel, rtol=0, atol=6 / math.sqrt(FEATURES))


def test_features_have_length_one_on_average() -> None:
    features = RandomFourierFeatures((4, 6, 6), 4096, 1.0)
    lengths = features(torch.rand(20, 4, 6, 6)).square().sum(-1)
    torch.testing.assert_close(lengths, torch.ones(20), rtol=0, atol=0.1)


@pytest.mark.parametrize("shape", [(3,), (4, 6, 6), (2, 84, 84)])
def test_after_measuring_two_random_states_have_a_mean_squared_distance_of_two(shape: tuple[int, ...]) -> None:
    features = RandomFourierFeatures(shape, 16, 1.0)
    x = 30 * torch.randn(200, *shape) + 5
    features.measure(x.split(50))
    inputs = features._inputs(x) * features.inverse_unit
    distances = torch.cdist(inputs, inputs).square().sum() / (200 * 199)
    torch.testing.assert_close(distances, torch.tensor(2.0), rtol=1e-3, atol=0)


def test_components_of_a_vector_have_units_of_their_own() -> None:
    """A velocity that is a hundredth of a position counts as much."""
    features = RandomFourierFeatures((2,), 16, 1.0)
    x = torch.randn(500, 2) * torch.tensor([1.0, 0.01])
    features.measure([x])
    scaled = (x * features.inverse_unit).var(0)
    torch.testing.assert_close(scaled, torch.full((2,), 0.5), rtol=1e-3, atol=0)


def test_pixels_that_never_changed_count_more_than_those_that_do() -> None:
    """A change of a still pixel moves a state by 1 / sqrt(0.03), about six times as far as that of an average one."""
    features = RandomFourierFeatures((1, 1, 4), 16, 1.0)
    x = torch.randn(5000, 1, 1, 4) * torch.tensor([1.0, 1.0, 0.5, 0.0])
    features.measure([x])
    shares = features.inverse_unit / features.inverse_unit[0]
    mean_variance = (1 + 1 + 0.25) / 4
    expected = torch.tensor([1, 1, 2, (0.01 * mean_variance) ** -0.5])
    torch.testing.assert_close(shares, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_equal_states_leave_rounding_without_effect(shape: tuple[int, ...]) -> None:
    """A first minibatch of one state: what comes later must not be told apart by its last bits."""
    features = RandomFourierFeatures(shape, 16, 1.0)
    x = torch.rand(1, *shape).expand(32, *shape)
    features.measure([x])
    torch.testing.assert_close(features(x[:1]), features(x[:1] + 1e-6), rtol=0, atol=1e-4)


def test_a_component_that_never_changed_has_a_finite_unit() -> None:
    features = RandomFourierFeatures((3,), 16, 1.0)
    x = torch.randn(100, 3)
    x[:, 1] = 7.0
    features.measure([x])
    assert torch.isfinite(features.inverse_unit).all()
    moved = x.clone()
    moved[:, 1] += 1
    assert (features(moved) - features(x)).abs().max() > 0.1


def test_large_images_are_averaged_over_squares() -> None:
    features = RandomFourierFeatures((4, 84, 84), 8, 1.0)
    x = torch.rand(3, 4, 84, 84).contiguous(memory_format=torch.channels_last)
    averages = F.avg_pool2d(x, 4).flatten(1)
    expected = math.sqrt(2 / 8) * torch.cos(averages @ features.weight.T + features.phase)
    torch.testing.assert_close(features(x), expected)
    small = RandomFourierFeatures((4, 10, 10), 8, 1.0)
    y = torch.rand(3, 4, 10, 10)
    torch.testing.assert_close(small(y), math.sqrt(2 / 8) * torch.cos(y.flatten(1) @ small.weight.T + small.phase))


def test_flat_planes_are_averaged_over_their_whole_shorter_side() -> None:
    features = RandomFourierFeatures((2, 4, 120), 8, 1.0)
    x = torch.rand(3, 2, 4, 120)
    averages = F.avg_pool2d(x, (4, 5)).flatten(1)
    features.measure([x])
    expected = math.sqrt(2 / 8) * torch.cos(averages * features.inverse_unit @ features.weight.T + features.phase)
    torch.testing.assert_close(features(x), expected, rtol=1e-4, atol=1e-4)


def test_features_and_their_unit_are_part_of_the_state() -> None:
    first, second = RandomFourierFeatures((3,), 8, 1.0), RandomFourierFeatures((3,), 8, 1.0)
    x = torch.randn(9, 3)
    first.measure([x])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    assert not any(p.requires_grad for p in first.parameters())
