"""One parser for many command lines: to collect its options takes longer than all that is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from pytorch_lightning.cli import LightningCLI

PARTS = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
"""Attributes that hold what `setup_parser` makes."""

_MADE: dict[tuple[str, ...], dict[str, Any]] = {}  # by the verbs that a parser knows

_setup_parser = LightningCLI.setup_parser


def _setup_once(self: LightningCLI, add_subcommands: bool, main: dict[str, Any], of_verbs: dict[str, Any]) -> None:
    verbs = tuple(of_verbs)
    if verbs not in _MADE:
        _setup_parser(self, add_subcommands, main, of_verbs)
        _MADE[verbs] = {name: vars(self)[name] for name in PARTS}
    vars(self).update(_MADE[verbs])
    self.parser._instantiators = None  # each command line adds its own


@contextmanager
def one_parser() -> Iterator[None]:
    """Make the parser of a verb once in this process.

    Most tests of a life cycle, and those of a user's modules and of README, build one for each command, as a user does.
    """
    with mock.patch.object(LightningCLI, "setup_parser", _setup_once):
        yield
