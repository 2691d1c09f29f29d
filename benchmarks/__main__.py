"""Command line of the benchmarks: `python -m benchmarks list` and `python -m benchmarks NAME [options]`."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDERS = {
    "speed": (
        "learner",
        "environments",
        "libraries",
        "scaling",
        "update_rate",
        "bayesian_heads",
        "consolidation",
        "checkpoints",
        "denormals",
        "ranks",
        "exchange",
        "versions",
    ),
    "learning": (
        "ablation",
        "continual",
        "deep_sea",
        "exact_members",
        "posterior",
        "sparse",
        "time_to_score",
        "trained_agents",
        "gpu_study",
    ),
    "reliability": ("crash", "leaks", "snapshot"),
}
MODULES = {name: f"benchmarks.{folder}.{name}" for folder, names in FOLDERS.items() for name in names}


def first_line(folder: str, name: str) -> str:
    """Return the first line of a benchmark's docstring, without importing what the benchmark needs."""
    source = (Path(__file__).parent / folder / f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def show_list() -> None:
    """Print all benchmarks by folder."""
    for folder, names in FOLDERS.items():
        print(folder)
        for name in names:
            print(f"  {name:16s}{first_line(folder, name)}")


def main(words: Sequence[str]) -> int:
    """Run the benchmark that the first word names, and return the exit status."""
    if not words or words[0] in ("list", "-h", "--help"):
        print(__doc__)
        show_list()
        return 0
    name, *options = words
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, 1)
        hint = f" (nearest: {near[0]})" if near else ""
        print(f"there is no benchmark {name}{hint}: see python -m benchmarks list", file=sys.stderr)
        return 2
    from bayes_rl.errors import ConfigError
    from benchmarks import runner

    try:
        return runner.main(importlib.import_module(MODULES[name]).BENCHMARK, name, options)
    except ConfigError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
