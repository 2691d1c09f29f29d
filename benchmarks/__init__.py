"""Benchmarks of speed, of learning and of reliability: `python -m benchmarks list`."""
