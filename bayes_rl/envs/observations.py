"""Readings: objects that convert observations of a Gymnasium space into arrays for the networks.

Such an array is called a screen, even if it is no picture. Its shape is (1,) for a state number, (N,) for a vector, and
(C, H, W) for planes and images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from bayes_rl.errors import ConfigError, check

SIDE = 84  # height and width of image screens, in pixels

OBSERVATIONS = ("auto", "image", "planes", "vector")
"""Values of the option `data.observation`."""

CHANNELS = ("auto", "first", "last")
"""Values of the option `data.channels`: the place of the channels among three axes."""

IMAGE_SIDE = 32  # pixels; with `auto`, an array with a shorter side is no image

FEW = 4  # an axis that has at most 4 entries, beside two longer ones, holds the channels


class Reading(ABC):
    """Way in which the observations of a space become screens.

    Attributes:
        space: space of the screens.
    """

    space: gym.spaces.Box

    @abstractmethod
    def screen(self, observation: Any) -> NDArray[Any]:
        """Return the screen of an observation."""

    @abstractmethod
    def describe(self) -> str:
        """Return a phrase that tells a user how observations are read."""


class NumberReading(Reading):
    """Reading of a numbered state as one int32, counted from 0, shape `(1,)`.

    Args:
        space: of the observations.
    """

    def __init__(self, space: gym.spaces.Discrete) -> None:
        self.start, self.count = int(space.start), int(space.n)
        self.space = gym.spaces.Box(0, self.count - 1, (1,), np.int32)

    def screen(self, observation: Any) -> NDArray[np.int32]:
        """Return the number, counted from 0.

        Raises:
            ValueError: if the number names no state.
        """
        number = int(observation) - self.start
        if not 0 <= number < self.count:
            raise ValueError(f"the observation {observation} is outside its space of {self.count} states")
        return np.array([number], np.int32)

    def describe(self) -> str:
        """Return the number of states."""
        return f"a number that names one of {self.count} states"


class VectorReading(Reading):
    """Reading of any space as one vector, by Gymnasium's `flatten`; a state number becomes a one-hot vector.

    Integers with bounds 0 and 255 become uint8, which the networks divide by 255. Other numbers become float32.

    Args:
        space: of the observations.

    Raises:
        ConfigError: if observations of the space have no fixed number of numbers.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        flat = gym.spaces.flatten_space(space) if _is_flattenable(space) else None
        if not isinstance(flat, gym.spaces.Box):
            problem = f"observes {space}, which is no array of numbers; wrap the environment so that it returns one"
            raise ConfigError("data.env", "", problem)
        self.original, self.flat = space, flat
        if isinstance(space, gym.spaces.Box) and _has_range(space, np.integer, 0, 255):
            self.space = gym.spaces.Box(0, 255, flat.shape, np.uint8)
        else:
            self.space = gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32)

    def screen(self, observation: Any) -> NDArray[Any]:
        """Return the numbers of an observation in one row.

        Raises:
            ValueError: if a number is no byte although the space says so.
        """
        if self.space.dtype == np.uint8:
            return _bytes(np.asarray(observation)).ravel()
        return np.asarray(gym.spaces.flatten(self.original, observation)).astype(np.float32)

    def describe(self) -> str:
        """Return the length of the vector."""
        bytes_as = ", divided by 255" if self.space.dtype == np.uint8 else ""
        return f"a vector of {self.space.shape[0]} number{'s' * (self.space.shape[0] > 1)}{bytes_as}"


class PlanesReading(Reading):
    """Reading of an array as planes of its own size.

    Integers with bounds within 0 and 255 become uint8, other numbers float32.

    Args:
        space: of the observations, with two or three axes.
        axis: of the channels, 0 or 2; None for two axes, which are one plane.
    """

    def __init__(self, space: gym.spaces.Box, axis: int | None) -> None:
        self.axis = axis
        low, high = (_channels_first(bound, axis) for bound in (space.low, space.high))
        self.bytes = space.dtype == np.bool_ or (
            np.issubdtype(space.dtype, np.integer) and bool((low >= 0).all() and (high <= 255).all())
        )
        if self.bytes:
            # The networks divide by the greatest value of all planes.
            self.space = gym.spaces.Box(0, max(1, int(high.max())), low.shape, np.uint8)
        else:
            self.space = gym.spaces.Box(-np.inf, np.inf, low.shape, np.float32)

    def screen(self, observation: Any) -> NDArray[Any]:
        """Return the planes, channels first.

        Raises:
            ValueError: if a value is no byte although the space says so.
        """
        planes = _channels_first(np.asarray(observation), self.axis)
        return _bytes(planes) if self.bytes else planes.astype(np.float32)

    def describe(self) -> str:
        """Return number and size of the planes, the place of the channels, and the greatest value."""
        count, height, width = self.space.shape
        top = int(self.space.high.max()) if self.bytes else 0
        values = f"values 0 to {top}" if self.bytes else "numbers as they come"
        return f"{count} plane{'s' * (count > 1)} of {height} x {width}{_place(self.axis)}, {values}"


class ImageReading(Reading):
    """Reading of an image as uint8 `[C, 84, 84]`: one grey channel, or the image's own channels.

    Args:
        space: of the observations, with two or three axes and finite bounds.
        axis: of the channels, 0 or 2; None for two axes, which are one channel.
        grey: average red, green and blue.
    """

    def __init__(self, space: gym.spaces.Box, axis: int | None, grey: bool) -> None:
        shape = _channels_first(space.low, axis).shape
        self.shape, self.size, self.axis, self.grey = space.shape, shape[1:], axis, grey and shape[0] > 1
        self.low, high = float(space.low.min()), float(space.high.max())
        self.factor = 255 / (high - self.low)
        self.scaled = (self.low, high) != (0, 255) or np.issubdtype(space.dtype, np.floating)
        self.space = gym.spaces.Box(0, 255, (1 if grey else shape[0], SIDE, SIDE), np.uint8)

    def screen(self, observation: Any) -> NDArray[np.uint8]:
        """Return the screen: pixels from 0 to 255, area-averaged to 84 x 84.

        Raises:
            ValueError: if the image or a pixel is outside its space.
        """
        pixels = np.asarray(observation)
        if pixels.shape != self.shape:
            raise ValueError(f"an image of shape {list(pixels.shape)} is outside its space {list(self.shape)}")
        if self.scaled:
            if not np.isfinite(pixels).all():
                raise ValueError("an observation is not finite")
            # Rounding forgives values that arithmetic puts a little beyond the bounds.
            pixels = np.rint((pixels.astype(np.float32) - self.low) * self.factor)
            if pixels.min() < 0 or pixels.max() > 255:
                raise _outside(np.asarray(observation))
        pixels = _bytes(pixels).astype(np.float32)
        image = torch.from_numpy(np.ascontiguousarray(_channels_first(pixels, self.axis)))
        image = image[:3].mean(0, keepdim=True) if self.grey else image  # a fourth channel is opacity
        return torch.nn.functional.interpolate(image[None], (SIDE, SIDE), mode="area")[0].to(torch.uint8).numpy()

    def describe(self) -> str:
        """Return the size of the image, the place of the channels, and what becomes of its colours."""
        channels = self.space.shape[0]
        colours = "made grey" if self.grey else "grey" if channels == 1 else f"{channels} colours kept"
        height, width = self.size
        return f"an image of {height} x {width}{_place(self.axis)}, {colours}, resized to {SIDE} x {SIDE}"


def read_observations(
    env: str, space: gym.Space[Any], observation: str = "auto", channels: str = "auto", grey: bool = True
) -> Reading:
    """Return the reading of a space.

    With `auto`, bounds, axes and sides decide. A Discrete space is a number. A Box of 2 or 3 axes is an image if it
    has 1 or 3 channels, sides of at least 32, and integers from 0 to 255. A Box of 3 axes may also hold real numbers
    from 0 to 1, or from 0 to 255. Other Boxes of 3 axes are planes. A Box of more axes is refused. Every other space is
    a vector, but a Dict or Tuple with an array of 3 or more axes is refused.

    Args:
        env: id of the environment, for messages.
        space: of the observations.
        observation: one of `OBSERVATIONS`.
        channels: one of `CHANNELS`.
        grey: average the colours of images.

    Raises:
        ConfigError: if the options do not fit the space, or the space is ambiguous.
    """
    axes = len(space.shape) if isinstance(space, gym.spaces.Box) else 0
    if observation == "auto":
        problem = f"does not tell what {axes} axes {list(space.shape or ())} of {env} mean; nearest: 'vector'"
        check(axes <= 3, "data.observation", observation, f"{problem}, and --data.frame_stack stacks screens")
        pictures = _pictures_inside(space)
        problem = f"does not tell how to read {space} of {env}: {', '.join(pictures)} may be an image; 'vector' takes"
        check(not pictures, "data.observation", observation, f"{problem} all as one vector, a wrapper one entry")
    if observation in ("image", "planes"):
        problem = f"needs an array of 2 or 3 axes; {env} observes {_short(space)}; nearest: 'auto'"
        check(axes in (2, 3), "data.observation", observation, problem)
    reading = _read(env, space, observation, channels, grey)
    has_channels = isinstance(reading, PlanesReading | ImageReading) and axes == 3
    problem = f"has no effect: {env} observes {reading.describe()}; nearest: 'auto'"
    check(channels == "auto" or has_channels, "data.channels", channels, problem)
    problem = f"has no effect: {env} observes {reading.describe()}, which is never made grey; drop it"
    check(grey or isinstance(reading, ImageReading), "data.grey", grey, problem)
    return reading


def _read(env: str, space: gym.Space[Any], observation: str, channels: str, grey: bool) -> Reading:
    if isinstance(space, gym.spaces.Discrete) and observation == "auto":
        return NumberReading(space)
    if not isinstance(space, gym.spaces.Box) or observation == "vector" or len(space.shape) not in (2, 3):
        try:
            return VectorReading(space)
        except ConfigError as error:
            raise ConfigError("data.env", env, str(error).partition("'' ")[2]) from None
    axis = None if len(space.shape) == 2 else _channel_axis(env, space.shape, channels)
    if observation == "image":
        return _image(env, space, axis, grey)
    count, *sides = (1, *space.shape) if axis is None else np.moveaxis(space.low, axis, 0).shape
    has_range = _has_range(space, np.integer, 0, 255)
    if axis is not None:  # a float grid of two axes may as well be one-hot, as that of DeepSea
        has_range |= _has_range(space, np.floating, 0, 1) or _has_range(space, np.floating, 0, 255)
    if observation == "auto" and has_range and count in (1, 3) and min(sides) >= IMAGE_SIDE:
        return ImageReading(space, axis, grey)
    return VectorReading(space) if observation == "auto" and axis is None else PlanesReading(space, axis)


def _image(env: str, space: gym.spaces.Box, axis: int | None, grey: bool) -> ImageReading:
    """Return the reading of a space that a user calls an image."""
    low, high = float(space.low.min()), float(space.high.max())
    finite = bool(np.isfinite([low, high]).all()) and low < high
    problem = f"needs finite bounds, which black and white are; {env} observes {_short(space)}; nearest: 'planes'"
    check(finite, "data.observation", "image", problem)
    count = 1 if axis is None else space.shape[axis]
    problem = f"has 1, 3 or 4 channels; {env} observes {list(space.shape)}, {count} channels{_place(axis)}; nearest:"
    check(count in (1, 3, 4), "data.observation", "image", f"{problem} 'planes'")
    return ImageReading(space, axis, grey)


def _channel_axis(env: str, shape: Sequence[int], channels: str) -> int:
    """Return the axis of the channels among three, 0 or 2.

    Two rules are tried in this order, and each must fit exactly one axis: the other two axes have equal lengths; or the
    axis has at most `FEW` entries, and both other axes have more.

    Raises:
        ConfigError: if `channels` is `auto` and the sides decide nothing.
    """
    if channels != "auto":
        return 0 if channels == "first" else 2
    first, middle, last = shape
    if (middle == last) != (first == middle):
        return 0 if middle == last else 2
    few = [count <= FEW and min(sides) > FEW for count, sides in ((first, shape[1:]), (last, shape[:2]))]
    if few[0] != few[1]:
        return 0 if few[0] else 2
    meanings = f"'first' reads {first} of {middle} x {last}, 'last' reads {last} of {first} x {middle}"
    problem = f"does not tell the axes {list(shape)} of {env} apart: {meanings}; type one of both"
    raise ConfigError("data.channels", channels, problem)


def _has_range(space: gym.spaces.Box, kind: Any, low: float, high: float) -> bool:
    """Return whether the numbers of a space are of a kind and all have these bounds."""
    return np.issubdtype(space.dtype, kind) and bool((space.low == low).all() and (space.high == high).all())


def _pictures_inside(space: gym.Space[Any], name: str = "") -> list[str]:
    """Return the names of the arrays of three axes inside a dictionary or tuple of spaces."""
    if isinstance(space, gym.spaces.Dict):
        parts: list[tuple[Any, gym.Space[Any]]] = list(space.spaces.items())
    elif isinstance(space, gym.spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return [repr(name)] if name and isinstance(space, gym.spaces.Box) and len(space.shape) >= 3 else []
    return [inside for key, part in parts for inside in _pictures_inside(part, f"{name}.{key}".lstrip("."))]


def _is_flattenable(space: gym.Space[Any]) -> bool:
    try:
        return space.is_np_flattenable
    except NotImplementedError:  # a space of an environment's own class
        return False


def _channels_first(array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Return an array `[C, H, W]`."""
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return whole numbers from 0 to 255 as uint8.

    Raises:
        ValueError: if there are other numbers.
    """
    with np.errstate(invalid="ignore"):  # a number that is no byte is an error below
        whole = array.astype(np.uint8)
    if array.dtype != np.uint8 and not np.array_equal(whole, array):
        raise _outside(array)
    return whole


def _outside(array: NDArray[Any]) -> ValueError:
    """Return the error that the numbers of an observation are outside their space."""
    return ValueError(f"an observation has {array.dtype} values from {array.min()} to {array.max()}, outside its space")


def _place(axis: int | None) -> str:
    return "" if axis is None else f", channels {'last' if axis else 'first'}"


def _short(space: gym.Space[Any]) -> str:
    """Return a space without its bounds."""
    return f"{space.dtype} {list(space.shape)}" if isinstance(space, gym.spaces.Box) else str(space)
