"""The runner of the benchmarks: options, continuing, commits, origins, child processes."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks import __main__ as command_line
from benchmarks import runner
from benchmarks.runner import Benchmark

WORDS = {"denormals": ["last.ckpt"], "time_to_score": ["sb3"], "versions": ["earlier"]}
"""Positional arguments that a benchmark needs."""


class Squares:
    """Benchmark of squares, which notes what it measures and can be interrupted."""

    def __init__(self, **settings: Any) -> None:
        self.measured: list[int] = []
        self.interrupt_at: int | None = None
        add = settings.pop("add_arguments", lambda parser: parser.add_argument("--numbers", type=int, default=4))
        self.benchmark = Benchmark(
            description="Squares.", cells=self.cells, measure=self.measure, add_arguments=add, **settings
        )

    @staticmethod
    def cells(options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"number": number} for number in range(options.numbers)]

    def measure(self, cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
        if cell["number"] == self.interrupt_at:
            raise KeyboardInterrupt
        self.measured.append(cell["number"])
        return {"square": cell["number"] ** 2}

    def run(self, *words: object) -> int:
        return runner.main(self.benchmark, "squares", [str(word) for word in words])


def stored(output: Path) -> dict[str, Any]:
    return dict(json.loads(output.read_text()))


def numbers(output: Path) -> list[int]:
    return [row["number"] for row in stored(output)["measurements"]]


def change(output: Path, **fields: Any) -> None:
    output.write_text(json.dumps(stored(output) | fields))


# --------------------------------------------------------------------------------------------- storing and continuing
def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    squares, output = Squares(), tmp_path / "squares.json"
    squares.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        squares.run("--output", output)
    assert numbers(output) == [0, 1]
    squares.interrupt_at = None
    assert squares.run("--output", output, "--keep") == 0
    assert numbers(output) == squares.measured == [0, 1, 2, 3]
    assert [row["square"] for row in stored(output)["measurements"]] == [0, 1, 4, 9]


def test_a_benchmark_is_measured_in_pieces(tmp_path: Path) -> None:
    squares, output = Squares(), tmp_path / "squares.json"
    for _ in range(3):
        squares.run("--output", output, "--keep", "--most=3", "--numbers=5")
    assert numbers(output) == squares.measured == [0, 1, 2, 3, 4]


def test_without_keep_all_is_measured_again(tmp_path: Path) -> None:
    squares, output = Squares(), tmp_path / "squares.json"
    squares.run("--output", output)
    squares.run("--output", output, "--most=1")
    assert numbers(output) == [0]
    assert squares.measured == [0, 1, 2, 3, 0]


def test_a_later_cell_may_follow_from_earlier_rows(tmp_path: Path) -> None:
    squares = Squares()
    most = lambda rows: max((row["square"] for row in rows if row["number"] < 4), default=0)  # noqa: E731
    cells = lambda options, rows: [*squares.cells(options, rows), {"number": most(rows)}]  # noqa: E731
    benchmark = Benchmark("Squares.", cells, squares.measure, add_arguments=squares.benchmark.add_arguments)
    runner.main(benchmark, "squares", [f"--output={tmp_path / 'squares.json'}"])
    assert numbers(tmp_path / "squares.json") == [0, 1, 2, 3, 9]


def test_rows_of_another_commit_are_not_continued(tmp_path: Path) -> None:
    squares, output = Squares(), tmp_path / "squares.json"
    squares.run("--output", output, "--most=2")
    change(output, commit="0123456789")
    before = output.read_bytes()
    with pytest.raises(SystemExit, match="is of commit 0123456: drop --keep"):
        squares.run("--output", output, "--keep")
    assert squares.measured == [0, 1]
    assert output.read_bytes() == before
    squares.run("--output", output)
    assert stored(output)["commit"] == runner.origin("")["commit"]


def test_rows_measured_for_another_time_are_not_continued(tmp_path: Path) -> None:
    squares, output = Squares(shared={"seconds": 6, "rounds": 3}), tmp_path / "squares.json"
    squares.run("--output", output, "--most=2", "--seconds=5")
    with pytest.raises(SystemExit, match=r"was measured with --seconds 5.0, not 6: drop --keep"):
        squares.run("--output", output, "--keep")
    squares.run("--output", output, "--keep", "--seconds=5", "--rounds=9")  # more rounds are a continuation
    assert numbers(output) == [0, 1, 2, 3]


def test_a_file_of_another_layout_is_not_continued(tmp_path: Path) -> None:
    output = tmp_path / "squares.json"
    output.write_text('{"commit": "", "rows": {}}')
    with pytest.raises(SystemExit, match="has no list of measurements to continue"):
        Squares().run("--output", output, "--keep")


def test_rows_with_a_key_keep_their_own_origins(tmp_path: Path) -> None:
    squares, output = Squares(key=("number",)), tmp_path / "squares.json"
    squares.run("--output", output)
    rows = stored(output)["measurements"]
    rows[0]["commit"] = rows[3]["commit"] = "0123456789"
    change(output, measurements=rows)
    squares.run("--output", output, "--most=2")
    assert squares.measured == [0, 1, 2, 3, 0, 1]
    now = runner.origin("")["commit"]
    assert [row["commit"] for row in stored(output)["measurements"]] == [now, now, now, "0123456789"]
    assert "commit" not in stored(output)
    squares.run("--output", output, "--keep", "--numbers=5")
    assert squares.measured[6:] == [4]


def test_rows_in_files_of_their_own_are_not_measured_again(tmp_path: Path) -> None:
    squares = Squares(files="square_{number}.json", draw=lambda rows: Figure())
    squares.run("--output", tmp_path, "--most=1")
    change(tmp_path / "square_0.json", commit="0123456789")
    squares.run("--output", tmp_path)
    assert squares.measured == [0, 1, 2, 3]
    files = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert [row["square"] for row in files] == [0, 1, 4, 9]
    assert [row["commit"] == "0123456789" for row in files] == [True, False, False, False]
    assert (tmp_path / "table.md").read_text().count("\n") == 6
    assert (tmp_path / f"{tmp_path.name}.png").stat().st_size > 0


def test_a_file_of_the_same_name_but_other_fields_is_measured_again(tmp_path: Path) -> None:
    squares = Squares(files="square_{number}.json")
    squares.run("--output", tmp_path)
    change(tmp_path / "square_2.json", number=7)
    squares.run("--output", tmp_path)
    assert squares.measured == [0, 1, 2, 3, 2]
    assert stored(tmp_path / "square_2.json")["number"] == 2


def test_the_remaining_time_follows_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Squares 1 to 5 are expected to take 1 to 5 hours; two are measured at a time."""
    minutes = lambda cell, rows: 60 * cell["number"]  # noqa: E731
    squares = Squares(files="square_{number}.json", expected_minutes=minutes, shared={"jobs": 2})
    squares.run("--output", tmp_path, "--numbers=6", "--most=3")
    lines = [line for line in capsys.readouterr().out.splitlines() if "are left" in line]
    assert lines == [
        "5 of 6 are left; about 1.5 h for 2 of them",
        "4 of 6 are left; about 1.0 h for 1 of them",
        "3 of 6 are left; about 0.0 h for 0 of them",
    ]


def test_results_tell_where_they_are_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    squares = Squares(
        shared={"rounds": 3, "threads": 2},
        facts=lambda options: {"frame_skip": 4},
        summarize=lambda rows: [{"sum": sum(row["square"] for row in rows)}],
        draw=lambda rows: Figure(),
    )
    output = tmp_path / "squares.json"
    squares.run("--output", output, "--threads=1")
    content = stored(output)
    assert content["command"] == "python -m benchmarks squares --threads=1"  # no folder of this machine
    assert {"commit", "processor", "cores", "gpu", "torch", "python"} <= set(content)
    assert (content["rounds"], content["threads"], content["frame_skip"]) == (3, 1, 4)
    assert content["summary"] == [{"sum": 14}]
    table = output.with_suffix(".md").read_text()
    assert table.splitlines() == ["| number | square |", "|---|---|", *(f"| {i} | {i * i} |" for i in range(4))]
    assert table in capsys.readouterr().out
    assert output.with_suffix(".png").stat().st_size > 0


def test_a_row_that_makes_the_comparison_void_is_not_stored(tmp_path: Path) -> None:
    check = lambda rows: ["too large"] if rows[-1]["square"] > 3 else []  # noqa: E731
    squares, output = Squares(check=check), tmp_path / "squares.json"
    with pytest.raises(SystemExit, match="too large"):
        squares.run("--output", output)
    assert numbers(output) == [0, 1]


def test_a_failed_verdict_is_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    squares, output = Squares(verdict=lambda rows: [f"{len(rows)} squares"]), tmp_path / "squares.json"
    assert squares.run("--output", output) == 1
    assert numbers(output) == [0, 1, 2, 3]
    assert "4 squares" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- child processes
@pytest.mark.slow
def test_children_measure_and_a_failed_one_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DeepSea of size 4 is measured; there is no DeepSea of size 0."""
    deep_sea = importlib.import_module("benchmarks.learning.deep_sea").BENCHMARK
    words = ["--sizes", "0", "4", "--agents=thompson", "--episodes=3", "--jobs=2", f"--output={tmp_path}"]
    assert runner.main(deep_sea, "deep_sea", words) == 1
    printed = capsys.readouterr()
    assert "agent thompson, size 0, seed 1 failed: " in printed.err
    assert "Traceback" not in printed.err
    row = stored(tmp_path / "thompson_size4_seed1.json")
    assert (row["agent"], row["size"], row["seed"]) == ("thompson", 4, 1)
    assert row["episodes"] >= 3
    assert row["command"] == f"python -m benchmarks deep_sea {' '.join(words[:-1])}"
    assert "| thompson | 4 | 1 |" in (tmp_path / "table.md").read_text()
    assert not list(tmp_path.glob("*size0*"))


def test_a_child_has_the_options_and_threads_of_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        returncode = 3

        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            started.append((command, env))
            cell = json.loads(command[command.index("--child") + 1])
            if cell["number"]:
                Path(command[command.index("--result") + 1]).write_text('{"square": 1}')

        def poll(self) -> int:
            return 3

        wait = poll

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    squares = Squares(child=True)
    cells = lambda options, rows: [{"number": number, "threads": 2} for number in range(2)]  # noqa: E731
    benchmark = Benchmark(
        "Squares.", cells, squares.measure, child=True, shared={"rounds": 1}, facts=lambda options: {"processor": "x"}
    )
    monkeypatch.setattr(runner, "origin", lambda command: {"command": command, "commit": ""})
    output = tmp_path / "squares.json"
    assert runner.main(benchmark, "squares", ["--rounds=7", f"--output={output}"]) == 1  # exit code 3, no result
    assert numbers(output) == [1]  # a result counts, even if the process ended badly after it
    (command, environment), _ = started
    assert command[1:5] == ["-m", "benchmarks", "squares", "--rounds=7"]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PYTHONPATH"] == str(runner.ROOT)
    options = runner.parse(benchmark, "squares", command[4:])
    assert (options.rounds, options.output, options.child["number"]) == (7, output, 0)
    assert squares.measured == []


# ------------------------------------------------------------------------------------------------------ command line
@pytest.mark.parametrize("name", command_line.MODULES)
def test_every_benchmark_has_the_shared_options(name: str) -> None:
    benchmark = importlib.import_module(command_line.MODULES[name]).BENCHMARK
    options = runner.parse(benchmark, name, WORDS.get(name, []))
    assert options.output == runner.RESULTS / (name if benchmark.files else f"{name}.json")
    assert (options.most, options.child) == (10**6, None)
    for option, default in benchmark.shared.items():
        assert getattr(options, option) == default
        changed = runner.parse(benchmark, name, [*WORDS.get(name, []), f"--{option}=7", "--most=2", "--keep"])
        assert (getattr(changed, option), changed.most, changed.keep) == (7, 2, True)
    assert command_line.first_line(command_line.MODULES[name].split(".")[1], name) in benchmark.description


def test_unknown_options_are_refused_or_collected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.parse(Squares().benchmark, "squares", ["--round=2"])
    assert "unrecognized arguments: --round=2" in capsys.readouterr().err
    assert runner.parse(Squares(accepts_more=True).benchmark, "squares", ["--round=2"]).more == ["--round=2"]


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names == list(command_line.MODULES)
    files = {
        path.stem for folder in command_line.FOLDERS for path in (runner.ROOT / "benchmarks" / folder).glob("*.py")
    }
    assert set(names) == files - {
        "__init__", "bare_learner", "contenders", "episodes", "fit_in_turns", "game_gif", "record_states", "silent_run",
    }  # fmt: skip


def test_an_unknown_benchmark_gets_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["lerner"]) == 2
    assert "there is no benchmark lerner (nearest: learner)" in capsys.readouterr().err
