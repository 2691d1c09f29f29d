"""Command line."""

from bayes_rl.cli.commands import main

__all__ = ["main"]
