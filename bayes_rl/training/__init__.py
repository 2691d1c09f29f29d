"""Callbacks, checkpoints and exported agents."""
