"""Fixtures of the tests of training."""

from tests.helpers.pictures import pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]
