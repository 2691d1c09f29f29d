"""Metrics of returns, calibration, uncertainty and continual learning."""
