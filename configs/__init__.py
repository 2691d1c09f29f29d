"""Configurations that are installed with the package as `bayes_rl.configs`."""
