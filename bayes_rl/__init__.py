"""Bayesian reinforcement learning on PyTorch Lightning."""
