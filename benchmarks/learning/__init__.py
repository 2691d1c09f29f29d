"""Benchmarks of scores after training."""
