"""Replay, stream and data module."""
