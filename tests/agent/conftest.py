"""Fixtures of the tests of agents."""

from tests.helpers.pictures import _figures_are_not_rendered

__all__ = ["_figures_are_not_rendered"]
