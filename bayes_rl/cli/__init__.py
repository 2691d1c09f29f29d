"""Command line."""

from bayes_rl.cli.app import main, run

__all__ = ["main", "run"]
