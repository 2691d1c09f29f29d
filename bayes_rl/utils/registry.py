"""Registry of named implementations of an option, which users extend from outside the package."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator
from typing import Any, Generic, TypeVar

from bayes_rl.errors import check_choice

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of an option by the name that selects them, in the order of registration.

    ```python
    ENCODERS: Registry[Encoder] = Registry("model.network.encoder")


    @ENCODERS.register("mlp")
    class MLP(Encoder): ...


    ENCODERS["mlp"]  # the class MLP
    ```

    Args:
        key: option that takes the name, as errors call it, for example `model.network.encoder`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, T] = {}
        self._places: dict[str, tuple[str, str]] = {}

    def register(self, name: str, origin: object = None) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates, and returns it unchanged.

        Registering the same definition again (a notebook cell that runs twice, a module that is reloaded) replaces
        the first one.

        Args:
            name: value of the option that selects the implementation.
            origin: class or function that the implementation comes from, if the implementation is neither.

        Raises:
            ValueError: by the decorator, if another implementation has that name.
        """

        def add(entry: T) -> T:
            place = _place(entry if origin is None else origin)
            if self._places.get(name, place) != place:
                raise ValueError(f"{self.key} {name!r} is registered already, by {'.'.join(self._places[name])}")
            self._entries[name], self._places[name] = entry, place
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Return the implementation called `name`.

        Raises:
            ConfigError: if there is none. The message lists all names and the nearest one.
        """
        check_choice(self.key, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._entries)

    def items(self) -> ItemsView[str, T]:
        """Return names with their implementations."""
        return self._entries.items()

    def __len__(self) -> int:
        return len(self._entries)


def _place(definition: object) -> tuple[str, str]:
    """Return the module and the qualified name of a class or function, or of an object's class."""
    named: Any = definition if hasattr(definition, "__qualname__") else type(definition)
    return named.__module__, named.__qualname__
