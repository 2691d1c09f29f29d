"""Runner of all benchmarks: options, storing and continuing, child processes, and the origin of every figure.

A benchmark describes its cells (what is measured, in order) and measures one of them. The runner parses the options,
measures the cells in this process or in child processes, and stores the rows after every cell. An interrupted
benchmark continues with `--keep`; rows of two commits are never mixed under one origin.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bayes_rl.cli.process import end_with_parent
from bayes_rl.utils.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
POLL_SECONDS = 0.1

Options = argparse.Namespace
Cell = dict[str, Any]
"""Fields, as JSON has them, that name one measurement."""
Row = dict[str, Any]
"""Fields of a cell together with the results of its measurement."""

SHARED_OPTIONS: dict[str, tuple[type, str]] = {
    "rounds": (int, "turns of every measurement"),
    "seconds": (float, "measured time of one process"),
    "threads": (int, "threads of PyTorch"),
    "jobs": (int, "measurements at the same time, one thread each"),
}
"""Options that a benchmark takes from here by giving a default in `Benchmark.shared`."""


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def _no_facts(options: Options) -> dict[str, Any]:
    """Return no further facts about a run of the benchmark."""
    return {}


def _nothing(options: Options) -> None:
    """Prepare nothing."""


def _accept_all(rows: list[Row]) -> list[str]:
    """Find no fault in any row."""
    return []


def _no_limit(options: Options) -> float:
    """Return no time limit."""
    return math.inf


@dataclass(frozen=True)
class Benchmark:
    """A set of measurements that can be interrupted and continued.

    Args:
        description: docstring of the benchmark's module: its question, its method and example commands.
        cells: function of the options and of the rows so far that returns what to measure, in order. A later cell may
            depend on earlier rows.
        measure: function of one cell and the options that returns the results. The runner joins cell and results.
        table: function of all rows that returns Markdown.
        draw: function of all rows that returns a figure, or None without one.
        summarize: function of all rows that returns what is stored as `summary`.
        add_arguments: adds the options of this benchmark alone.
        shared: defaults of those `SHARED_OPTIONS` that the benchmark has.
        prepare: checks and completes the options before the first cell, in the parent process alone.
        facts: further facts to store beside the origin, such as versions of compared packages.
        child: whether every cell is measured in a process of its own.
        show_output: whether the output of a child process is printed.
        key: fields that identify a row where rows of several commits stand in one file. Every row then has its own
            origin, and replaces an earlier row with the same key.
        files: pattern with the fields of a cell in braces, where every row is a file of its own. The output is then a
            directory, every row has its own origin, and cells whose file has the same fields are not measured again.
        accepts_more: whether unknown words are collected in `options.more` instead of being refused.
        check: finds faults that make a comparison of the rows void. The runner stops before it stores such a row.
        verdict: finds failures among the stored rows. The exit status is 1 if there are any.
        seconds_left: time in seconds until a child process is killed.
        finish: last step, after the table.
        expected_minutes: of a cell, given all rows so far. With it, every stored row is followed by a line on the
            remaining time.
    """

    description: str
    cells: Callable[[Options, list[Row]], list[Cell]]
    measure: Callable[[Cell, Options], Row]
    table: Callable[[list[Row]], str] = field(default=lambda rows: markdown(rows))
    draw: Callable[[list[Row]], Figure | None] | None = None
    summarize: Callable[[list[Row]], list[Row]] | None = None
    add_arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    shared: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Options], None] = _nothing
    facts: Callable[[Options], dict[str, Any]] = _no_facts
    child: bool = False
    show_output: bool = False
    key: tuple[str, ...] = ()
    files: str = ""
    accepts_more: bool = False
    check: Callable[[list[Row]], list[str]] = _accept_all
    verdict: Callable[[list[Row]], list[str]] = _accept_all
    seconds_left: Callable[[Options], float] = _no_limit
    finish: Callable[[Options, Results], None] | None = None
    expected_minutes: Callable[[Cell, list[Row]], float] | None = None


# ------------------------------------------------------------------------------------------------ origin and files
def origin(command: str) -> dict[str, str | int | None]:
    """Return the command, without folders of this machine, and the commit, versions and hardware of a figure."""
    return {"command": re.sub(r" --\w+[ =]/\S*", "", command), "commit": _commit(), **machine()}


def machine() -> dict[str, str | int | None]:
    """Return the hardware and the versions of this machine."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str:
    """Return the commit of the working tree, or the variable COMMIT in a copy without a repository."""
    git = shutil.which("git")
    process = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True) if git else None
    return process.stdout.strip() if process and not process.returncode else os.environ.get("COMMIT", "")


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that an interruption leaves the old or the new content."""
    text = json.dumps(content, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(text.encode()))


def read_rows(folder: Path, pattern: str = "*.json") -> list[Row]:
    """Return the rows of a directory, where each is a file of its own, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def markdown(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return a Markdown table of rows, by default of all their fields that hold one number or word.

    Args:
        rows: fields by name. A list of three numbers is shown as quartiles.
        columns: names of the fields to show, in order.
    """
    shown = list(columns) or list(dict.fromkeys(key for row in rows for key, value in row.items() if _is_short(value)))
    lines = [f"| {' | '.join(shown)} |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(_formatted(row.get(column)) for column in shown) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(isinstance(number, int | float) for number in value)
    return value is None or (isinstance(value, int | float | str) and "\n" not in str(value))


def _formatted(value: Any) -> str:
    if isinstance(value, list):
        low, middle, high = (_formatted(number) for number in value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first, second and third quartile, rounded to three decimals."""
    if len(values) == 1:
        return [*values] * 3
    return [round(quartile, 3) for quartile in statistics.quantiles(values, n=4, method="inclusive")]


def cell_name(cell: Cell) -> str:
    """Return a cell in words."""
    return cell.get("run") or ", ".join(f"{key} {value}" for key, value in cell.items() if value not in ({}, None))


# ----------------------------------------------------------------------------------------------------------- results
class Results:
    """Rows of a benchmark on disk, with their table and figure.

    Args:
        benchmark: the benchmark that the rows belong to.
        output: JSON file of all rows, or the directory of their files.
        source: origin of new rows.
        keep: whether to continue with the rows that the file holds.

    Raises:
        SystemExit: if rows of another commit, or measured with other shared options, were to be continued.
    """

    def __init__(self, benchmark: Benchmark, output: Path, source: dict[str, Any], keep: bool) -> None:
        self.benchmark, self.output, self.source = benchmark, output, source
        self.added: list[Row] = []
        self._own_origins = bool(benchmark.key or benchmark.files)
        self.rows = self._read() if keep or self._own_origins else []

    def has(self, cell: Cell) -> bool:
        """Return whether a row of this cell is stored."""
        if self.benchmark.files and not self._file(cell).exists():
            return False
        fields = self.benchmark.key or tuple(cell)
        return any(all(row.get(name) == cell.get(name) for name in fields) for row in self.rows)

    def add(self, cell: Cell, result: Row) -> None:
        """Store one row and renew the table and the figure.

        Raises:
            SystemExit: if the row makes the comparison void. The row is not stored.
        """
        row = (self.source if self._own_origins else {}) | cell | result
        if self.benchmark.files:
            write_json(self._file(cell), row)
            self.rows = self._read()
        elif self.benchmark.key:  # another process may have added its row to the file since
            self.rows = self._sorted([other for other in self._read() if self._key(other) != self._key(row)] + [row])
        else:
            self.rows = [*self.rows, row]
        self.added.append(row)
        if faults := self.benchmark.check(self.rows):
            sys.exit("\n".join(faults))
        if not self.benchmark.files:
            write_json(self.output, self._content())
        self.draw()

    def draw(self) -> None:
        """Write the table and the figure of all rows."""
        folder = bool(self.benchmark.files)
        table = self.output / "table.md" if folder else self.output.with_suffix(".md")
        picture = self.output / f"{self.output.name}.png" if folder else self.output.with_suffix(".png")
        if not self.rows:
            return
        table.write_text(self.benchmark.table(self.rows))
        figure = self.benchmark.draw(self.rows) if self.benchmark.draw else None
        if figure is not None:
            figure.savefig(picture, dpi=120, metadata={"Software": None})

    def _content(self) -> dict[str, Any]:
        head = {} if self._own_origins else dict(self.source)
        summary = {"summary": self.benchmark.summarize(self.rows)} if self.benchmark.summarize else {}
        return head | summary | {"measurements": self.rows}

    def _read(self) -> list[Row]:
        if self.benchmark.files:
            return read_rows(self.output, re.sub(r"\{\w+\}", "*", self.benchmark.files))
        if not self.output.exists():
            return []
        content = json.loads(self.output.read_text())
        if "measurements" not in content:
            sys.exit(f"{self.output} has no list of measurements to continue: give another --output")
        if not self._own_origins:
            self._check_source(content)
        return list(content["measurements"])

    def _check_source(self, content: dict[str, Any]) -> None:
        if content["commit"] != self.source["commit"]:
            sys.exit(f"{self.output} is of commit {content['commit'][:7]}: drop --keep to measure all of it again")
        for name in ("seconds", "threads"):
            before, now = content.get(name), self.source.get(name)
            if before is not None and before != now:
                sys.exit(f"{self.output} was measured with --{name} {before}, not {now}: drop --keep to measure again")

    def _file(self, cell: Cell) -> Path:
        return self.output / self.benchmark.files.format(**cell)

    def _key(self, row: Row) -> list[Any]:
        return [row.get(name) for name in self.benchmark.key]

    def _sorted(self, rows: list[Row]) -> list[Row]:
        return sorted(rows, key=self._key)


# --------------------------------------------------------------------------------------------------- child processes
class Child:
    """Process that measures one cell: `python -m benchmarks NAME ... --child CELL` in a temporary directory.

    Args:
        name: of the benchmark.
        cell: what to measure.
        words: command line of the parent process, so that the child has the same options.
        output: where the parent process stores its rows.
        threads: value of OMP_NUM_THREADS, or None to leave the variable as it is.
        show_output: whether to print what the process prints.
    """

    def __init__(
        self, name: str, cell: Cell, words: Sequence[str], output: Path, threads: int | None, show_output: bool
    ) -> None:
        self.cell = cell
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._result, self._errors = folder / "result.json", folder / "errors.txt"
        more = ["--child", json.dumps(cell), "--result", str(self._result), "--output", str(output.resolve())]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths}
        environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks", name, *words, *more],
                cwd=folder,
                env=environment,
                stdout=None if show_output else subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def ended(self) -> bool:
        """True once the process has ended."""
        return self._process.poll() is not None

    def result(self) -> Row | str:
        """Wait for the process, and return its results, or the last line of its error output if it wrote no results."""
        self._process.wait()
        with self._folder:
            if self._result.exists():
                return dict(json.loads(self._result.read_text()))
            lines = self._errors.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"exit code {self._process.returncode}"

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


# ---------------------------------------------------------------------------------------------------------- the loop
def parse(benchmark: Benchmark, name: str, words: Sequence[str]) -> Options:
    """Return the options of a benchmark: those shared by all, those it shares with some, and its own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=benchmark.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, default in benchmark.shared.items():
        kind, text = SHARED_OPTIONS[option]
        parser.add_argument(f"--{option}", type=kind, default=default, help=f"{text} (default: {default})")
    output = RESULTS / (name if benchmark.files else f"{name}.json")
    parser.add_argument("--output", type=Path, default=output, help="where the rows are stored")
    parser.add_argument("--keep", action="store_true", help="continue with the rows that the output holds")
    parser.add_argument("--most", type=int, default=10**6, help="measure at most this many cells now")
    if "jobs" in benchmark.shared:
        text = "auto or HOST:PORT of a Ray cluster, whose every core measures (extra cluster)"
        parser.add_argument("--address", help=text)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    benchmark.add_arguments(parser)
    options, more = parser.parse_known_args(words)
    if more and not benchmark.accepts_more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more
    return options


class Loop:
    """Loop over the cells of a benchmark.

    Args:
        benchmark: what to measure.
        name: of the benchmark.
        options: its options.
        words: command line that the options come from.
        results: rows so far, and the store of new rows.
    """

    def __init__(
        self, benchmark: Benchmark, name: str, options: Options, words: Sequence[str], results: Results
    ) -> None:
        self.benchmark, self.name, self.options, self.words, self.results = benchmark, name, options, words, results
        self.failed = False
        self._jobs = int(options.jobs) if "jobs" in benchmark.shared else 1  # measurements at the same time
        self._attempted: list[Cell] = []
        self._skip_stored = options.keep or not benchmark.key

    def run(self) -> None:
        """Measure every cell that has no row yet."""
        if self.benchmark.child:
            self._run_children()
            return
        while (cell := self._next_cell()) is not None:
            self._store(cell, self.benchmark.measure(cell, self.options))

    def _next_cell(self) -> Cell | None:
        """Return the next cell without a row. It then counts as attempted."""
        if len(self._attempted) >= self.options.most:
            return None
        for cell in json.loads(json.dumps(self.benchmark.cells(self.options, self.results.rows))):
            if cell not in self._attempted and not (self._skip_stored and self.results.has(cell)):
                self._attempted.append(cell)
                return dict(cell)
        return None

    def _store(self, cell: Cell, result: Row | str) -> None:
        """Print and store the results of a cell, or print its error."""
        if isinstance(result, str):
            print(f"{cell_name(cell)} failed: {result}", file=sys.stderr, flush=True)
            self.failed = True
            return
        numbers = {key: value for key, value in result.items() if key not in cell and _is_short(value)}
        words = ", ".join(f"{key} {_formatted(value)}" for key, value in numbers.items())
        print(f"{cell_name(cell)}: {words}", flush=True)
        self.results.add(cell, result)
        self._show_remaining_time()

    def _show_remaining_time(self) -> None:
        """Print how many cells are left and how long they will take, if the benchmark can tell."""
        if (expected := self.benchmark.expected_minutes) is None:
            return
        rows = self.results.rows
        cells = json.loads(json.dumps(self.benchmark.cells(self.options, rows)))
        left = [cell for cell in cells if not self.results.has(cell)]
        to_measure = left[: max(0, self.options.most - len(self.results.added))]
        hours = sum(expected(cell, rows) for cell in to_measure) / 60 / self._jobs
        print(f"{len(left)} of {len(cells)} are left; about {hours:.1f} h for {len(to_measure)} of them", flush=True)

    def _run_children(self) -> None:
        """Measure every cell in a process of its own: on a cluster, or here, several at a time if there is `--jobs`."""
        if (address := getattr(self.options, "address", None)) is None:
            self._measure_all(self._start)
            return
        from benchmarks.cluster import RemoteChild, measuring

        with measuring(address) as (remote, self._jobs):
            # A machine of the cluster works in a folder of its own.
            options = Options(**{**vars(self.options), "output": self.options.output.resolve()})
            arguments = {"words": self.words, "name": self.name, "options": options}
            self._measure_all(lambda cell: RemoteChild(remote, cell, **arguments))

    def _measure_all(self, start: Callable[[Cell], Any]) -> None:
        """Measure every cell, `_jobs` at a time.

        Args:
            start: begins the measurement of a cell, and returns its `Child` or `RemoteChild`.
        """
        running: list[Any] = []
        try:
            while True:
                while len(running) < self._jobs and (cell := self._next_cell()) is not None:
                    running.append(start(cell))
                if not running:
                    return
                time.sleep(POLL_SECONDS)
                for child in [child for child in running if child.ended]:
                    running.remove(child)
                    self._store(child.cell, child.result())
                if running and self.benchmark.seconds_left(self.options) <= 0:
                    print(f"no time left for {'; '.join(cell_name(child.cell) for child in running)}", flush=True)
                    return
        finally:
            for child in running:
                child.kill()

    def _start(self, cell: Cell) -> Child:
        threads = cell.get("threads", 1 if "jobs" in self.benchmark.shared else None)
        return Child(self.name, cell, self.words, self.options.output, threads, self.benchmark.show_output)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit` within this block, so that child processes are ended and files removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(benchmark: Benchmark, name: str, words: Sequence[str]) -> int:
    """Run a benchmark and return the exit status.

    Args:
        benchmark: what to measure.
        name: of the benchmark, of its result files and of its command.
        words: command line after the name.
    """
    options = parse(benchmark, name, words)
    if options.child is not None:
        end_with_parent()
        write_json(options.result, benchmark.measure(options.child, options))
        return 0
    benchmark.prepare(options)
    shared = {key: getattr(options, key) for key in benchmark.shared if key != "jobs"}
    source = {**origin(" ".join(["python -m benchmarks", name, *words])), **shared, **benchmark.facts(options)}
    results = Results(benchmark, options.output, source, options.keep)
    loop = Loop(benchmark, name, options, words, results)
    with exit_on_sigterm():
        loop.run()
    if results.rows:
        print(benchmark.table(results.rows))
    if benchmark.finish is not None:
        benchmark.finish(options, results)
    failures = benchmark.verdict(results.rows)
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures) or loop.failed)
