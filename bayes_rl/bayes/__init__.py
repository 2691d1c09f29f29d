"""Variational Bayesian layers, usable without the rest of the package."""
