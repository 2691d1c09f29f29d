"""Callbacks of a run, checkpoints, resource checks and exported agents."""
