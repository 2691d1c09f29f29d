"""Benchmarks of resuming, of resources and of equality to the bit."""
