"""Commands that the ranks of a group run together, one after the other."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from bayes_rl.cli import app


def run_commands(commands: list[tuple[str, list[str]]]) -> int:
    """Do what `bayes-rl WORDS` does for each (folder, words), and return the number of commands that ended well."""
    warnings.simplefilter("ignore")
    for folder, words in commands:
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        sys.argv = ["bayes-rl", *words]
        app.run()
    return len(commands)


CALL = f"{run_commands.__module__}:{run_commands.__name__}"
