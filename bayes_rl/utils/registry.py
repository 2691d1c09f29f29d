"""Registry of named implementations of an option, which users extend from outside the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from bayes_rl.errors import check_choice

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of an option by the name that selects them, in the order of registration.

    ```python
    ENCODERS: Registry[Encoder] = Registry("model.encoder")


    @ENCODERS.register("mlp")
    class MLP(Encoder): ...


    ENCODERS["mlp"]  # the class MLP
    ```

    Args:
        key: option that takes the name, as errors call it, for example `model.encoder`.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates, and returns it unchanged.

        Registering the same definition again (a notebook cell that runs twice, a module that is reloaded) replaces
        the first one.

        Args:
            name: value of the option that selects the implementation.

        Raises:
            ValueError: by the decorator, if another implementation has that name.
        """

        def add(entry: T) -> T:
            present = self._entries.get(name)
            if present is not None and _origin(present) != _origin(entry):
                raise ValueError(f"{self.key} {name!r} is registered already, by {present!r}")
            self._entries[name] = entry
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

    def __len__(self) -> int:
        return len(self._entries)


def _origin(entry: object) -> tuple[object, object]:
    kind = type(entry) if not hasattr(entry, "__qualname__") else entry
    return getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)
