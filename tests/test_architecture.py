"""The house's own rules: imports point downward, everything public is documented, rooms stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bayes_rl

PACKAGE = Path(bayes_rl.__file__).parent
FILES = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")

RANKS = {
    "types": 0,
    "bounds": 0,
    "transfers": 0,
    "files": 1,
    "checkpoints": 2,
    "deep_sea": 0,
    "wrappers": 0,
    "vector": 0,
    "posterior": 1,
    "capture": 1,
    "settings": 1,
    "losses": 1,
    "likelihoods": 1,
    "calibration": 1,
    "uncertainty": 1,
    "metrics": 1,
    "continual": 1,
    "atari": 1,
    "envs": 1,
    "fused": 1,
    "guards": 1,
    "lean": 1,
    "layers": 2,
    "bayes": 2,
    "encoders": 2,
    "priors": 2,
    "networks": 2,
    "fisher": 2,
    "consolidation": 2,
    "replay": 2,
    "device_replay": 2,
    "exploration": 2,
    "tasks": 2,
    "stream": 3,
    "games": 3,
    "diagnostics": 3,
    "optimizer": 3,
    "scores": 3,
    "loaders": 3,
    "player": 4,
    "lifelong": 4,
    "module": 4,
    "datamodule": 4,
    "figures": 4,
    "runs": 5,
    "report": 6,
    "summary": 4,
    "callbacks": 4,
    "video": 5,
    "export": 5,
    "options": 5,
    "resume": 5,
    "forecast": 5,
    "cli": 6,
}
# Within a rank nothing imports its neighbour, but for these pairs (importer, imported).
ALLOWED_WITHIN_A_RANK = {
    ("envs", "atari"),  # one door for all kinds of environment
    ("settings", "capture"),  # what can be chosen there
    ("likelihoods", "losses"),  # the Gaussian one is a formula of the objective
    ("uncertainty", "calibration"),  # metrics of its formulas
    ("bayes", "layers"),  # what layers share; layers, encoders of layers, networks of encoders
    ("encoders", "bayes"),
    ("networks", "bayes"),
    ("priors", "encoders"),
    ("networks", "encoders"),
    ("networks", "priors"),
    ("fisher", "networks"),  # of each of them
    ("device_replay", "replay"),  # the same, with a copy of it
    ("consolidation", "fisher"),
    ("consolidation", "networks"),
    ("loaders", "games"),  # what Lightning iterates over
    ("loaders", "stream"),
    ("scores", "games"),  # metrics of them
    ("lifelong", "player"),  # the agent is what plays, goes from task to task, and learns
    ("module", "lifelong"),
    ("summary", "datamodule"),
    ("callbacks", "summary"),
    ("callbacks", "datamodule"),  # callbacks read the data module's counters
    ("options", "export"),  # an exported agent has options too
}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60  # of the body: a signature with many settings, and the docstring, are not counted


def imported_rooms(tree: ast.AST) -> set[str]:
    """Names of this package's modules that a syntax tree imports, wherever in the file."""
    rooms: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = f"bayes_rl.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            # `from bayes_rl import losses` names the module after `import`.
            dotted = [f"{source}.{alias.name}" for alias in node.names] if source == "bayes_rl" else [source]
        else:
            continue
        for name in dotted:
            head, *rest = name.split(".")
            if head == "bayes_rl" and rest:
                rooms.add(rest[0])
            elif head == "cli":
                rooms.add("cli")
    return rooms


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_import_reader_sees_every_form() -> None:
    source = """
import bayes_rl.replay
from bayes_rl import losses, types
from bayes_rl.module import VariationalActorCritic
from . import stream
from .envs import Envs
import torch
def late():
    import cli
"""
    expected = {"replay", "losses", "types", "module", "stream", "envs", "cli"}
    assert imported_rooms(ast.parse(source)) == expected


def test_every_file_has_a_rank() -> None:
    assert {path.stem for path in FILES} | {"cli"} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_downward(path: Path) -> None:
    for room in imported_rooms(parse(path)):
        assert room in RANKS, f"{path.name} imports {room}, which has no rank"
        downward = RANKS[room] < RANKS[path.stem]
        allowed = (path.stem, room) in ALLOWED_WITHIN_A_RANK
        assert downward or allowed, (
            f"{path.name} (rank {RANKS[path.stem]}) imports {room} (rank {RANKS[room]}): imports point downward only"
        )


def test_no_allowed_pair_is_left_over() -> None:
    for importer, imported in ALLOWED_WITHIN_A_RANK:
        assert RANKS[importer] == RANKS[imported]
        assert imported in imported_rooms(parse(PACKAGE / f"{importer}.py"))


def test_the_learner_and_the_data_do_not_know_each_other() -> None:
    """Only the command line knows both; the policy reaches the stream as a `Policy`."""
    data = {"envs", "tasks", "exploration", "replay", "device_replay", "stream", "datamodule"}
    learner = {"networks", "fisher", "consolidation", "lifelong", "module", "losses", "bayes"}
    for path in FILES:
        imports = imported_rooms(parse(path))
        if path.stem in data:
            assert not imports & learner, path.name
        if path.stem in learner:
            assert not imports & data, path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_public_has_a_docstring(path: Path) -> None:
    """Modules, classes, functions; methods too unless a base class outside or above documents what they are."""
    tree = parse(path)
    assert ast.get_docstring(tree), path.name
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name}"
        if isinstance(node, ast.ClassDef) and not node.bases:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{path.name}:{method.lineno} {node.name}.{method.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{path.name} has {lines} lines: a room with two nouns is split"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MAX_FUNCTION_LINES, f"{path.name}:{node.lineno} {node.name} has {lines} lines"
