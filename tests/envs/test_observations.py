"""Readings of observations: bounds, axes and sides tell planes, images, numbers and vectors apart."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, Space, Text, Tuple

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import check_env, make_envs
from bayes_rl.envs.observations import read_observations
from bayes_rl.errors import ConfigError

BYTE, WHOLE, REAL = np.uint8, np.int64, np.float32


def read(space: Space[Any], *options: Any) -> Any:
    return read_observations("My-v0", space, *options)


AUTO = {
    "planes_last": (Box(0, 1, (8, 8, 12), BYTE), "12 planes of 8 x 8, channels last, values 0 to 1"),
    "planes_first": (Box(0, 1, (12, 8, 8), BYTE), "12 planes of 8 x 8, channels first, values 0 to 1"),
    "planes_64": (Box(0, 1, (64, 64, 3), BYTE), "3 planes of 64 x 64, channels last, values 0 to 1"),
    "planes_bool": (Box(0, 1, (10, 10, 4), np.bool_), "4 planes of 10 x 10, channels last, values 0 to 1"),
    "planes_few": (Box(0, 1, (6, 7, 2), np.int8), "2 planes of 6 x 7, channels last, values 0 to 1"),
    "planes_real": (Box(-1, 1, (9, 9, 2), REAL), "2 planes of 9 x 9, channels last, numbers as they come"),
    "planes_signed": (Box(-1, 1, (3, 3, 2), np.int8), "2 planes of 3 x 3, channels last, numbers as they come"),
    "planes_unbounded": (Box(-np.inf, np.inf, (3, 40, 40), REAL), "3 planes of 40 x 40, channels first, numbers"),
    "codes": (Box(0, 255, (7, 7, 3), BYTE), "3 planes of 7 x 7, channels last, values 0 to 255"),
    "codes_wide": (Box(0, 10, (40, 40, 3), WHOLE), "3 planes of 40 x 40, channels last, values 0 to 10"),
    "stacked": (Box(0, 255, (4, 84, 84), BYTE), "4 planes of 84 x 84, channels first, values 0 to 255"),
    "image_last": (Box(0, 255, (60, 40, 3), BYTE), "an image of 60 x 40, channels last, made grey, resized to 84 x 84"),
    "image_first": (Box(0, 255, (3, 64, 64), BYTE), "an image of 64 x 64, channels first, made grey"),
    "image_grey": (Box(0, 255, (96, 96, 1), BYTE), "an image of 96 x 96, channels last, grey"),
    "image_flat": (Box(0, 255, (96, 80), BYTE), "an image of 96 x 80, grey"),
    "image_whole": (Box(0, 255, (64, 64, 3), np.int32), "an image of 64 x 64, channels last, made grey"),
    "image_real": (Box(0, 1, (3, 64, 64), REAL), "an image of 64 x 64, channels first, made grey"),
    "image_real_255": (Box(0, 255, (64, 64, 3), np.float64), "an image of 64 x 64, channels last, made grey"),
    "vector": (Box(-np.inf, np.inf, (4,), REAL), "a vector of 4 numbers"),
    "grid": (Box(0, 1, (40, 40), REAL), "a vector of 1600 numbers"),  # as of DeepSea
    "memory": (Box(0, 255, (128,), BYTE), "a vector of 128 numbers, divided by 255"),
    "bits": (MultiBinary(5), "a vector of 5 numbers"),
    "several": (Tuple((Discrete(3), Discrete(2))), "a vector of 5 numbers"),
    "number": (Discrete(16), "a number that names one of 16 states"),
}


@pytest.mark.parametrize("name", AUTO)
def test_bounds_axes_and_sides_decide(name: str) -> None:
    space, phrase = AUTO[name]
    reading = read(space)
    assert reading.describe().startswith(phrase)
    screen = reading.screen(space.sample())
    assert screen.dtype == reading.space.dtype
    assert screen.shape == reading.space.shape


AMBIGUOUS = {
    "cube": (Box(0, 1, (10, 10, 10), BYTE), "channels", "'first' reads 10 of 10 x 10, 'last' reads 10 of 10 x 10"),
    "sides": (Box(0, 1, (8, 9, 12), BYTE), "channels", "'first' reads 8 of 9 x 12, 'last' reads 12 of 8 x 9"),
    "axes": (Box(0, 255, (4, 84, 84, 3), BYTE), "observation", "4 axes .* nearest: 'vector', and --data.frame_stack"),
    "inside": (Dict(image=Box(0, 255, (64, 64, 3), BYTE), speed=Discrete(3)), "observation", "'image' may be an image"),
    "graph": (Graph(Discrete(3), None), "env", "observes Graph.* no array of numbers"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_is_ambiguous_is_refused_with_the_option_to_type(name: str) -> None:
    space, key, text = AMBIGUOUS[name]
    with pytest.raises(ConfigError, match=text) as error:
        read(space)
    assert error.value.key == f"data.{key}"
    assert "My-v0" in str(error.value)
    assert "\n" not in str(error.value)


OPTIONS = {
    "last": (Box(0, 1, (10, 10, 10), BYTE), ("auto", "last"), "10 planes of 10 x 10, channels last"),
    "first": (Box(0, 1, (8, 9, 12), BYTE), ("auto", "first"), "8 planes of 9 x 12, channels first"),
    "flat": (Box(0, 255, (4, 84, 84, 3), BYTE), ("vector",), "a vector of 84672 numbers"),
    "all": (Dict(image=Box(0, 255, (8, 8, 3), BYTE), speed=Discrete(3)), ("vector",), "a vector of 195 numbers"),
    "text": (Text(3), ("vector",), "a vector of 3 numbers"),
    "one plane": (Box(0, 1, (40, 40), REAL), ("planes",), "1 plane of 40 x 40, numbers as they come"),
    "kept": (Box(0, 255, (64, 64, 3), BYTE), ("planes",), "3 planes of 64 x 64, channels last, values 0 to 255"),
    "small": (Box(0, 255, (7, 7, 3), BYTE), ("image",), "an image of 7 x 7, channels last, made grey"),
    "opacity": (Box(0, 255, (64, 64, 4), BYTE), ("image",), "an image of 64 x 64, channels last, made grey"),
    "signed": (Box(-1, 1, (64, 64, 3), REAL), ("image",), "an image of 64 x 64, channels last, made grey"),
    "colour": (Box(0, 255, (64, 64, 3), BYTE), ("auto", "auto", False), "an image of 64 x 64.* 3 colours kept"),
    "one-hot": (Discrete(5), ("vector",), "a vector of 5 numbers"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_decides(name: str) -> None:
    import re

    space, options, phrase = OPTIONS[name]
    reading = read(space, *options)
    assert re.match(phrase, reading.describe())
    screen = reading.screen(space.sample())
    assert (screen.dtype, screen.shape) == (reading.space.dtype, reading.space.shape)


@pytest.mark.parametrize(
    ("space", "options", "key"),
    [
        (Box(-1, 1, (4,), REAL), ("image",), "observation"),
        (Box(-1, 1, (4,), REAL), ("planes",), "observation"),
        (Discrete(4), ("planes",), "observation"),
        (Box(-np.inf, np.inf, (64, 64, 3), REAL), ("image",), "observation"),
        (Box(0, 255, (64, 64, 12), BYTE), ("image",), "observation"),
        (Box(-1, 1, (4,), REAL), ("auto", "first"), "channels"),
        (Discrete(4), ("auto", "last"), "channels"),
        (Box(0, 1, (8, 8, 12), BYTE), ("auto", "auto", False), "grey"),
    ],
)
def test_an_option_that_cannot_act_is_refused(space: Space[Any], options: tuple[Any, ...], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(space, *options)
    assert error.value.key == f"data.{key}"


def test_planes_keep_every_value_and_place() -> None:
    last = np.arange(8 * 8 * 12, dtype=BYTE).reshape(8, 8, 12) % 2
    for array, space in ((last, Box(0, 1, (8, 8, 12), BYTE)), (last.transpose(2, 0, 1), Box(0, 1, (12, 8, 8), BYTE))):
        assert np.array_equal(read(space).screen(array), last.transpose(2, 0, 1))
    real = np.random.default_rng(0).normal(size=(9, 9, 2)).astype(REAL)
    assert np.array_equal(read(Box(-np.inf, np.inf, (9, 9, 2), REAL)).screen(real), real.transpose(2, 0, 1))


def test_images_of_any_form_are_one_image() -> None:
    """Channels first and last, bytes and real numbers, are the same screen: the mean of three colours."""
    pixels = np.zeros((64, 64, 3), BYTE)
    pixels[:32, :, 0], pixels[:, 48:] = 255, 90
    forms: list[tuple[Any, Box]] = [
        (pixels, Box(0, 255, (64, 64, 3), BYTE)),
        (pixels.transpose(2, 0, 1), Box(0, 255, (3, 64, 64), BYTE)),
        (pixels / 255, Box(0, 1, (64, 64, 3), np.float64)),
        ((pixels / 255).transpose(2, 0, 1).astype(REAL), Box(0, 1, (3, 64, 64), REAL)),
        (pixels.astype(REAL), Box(0, 255, (64, 64, 3), REAL)),
    ]
    screens = [read(space).screen(array) for array, space in forms]
    assert all(np.array_equal(screen, screens[0]) for screen in screens)
    assert (screens[0].shape, screens[0][0, 10, 10], screens[0][0, 70, 10], screens[0][0, 10, 80]) == (
        (1, 84, 84),
        85,
        0,
        90,
    )
    signed = read(Box(-1, 1, (64, 64, 3), REAL), "image").screen((pixels / 127.5 - 1).astype(REAL))
    assert np.array_equal(signed, screens[0])


def test_colours_are_kept_on_request() -> None:
    pixels = np.zeros((64, 64, 3), BYTE)
    pixels[..., 0], pixels[..., 2] = 200, 30
    reading = read(Box(0, 255, (64, 64, 3), BYTE), "auto", "auto", False)
    screen = reading.screen(pixels)
    assert screen.shape == reading.space.shape == (3, 84, 84)
    assert [int(colour[40, 40]) for colour in screen] == [200, 0, 30]


def test_opacity_is_no_colour() -> None:
    pixels = np.full((64, 64, 4), 60, BYTE)
    pixels[..., 3] = 255
    assert (read(Box(0, 255, (64, 64, 4), BYTE), "image").screen(pixels) == 60).all()


def test_values_that_a_screen_cannot_hold_are_errors() -> None:
    pixels = np.full((64, 64, 3), np.nan, REAL)
    with pytest.raises(ValueError, match="not finite"):
        read(Box(0, 1, (64, 64, 3), REAL)).screen(pixels)
    with pytest.raises(ValueError, match=r"shape \[3, 64, 64\] is outside its space \[64, 64, 3\]"):
        read(Box(0, 255, (64, 64, 3), BYTE)).screen(np.zeros((3, 64, 64), BYTE))
    with pytest.raises(ValueError, match="from 0 to 300, outside its space"):
        read(Box(0, 10, (7, 7, 3), WHOLE)).screen(np.array([0, 300] * 72 + [0] * 3).reshape(7, 7, 3))


@pytest.mark.parametrize(
    ("space", "value", "problem"),
    [
        (Discrete(3, start=1), 4, "the observation 4 is outside its space of 3 states"),
        (Discrete(3, start=1), 0, "the observation 0 is outside its space of 3 states"),
        (Box(0, 255, (9,), BYTE), WHOLE(-3), "int64 values from -3 to -3"),
        (Box(0, 255, (9,), BYTE), REAL(0.5), "float32 values from 0.5 to 0.5"),
        (Box(0, 7, (5, 5, 2), BYTE), np.int8(-3), "int8 values from -3 to -3"),
        (Box(0, 7, (5, 5, 2), BYTE), REAL(0.5), "float32 values from 0.5 to 0.5"),
        (Box(0, 255, (64, 64, 3), BYTE), WHOLE(300), "int64 values from 300 to 300"),
        (Box(0, 255, (64, 64, 3), BYTE), REAL(0.5), "float32 values from 0.5 to 0.5"),
        (Box(0, 1, (64, 64, 3), REAL), BYTE(200), "uint8 values from 200 to 200"),
        (Box(0, 1, (64, 64, 3), REAL), REAL(-1), "float32 values from -1.0 to -1.0"),
    ],
)
def test_values_outside_a_space_are_not_misread(space: Space[Any], value: Any, problem: str) -> None:
    observation = np.full(space.shape, value, np.asarray(value).dtype) if space.shape else value
    with pytest.raises(ValueError, match=problem):
        read(space).screen(observation)


def test_rounding_is_not_outside_a_space() -> None:
    assert (read(Box(0, 1, (64, 64, 3), REAL)).screen(np.full((64, 64, 3), 1.0001, REAL)) == 255).all()
    assert (read(Box(0, 255, (64, 64, 3), BYTE)).screen(np.full((64, 64, 3), 7, REAL)) == 7).all()


def test_memory_is_a_vector_of_bytes() -> None:
    reading = read(Box(0, 255, (128,), BYTE))
    numbers = np.arange(128, dtype=BYTE)
    assert np.array_equal(reading.screen(numbers), numbers)
    assert reading.screen(numbers).dtype == BYTE


class Squares(gym.Env[Any, int]):
    """Two planes of codes up to 7, channels first."""

    observation_space = Box(0, 7, (2, 5, 5), BYTE)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.full((2, 5, 5), 7, BYTE), {}


@pytest.fixture
def _squares() -> Any:
    gym.register("BayesRLTests/Squares-v0", Squares)
    yield
    gym.registry.pop("BayesRLTests/Squares-v0")


@pytest.mark.usefixtures("_squares")
def test_environments_say_how_they_read_and_divide_by_the_greatest_code() -> None:
    envs = make_envs(EnvSettings("BayesRLTests/Squares-v0", frame_skip=1, sticky_actions=0), 2)
    assert envs.reading == "2 planes of 5 x 5, channels first, values 0 to 7"
    assert (envs.screen_shape, envs.pixel_scale) == ((2, 5, 5), 7)
    envs.close()
    envs = make_envs(EnvSettings("BayesRLTests/Squares-v0", frame_skip=1, sticky_actions=0, channels="last"), 2)
    assert envs.screen_shape == (5, 2, 5)
    envs.close()
    envs = make_envs(EnvSettings("BayesRLTests/Squares-v0", frame_skip=1, observation="vector"), 2)
    assert envs.screen_shape == (50,)
    envs.close()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"observation": "pixels"}, "observation"),
        ({"channels": "middle"}, "channels"),
        ({"env": "breakout", "observation": "vector"}, "observation"),
        ({"env": "breakout", "channels": "first"}, "channels"),
    ],
)
def test_a_choice_that_does_not_exist_is_named(change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^--data.{key}: "):
        check_env(EnvSettings(**{"env": "CartPole-v1", **change}))
