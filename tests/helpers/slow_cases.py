"""Cases of a test of which most are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *quick: Any, id: Any = str) -> list[Any]:
    """Return the cases as parameters, marked slow but for those that are named as quick.

    Args:
        cases: values of the parameter.
        quick: ids of the cases that run with every test.
        id: function from a case to its id.
    """
    missing = set(quick) - {id(case) for case in cases}
    assert not missing, f"no such cases: {missing}"
    return [pytest.param(case, id=id(case), marks=() if id(case) in quick else pytest.mark.slow) for case in cases]
