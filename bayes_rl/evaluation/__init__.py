"""Whole games, their metrics and videos."""
