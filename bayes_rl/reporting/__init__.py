"""Curves, tables and reports of runs."""
