"""What Lightning iterates over: the stream in training, sets of games otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bayes_rl.games import Games
from bayes_rl.stream import ReplayStream
from bayes_rl.types import Batch


class StreamLoader:
    """The stream as Lightning's training loader.

    Its state is the data module's: Lightning restores that of loaders in the middle of an epoch only. An empty one
    tells Lightning that stopping there is safe.
    """

    def __init__(self, stream: ReplayStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class GameLoader:
    """A loader whose batches are sets of games, one of each task."""

    def __init__(self, games: Sequence[Games]) -> None:
        self.games = games

    def __len__(self) -> int:
        return len(self.games)

    def __iter__(self) -> Iterator[Games]:
        return iter(self.games)
