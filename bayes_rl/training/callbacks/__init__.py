"""Callbacks of a fit."""
