"""Worked examples of the documentation, imported by their path."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import bayes_rl
from bayes_rl.bayes import LIKELIHOODS, POSTERIORS
from bayes_rl.networks import ENCODERS

EXAMPLES = Path(bayes_rl.__file__).parents[1] / "docs/examples"


@contextmanager
def example(name: str) -> Iterator[ModuleType]:
    """Import `docs/examples/NAME.py`, and forget afterwards what it has registered."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as stack:
        for registry in (POSTERIORS, LIKELIHOODS, ENCODERS):
            stack.enter_context(mock.patch.dict(registry._entries))
            stack.enter_context(mock.patch.dict(registry._places))
        spec.loader.exec_module(module)
        yield module
