"""Failures that do not matter to a result: of drawing, encoding and cleaning up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def describe_error(error: BaseException) -> str:
    """Return the class and the text of an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")


@contextlib.contextmanager
def warn_of_failure(what: str) -> Iterator[None]:
    """Print one line if this block raises an error, and go on behind the block.

    Args:
        what: what the block does, as the subject of the line: `drawing the learning curve`.
    """
    try:
        yield
    except Exception as error:
        print(f"bayes-rl: warning: {what} failed: {describe_error(error)}", file=sys.stderr, flush=True)
