"""Failures that cost one line."""

from __future__ import annotations

import pytest

from bayes_rl.utils.failures import describe_error, warn_of_failure
from bayes_rl.utils.stop_signals import Stopped


def test_a_failure_costs_one_line_that_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with warn_of_failure("drawing the curve"):
        raise NotImplementedError("no\nwindow")
    with warn_of_failure("closing the games"):
        pass
    printed = capsys.readouterr()
    assert printed.err == "bayes-rl: warning: drawing the curve failed: NotImplementedError: no window\n"
    assert printed.out == ""


def test_a_signal_is_no_failure() -> None:
    with pytest.raises(Stopped), warn_of_failure("drawing"):
        raise Stopped(130)


def test_an_error_without_a_text_is_named_by_its_class() -> None:
    assert describe_error(RuntimeError()) == "RuntimeError"
