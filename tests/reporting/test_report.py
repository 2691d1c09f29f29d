"""The report on synthetic run directories: numbers by hand, intervals by brute force, pictures, and bad input."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

import bayes_rl
from bayes_rl.cli import commands
from bayes_rl.data.exploration import DrawSchedule
from bayes_rl.reporting.report import find_bounds, label_runs, measure
from bayes_rl.reporting.runs import Run, read_run
from tests.helpers.pictures import save_one_pixel
from tests.helpers.run_directories import (
    EPOCH,
    HALF,
    NAN,
    REFERENCES,
    ROWS,
    edit,
    sequence,
    single,
    tables,
)


@pytest.fixture(autouse=True)
def _figures_are_not_rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render figures in tests with the marker `pictures` alone."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_one_pixel)


def references(path: Path, content: object = REFERENCES) -> list[str]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ["--references", str(path)]


def report(tmp_path: Path, *arguments: object) -> str:
    commands.report([*map(str, arguments), "--output", str(tmp_path / "out")])
    return (tmp_path / "out" / "report.md").read_text()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a run with these arguments ends with."""
    with pytest.raises(SystemExit) as exit_code:
        commands.report([*map(str, arguments)])
    printed = capsys.readouterr()
    assert exit_code.value.code == 2
    assert printed.out == ""
    assert re.fullmatch(r"bayes-rl: error: [^\n]+\n", printed.err)
    return printed.err


# Numbers


def test_one_run_by_hand(tmp_path: Path) -> None:
    """After visits: (0, 0), (.8, .1), (.2, .6), the last epoch of each visit; greatest returns 9 and 6."""
    text = report(tmp_path, sequence(tmp_path / "a"), *references(tmp_path / "r.json"))
    summary, scores = tables(text)
    assert summary == [
        {
            "method": "fine-tuning",
            "seeds": "1",
            "average performance": "0.40",
            "IQM": "0.40",
            "new tasks": "0.70",
            "forgetting": "0.30",
            "backward transfer": "-0.60",
            "isolated forgetting": "0.67",  # (8 - 2) / 9
            "zero-shot transfer": "0.17",  # (1 - 0) / 6
        }
    ]
    common = {"as 0": "0", "as 1": "10", "method": "fine-tuning"}
    assert scores == [
        {"task": "breakout", **common, "after its visit": "8.0", "at the end": "2.0"},
        {"task": "pong", **common, "after its visit": "6.0", "at the end": "6.0"},
    ]
    assert f"* `{tmp_path / 'a'}`: fine-tuning, seed 1, 200 frames" in text


def test_two_cycles_by_hand(tmp_path: Path) -> None:
    rows = {-1: [(1, 1)], 0: [(0, 0), (4, 1)], 1: [(0, 0), (2, 3)], 2: [(0, 0), (9, 2)], 3: [(0, 0), (6, 8)]}
    summary, scores = tables(
        report(tmp_path, sequence(tmp_path / "a", rows, cycles=2), *references(tmp_path / "r.json"))
    )
    assert summary[0]["average performance"] == "0.70"
    assert summary[0]["new tasks"] == "0.35"  # first visits
    assert summary[0]["forgetting"] == "0.15"  # since last visits
    assert summary[0]["backward transfer"] == "-0.30"
    assert summary[0]["isolated forgetting"] == "0.22"  # (4 - 2) / 9, in the first cycle
    assert summary[0]["zero-shot transfer"] == "0.00"
    assert [row["after its first visit"] for row in scores] == ["4.0", "3.0"]
    assert [row["after its last visit"] for row in scores] == ["9.0", "8.0"]
    assert [row["at the end"] for row in scores] == ["6.0", "8.0"]


def test_seeds_are_averaged_and_methods_kept_apart(tmp_path: Path) -> None:
    better = {visit: [(a + 1, b + 1) for a, b in rows] for visit, rows in ROWS.items()}
    runs = [
        sequence(tmp_path / "a", seed=1),
        sequence(tmp_path / "b", better, "ewc", seed=1),
        sequence(tmp_path / "c", better, seed=2),
    ]
    text = report(tmp_path, *runs, *references(tmp_path / "r.json"))
    summary, scores = tables(text)
    assert [(row["method"], row["seeds"]) for row in summary] == [("fine-tuning", "2"), ("ewc", "1")]
    assert summary[0]["average performance"] == "0.45 (0.40 to 0.50)"
    assert summary[0]["forgetting"] == "0.30 (0.30 to 0.30)"
    assert "(a to b) is min to max of single seeds" in text
    assert summary[0]["isolated forgetting"] == "0.60 (0.60 to 0.60)"  # 6 / 10: the scale is that of both seeds
    assert summary[1]["average performance"] == "0.50"
    assert summary[1]["zero-shot transfer"] == "0.14"  # 1 / 7
    assert scores[0]["after its visit"] == "8.5 [8.0, 9.0]"
    assert scores[1]["after its visit"] == "9.0"
    assert "seed 2, 200 frames" in text


@pytest.mark.parametrize(
    ("first", "low", "transfer"),
    [
        # Reference 0, 5, 10 of 10: area .5. Breakout 0, 5, 8: .45; pong, from the end of visit 0, 1, 3, 6: .325.
        (0, "0", "-0.22"),  # mean of (.45 - .5) / .5 and (.325 - .5) / .5
        # Validated from frame 50 on, the curve is 0 at frame 0, 0 at 50 and 5 at 100: area .125, above frame 100 cut.
        (50, "0", "0.30"),  # mean of (.45 - .125) / .875 and (.325 - .125) / .875
    ],
)
def test_forward_transfer_by_hand(tmp_path: Path, first: int, low: str, transfer: str) -> None:
    alone = [single(tmp_path / env, env, (0, 5, 10), first) for env in ("breakout", "pong")]
    summary, scores = tables(report(tmp_path, sequence(tmp_path / "a"), *alone))
    assert summary[0]["forward transfer"] == transfer
    assert {(row["as 0"], row["as 1"]) for row in scores} == {(low, "10")}
    assert summary[0]["average performance"] == "0.40"


def test_forward_transfer_sets_each_task_against_its_own_reference(tmp_path: Path) -> None:
    alone = [single(tmp_path / "p", "pong", (0, 0, 10)), single(tmp_path / "b", "breakout", (0, 5, 10))]
    summary, _ = tables(report(tmp_path, sequence(tmp_path / "a"), *alone))
    assert summary[0]["forward transfer"] == "0.00"  # mean of (.45 - .5) / .5 and (.325 - .25) / .75


def test_forward_transfer_averages_the_areas_of_the_references(tmp_path: Path) -> None:
    alone = [single(tmp_path / "p", "pong", (0, 5, 10))]
    alone += [single(tmp_path / f"b{seed}", "breakout", (0, 5, last), seed=seed) for seed, last in ((1, 6), (2, 14))]
    run = read_run(sequence(tmp_path / "a"))
    bounds = torch.tensor([[0.0, 0.0], [10.0, 10.0]], dtype=torch.float64)
    values = measure([run], bounds, [[*map(read_run, alone[1:])], [read_run(alone[0])]])["forward transfer"]
    torch.testing.assert_close(values, torch.tensor([[-0.1, -0.35]], dtype=torch.float64))
    with_one_missing = measure([run], bounds, [[], [read_run(alone[0])]])["forward transfer"]
    torch.testing.assert_close(with_one_missing, torch.tensor([[NAN, -0.35]], dtype=torch.float64), equal_nan=True)


def test_intervals_know_the_spread_of_the_references(tmp_path: Path) -> None:
    """With five references apart, score 1 and forward transfer are less certain than with five equal ones."""
    runs = [
        sequence(tmp_path / f"a{seed}", {v: [(a + seed / 9, b) for a, b in r] for v, r in ROWS.items()}, seed=seed)
        for seed in range(1, 6)
    ]
    widths = []
    for spread, name in ((0, "equal"), (1, "apart")):
        alone = [
            single(tmp_path / f"{name}{env}{seed}", env, (0, 5, 10 + spread * (seed - 3)), seed=seed)
            for env in ("breakout", "pong")
            for seed in range(1, 6)
        ]
        summary, _ = tables(report(tmp_path, *runs, *alone))
        ends = [re.findall(r"-?[0-9.]+", summary[0][column]) for column in ("average performance", "forward transfer")]
        widths.append([float(high) - float(low) for _, low, high in ends])
    assert all(apart > 1.2 * equal > 0 for equal, apart in zip(*widths, strict=True))


def test_a_reference_of_null_is_that_of_the_single_task_runs(tmp_path: Path) -> None:
    alone = [single(tmp_path / env, env, (3, 5, 10)) for env in ("breakout", "pong")]
    given = references(tmp_path / "r.json", {"breakout": [0, None], "pong": [0, None]})
    summary, scores = tables(report(tmp_path, sequence(tmp_path / "a"), *alone, *given))
    assert {(row["as 0"], row["as 1"]) for row in scores} == {("0", "10")}
    assert summary[0]["average performance"] == "0.40"
    assert not [line for line in (tmp_path / "out/report.md").read_text().splitlines() if "warning" in line]


def test_a_reference_of_other_spaces_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = [
        single(tmp_path / "b", "breakout", (0, 5, 10), spaces_of=()),
        single(tmp_path / "p", "pong", (0, 5, 10)),
    ]
    text = report(tmp_path, sequence(tmp_path / "a"), *alone)
    (warning,) = [line for line in text.splitlines() if "warning" in line]
    assert f"{alone[0]}: may have other actions and observations" in warning
    assert """--data.spaces_of '["breakout", "pong"]'""" in warning


def test_stopped_games_count_as_random_play_in_normalised_numbers_alone(tmp_path: Path) -> None:
    """Raw scores stay in the table of scores; runs without the column count as they are."""
    path = sequence(tmp_path / "a")
    rows = np.load(path / "metrics.npy")
    names = [(name, np.float64) for name in rows.dtype.names]
    counted = np.empty(len(rows), [*names, ("breakout/return_counted", "f8"), ("pong/return_counted", "f8")])
    for name in rows.dtype.names:
        counted[name] = rows[name]
    counted["breakout/return_counted"], counted["pong/return_counted"] = rows["breakout/return_mean"], 0
    np.save(path / "metrics.npy", counted)
    summary, scores = tables(report(tmp_path, path, *references(tmp_path / "r.json")))
    assert summary[0]["average performance"] == "0.10"  # of 2 and 0 of 10, not of 2 and 6
    assert scores[1]["at the end"] == "6.0"


def test_forward_transfer_against_a_perfect_reference_is_no_number(tmp_path: Path) -> None:
    alone = [single(tmp_path / env, env, (100, 100, 100)) for env in ("breakout", "pong")]
    summary, _ = tables(report(tmp_path, sequence(tmp_path / "a"), *alone, "--normalise", "human"))
    assert "forward transfer" not in summary[0]


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_measures_equal_loops(tasks: int, cycles: int, seeds: int, random: Any) -> None:
    """Random runs of several epochs a visit, against the definitions, each run and number looked up one by one."""
    visits, epochs = tasks * cycles, 2
    low, high = [random.randint(-5, 0) for _ in range(tasks)], [random.randint(1, 9) for _ in range(tasks)]
    runs = []
    for _ in range(seeds):
        visit = [-1, *(v for v in range(visits) for _ in range(epochs))]
        scores = np.array([[random.randint(-8, 8) for _ in range(tasks)] for _ in visit], np.float64)
        frames = np.arange(len(visit), dtype=np.float64) * EPOCH
        names = [f"task{i}" for i in range(tasks)]
        where = np.array(visit, np.float64)
        runs.append(Run(Path("run"), 0, names, cycles, epochs * EPOCH, EPOCH, "none", {}, frames, where, scores))
    measured = measure(runs, torch.tensor([low, high], dtype=torch.float64), [[]] * tasks)
    for n, run in enumerate(runs):
        raw = [[run.scores[epochs * v][i] for i in range(tasks)] for v in range(visits + 1)]
        norm = [[(row[i] - low[i]) / (high[i] - low[i]) for i in range(tasks)] for row in raw]
        last = [visits - tasks + i + 1 for i in range(tasks)]
        scale = [max(abs(s) for r in runs for s in r.scores[:, i]) or 1 for i in range(tasks)]
        cells = list(itertools.product(range(tasks), repeat=2))
        expected = {
            "average performance": norm[-1],
            "IQM": norm[-1],
            "new tasks": [norm[i + 1][i] for i in range(tasks)],
            "forgetting": [norm[last[i]][i] - norm[-1][i] for i in range(tasks)],
            "backward transfer": [norm[-1][i] - norm[last[i]][i] for i in range(tasks - 1)],
            "forward transfer": [NAN] * tasks,
            "isolated forgetting": [(raw[j][i] - raw[j + 1][i]) / scale[i] for i, j in cells if j > i],
            "zero-shot transfer": [(raw[j + 1][i] - raw[j][i]) / scale[i] for i, j in cells if j < i],
        }
        assert measured.keys() == expected.keys()
        for column, values in expected.items():
            assert measured[column][n].tolist() == pytest.approx(values, abs=1e-12, nan_ok=True), column


# What a score is measured by, and what a run is called


def test_the_default_is_the_human_score_unless_references_are_given(tmp_path: Path) -> None:
    run = sequence(tmp_path / "a", {-1: [(1.7, -20.7)], 0: [(0, 0), (16.1, -3.05)], 1: [(0, 0), (30.5, 14.6)]})
    summary, scores = tables(report(tmp_path, run))
    assert summary[0]["average performance"] == "1.00"
    assert summary[0]["new tasks"] == "0.75"
    assert (scores[0]["as 0"], scores[0]["as 1"]) == ("1.7", "30.5")
    for chosen in ([*references(tmp_path / "r.json"), "--normalise", "human"], ["--normalise", "human"]):
        assert tables(report(tmp_path, run, *chosen))[0] == summary
    summary, _ = tables(report(tmp_path, run, *references(tmp_path / "r.json")))
    assert summary[0]["average performance"] == "2.25"  # (3.05 + 1.46) / 2


def test_references_stand_before_single_task_runs(tmp_path: Path) -> None:
    alone = [single(tmp_path / f"b{seed}", "breakout", (1, 90, last), seed=seed) for seed, last in ((1, 20), (2, 30))]
    runs = [read_run(path) for path in (*alone, single(tmp_path / "p", "pong", (-20, -8), first=50))]
    assert find_bounds("breakout", "reference", {}, runs) == (1, 25)
    assert find_bounds("breakout", "reference", {"breakout": [2, 3]}, runs) == (2, 3)
    assert find_bounds("breakout", "human", {"breakout": [2, 3]}, runs) == (1.7, 30.5)
    with pytest.raises(ValueError, match=r"pong: \[0.0, -8.0\] is no random score"):
        find_bounds("pong", "reference", {}, runs)  # frame 0 was not validated: 0 is taken for random


def test_labels_tell_what_differs(tmp_path: Path) -> None:
    def labels(*made: tuple[str, dict[str, Any], float]) -> list[str]:
        runs = []
        for number, (method, data, strength) in enumerate(made):
            path = sequence(tmp_path / f"{len(os.listdir(tmp_path))}-{number}", method=method, **data)
            config = yaml.safe_load((path / "config.yaml").read_text())
            config["model"]["consolidation"]["ewc_lambda"] = strength
            (path / "config.yaml").write_text(yaml.safe_dump(config))
            runs.append(read_run(path))
        return list(label_runs(runs))

    assert labels(("none", {}, 0.0), ("none", {}, 5.0), ("ewc", {}, 400.0), ("vcl", {}, 1.0)) == [
        "fine-tuning",
        "ewc",
        "vcl",
    ]
    assert labels(("ewc", {}, 4.0), ("online_ewc", {}, 5.0), ("ewc", {}, 40.0)) == [
        "ewc, consolidation.ewc_lambda 4.0",
        "online_ewc",
        "ewc, consolidation.ewc_lambda 40.0",
    ]
    film: dict[str, Any] = {"task_conditioning": "film"}
    assert labels(("vcl", film, 1.0), ("vcl", {}, 1.0), ("none", film, 0.0), ("vcl", film, 2.0)) == [
        "vcl, consolidation.ewc_lambda 1.0, curriculum.task_conditioning film",
        "vcl, consolidation.ewc_lambda 1.0, curriculum.task_conditioning none",
        "fine-tuning",
        "vcl, consolidation.ewc_lambda 2.0, curriculum.task_conditioning film",
    ]


def test_runs_that_learn_from_other_data_are_no_seeds_of_one_agent(tmp_path: Path) -> None:
    first, second = (
        read_run(sequence(tmp_path / f"{seed}", seed=seed, replay={"gamma": gamma}, rules={"sticky_actions": 0.25}))
        for seed, gamma in ((1, 0.9), (2, 0.99))
    )
    assert list(label_runs([first, second])) == ["fine-tuning, replay.gamma 0.9", "fine-tuning, replay.gamma 0.99"]
    elsewhere = read_run(sequence(tmp_path / "gpu", seed=3, replay={"gamma": 0.9, "device": "cuda"}))
    assert len(label_runs([first, elsewhere])) == 2  # the rules of one are not known
    other_rules = read_run(sequence(tmp_path / "r", replay={"gamma": 0.9}, rules={"sticky_actions": 0.0}))
    assert list(label_runs([first, other_rules])) == [
        "fine-tuning, rules.sticky_actions 0.25",
        "fine-tuning, rules.sticky_actions 0.0",
    ]
    same = [
        read_run(sequence(tmp_path / f"on_{device}", replay={"gamma": 0.9, "device": device}))
        for device in ("cpu", "cuda")
    ]
    assert list(label_runs(same)) == ["fine-tuning"]  # where minibatches are made changes nothing
    old, always, falling = (
        read_run(sequence(tmp_path / f"draws{number}", **data))
        for number, data in enumerate(({}, {"draws": asdict(DrawSchedule())}, {"draws": asdict(DrawSchedule(1, 0, 9))}))
    )
    assert list(label_runs([old, always])) == ["fine-tuning"]
    assert len(label_runs([always, falling])) == 2
    switches = [
        read_run(
            sequence(tmp_path / switch, curriculum={"epsilon_at_switch": switch, "cycles": 1, "frames_per_task": 9})
        )
        for switch in ("restart", "continue")
    ]
    assert len(label_runs(switches)) == 2


def test_names_of_tasks(tmp_path: Path) -> None:
    path = sequence(tmp_path / "a", tasks=("ALE/Breakout-v5", "MinAtar/Breakout-v1"))
    with pytest.raises(ValueError, match="no validations in a column 'breakout/return_mean'"):
        read_run(path)
    run = read_run(sequence(tmp_path / "b", tasks=("breakout", "MinAtar/Breakout-v1")))
    assert run.tasks == ["breakout", "MinAtar-Breakout-v1"]
    assert run.seed == 1
    assert read_run(single(tmp_path / "c", "ALE/Breakout-v5", (1, 2))).tasks == ["breakout"]
    content = {"breakout": [0, 10], "MinAtar-Breakout-v1": [0, 5]}
    _, scores = tables(report(tmp_path, run.path, *references(tmp_path / "r.json", content)))
    assert [(row["task"], row["as 1"]) for row in scores] == [("breakout", "10"), ("MinAtar-Breakout-v1", "5")]


def test_an_incomplete_run_is_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, whole = sequence(tmp_path / "half", HALF), sequence(tmp_path / "whole", seed=2)
    given = references(tmp_path / "r.json")
    message = refused(capsys, half, whole, *given, "--output", tmp_path / "out")
    assert f"{half}: 1 of 2 visits are finished; finish training, or give --allow_incomplete" in message
    assert not (tmp_path / "out").exists()
    text = report(tmp_path, half, whole, *given, "--allow_incomplete")
    assert capsys.readouterr().err == f"bayes-rl: warning: {half}: 1 of 2 visits are finished\n"
    assert f"* warning: {half}: 1 of 2 visits are finished\n" in text
    summary, scores = tables(text)
    assert summary[0]["seeds"] == "2"
    assert summary[0]["average performance"] == "0.40 (1 of 2 runs)"
    assert summary[0]["isolated forgetting"] == "0.67 (1 of 2 runs)"
    assert summary[0]["zero-shot transfer"] == "0.17 (0.17 to 0.17)"  # the first visit tells
    assert scores[0]["after its visit"] == "8.0 [8.0, 8.0]"
    assert scores[1]["at the end"] == "6.0"
    alone = [single(tmp_path / env, env, (0, 5, 10)) for env in ("breakout", "pong")]
    summary, scores = tables(report(tmp_path, half, *alone, "--allow_incomplete"))
    assert summary[0]["zero-shot transfer"] == "0.33"  # 1 / 3
    assert set(summary[0]) == {"method", "seeds", "zero-shot transfer"}
    assert scores[1]["at the end"] == "-"


def test_without_a_validation_before_training(tmp_path: Path) -> None:
    run = sequence(tmp_path / "a", {0: ROWS[0], 1: ROWS[1]})
    alone = [single(tmp_path / env, env, (0, 5, 10)) for env in ("breakout", "pong")]
    summary, _ = tables(report(tmp_path, run, *alone))
    assert summary[0]["average performance"] == "0.40"
    assert summary[0]["forward transfer"] == "-0.22"  # breakout starts from random play, 0
    assert "zero-shot transfer" not in summary[0]


# Pictures


@pytest.mark.pictures
def test_pictures_are_png_and_not_blank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = [single(tmp_path / env, env, (0, 5, 10)) for env in ("breakout", "pong")]
    runs = [sequence(tmp_path / "a"), sequence(tmp_path / "b", method="vcl"), sequence(tmp_path / "c", method="ewc")]
    text = report(tmp_path, *runs, *alone)
    out = tmp_path / "out"
    assert capsys.readouterr().out == text + "\n" + "".join(
        f"{out / n}\n" for n in ("report.md", "curves.png", "matrix.png")
    )
    for name in ("curves.png", "matrix.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        colours = np.unique((imread(out / name)[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)
        assert len(colours) > 100
        assert min(imread(out / name).shape[:2]) > 200


# As a command


@pytest.mark.slow
def test_the_verb_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "bayes_rl", "report", "a"]
    sequence(tmp_path / "a")
    environment = {**os.environ, "PYTHONPATH": str(Path(bayes_rl.__file__).parents[1])}
    good = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines()[-3:] == ["report/report.md", "report/curves.png", "report/matrix.png"]
    assert good.stdout.startswith((tmp_path / "report/report.md").read_text())


def test_the_report_is_the_same_each_time(tmp_path: Path) -> None:
    runs = [
        sequence(tmp_path / f"{seed}", {v: [(a + seed, b) for a, b in r] for v, r in ROWS.items()}) for seed in (0, 1)
    ]
    first = report(tmp_path, *runs, *references(tmp_path / "r.json"))
    again = tmp_path / "out" / ".." / runs[0].name
    for twice in (runs[0], again):  # counted once, also by another path
        assert report(tmp_path, *runs, twice, *references(tmp_path / "r.json")) == first


def rewrite(path: Path, change: Callable[[np.ndarray[Any, Any]], object]) -> None:
    np.save(path / "metrics.npy", np.asarray(change(np.load(path / "metrics.npy"))), allow_pickle=True)


def without(column: str) -> Callable[[np.ndarray[Any, Any]], object]:
    return lambda rows: rows[[name for name in rows.dtype.names or () if name != column]]


def with_value(column: str, row: int, value: float) -> Callable[[np.ndarray[Any, Any]], object]:
    def change(rows: np.ndarray[Any, Any]) -> object:
        rows[column][row] = value
        return rows

    return change


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda run: (run / "config.yaml").unlink(), "config.yaml: No such file"),
    "no metrics": (lambda run: (run / "metrics.npy").unlink(), "metrics.npy: No such file"),
    "not yaml": (lambda run: (run / "config.yaml").write_text("a: [1\nb: }"), "config.yaml: while parsing"),
    "not text": (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml: "),
    "a list": (lambda run: (run / "config.yaml").write_text("- 1"), "data.env must be a str, got None"),
    "objects": (lambda run: rewrite(run, lambda rows: np.array([{}, {}], object)), "metrics.npy: "),
    "a pickle": (lambda run: (run / "metrics.npy").write_bytes(b"\x80\x04N."), "metrics.npy: "),
    "empty file": (lambda run: (run / "metrics.npy").write_bytes(b""), "metrics.npy: "),
    "cut short": (
        lambda run: (run / "metrics.npy").write_bytes((run / "metrics.npy").read_bytes()[:-8]),
        "metrics.npy: ",
    ),
    "plain numbers": (
        lambda run: rewrite(run, lambda rows: np.zeros((3, 2))),
        "has no validations in a column 'frames'",
    ),
    "no rows": (lambda run: rewrite(run, lambda rows: rows[:0]), "metrics.npy"),
    "no frames": (lambda run: rewrite(run, without("frames")), "no validations in a column 'frames'"),
    "no visit": (lambda run: rewrite(run, without("visit")), "no validations in a column 'visit'"),
    "no score": (
        lambda run: rewrite(run, without("pong/return_mean")),
        "no validations in a column 'pong/return_mean'; nearest: 'breakout/return_mean'",
    ),
    "frames fall": (lambda run: rewrite(run, with_value("frames", 2, 10)), "frames must increase"),
    "no number": (lambda run: rewrite(run, with_value("visit", 2, NAN)), "visit be a number"),
    "no cycles": (
        lambda run: edit(run, "data.curriculum.cycles", ...),
        "data.curriculum.cycles must be a positive int, got None",
    ),
    "zero cycles": (
        lambda run: edit(run, "data.curriculum.cycles", 0),
        "data.curriculum.cycles must be a positive int, got 0",
    ),
    "no visit length": (
        lambda run: edit(run, "data.curriculum.frames_per_task", "x"),
        "data.curriculum.frames_per_task must be a positive",
    ),
    "no epoch": (lambda run: edit(run, "data.frames_per_epoch", ...), "data.frames_per_epoch must be a positive int"),
    "no list": (lambda run: edit(run, "data.tasks", "pong"), "data.tasks must be a list, got 'pong'"),
    "twice": (lambda run: edit(run, "data.tasks", ["pong", "ALE/Pong-v5"]), "names a task twice"),
    "no method": (
        lambda run: edit(run, "model.consolidation.method", 3),
        "model.consolidation.method must be a str, got 3",
    ),
    "no section": (lambda run: edit(run, "data", ...), "data.env must be a str"),
    "longer": (lambda run: edit(run, "data.curriculum.frames_per_task", 1000), "1 of 2 visits are finished"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_run_is_named_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = BAD[name]
    run = sequence(tmp_path / "run")
    change(run)
    said = refused(capsys, run, "--output", tmp_path / "out")
    assert message in said
    assert str(run) in said
    assert not (tmp_path / "out").exists()


def test_runs_that_do_not_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, given = sequence(tmp_path / "a"), references(tmp_path / "r.json")
    other = sequence(tmp_path / "b", tasks=("pong", "breakout"))
    expected = f"{other}: data.tasks ['pong', 'breakout'] differs from ['breakout', 'pong'] of {run}"
    assert expected in refused(capsys, run, other, *given)
    edit(other, "data.tasks", ["breakout", "pong"])
    edit(other, "data.curriculum.cycles", 2)
    assert f"{other}: data.curriculum.cycles 2 differs from 1 of {run}" in refused(capsys, run, other, *given)
    edit(other, "data.curriculum.cycles", 1)
    edit(other, "data.curriculum.frames_per_task", 90)
    assert "data.curriculum.frames_per_task 90 differs from 100" in refused(capsys, run, other, *given)
    foreign = single(tmp_path / "c", "ALE/Breakout-v5", (0, 5, 10))
    edit(foreign, "data.env", "breakout2")
    assert "data.env 'breakout2' is none of the tasks breakout, pong; nearest: 'breakout'" in refused(
        capsys, run, foreign
    )
    assert "none of the runs has data.tasks" in refused(capsys, single(tmp_path / "d", "pong", (0, 5, 10)))
    short = single(tmp_path / "e", "pong", (0, 5))
    assert f"{short}: its 50 frames are fewer than a visit's 100" in refused(capsys, run, short)


def test_the_error_of_a_wrong_path_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequence(tmp_path / "ewc_seed_1")
    said = refused(capsys, tmp_path / "ewc_sed_1")
    assert said == f"bayes-rl: error: {tmp_path / 'ewc_sed_1'} is no directory; nearest: 'ewc_seed_1'\n"
    assert "is no directory" in refused(capsys, tmp_path / "nowhere" / "x")


def test_a_task_without_a_measure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sequence(tmp_path / "a", tasks=("breakout", "CartPole-v1"))
    said = refused(capsys, run)
    assert 'CartPole-v1: no human score is known; give --references FILE.json with {"CartPole-v1"' in said
    alone = single(tmp_path / "b", "breakout", (0, 5, 10))
    assert "CartPole-v1: no reference score is known" in refused(capsys, run, alone)
    assert "CartPole-v1: no reference score" in refused(
        capsys, run, *references(tmp_path / "r.json", {"breakout": [0, 1]})
    )


@pytest.mark.parametrize("pair", [[1], "x", [1, "2"], [2, 1], [1, 1], 3, {"a": 1}, [0, NAN], [0, float("inf")]])
def test_a_bad_reference_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], pair: object) -> None:
    given = references(tmp_path / "r.json", {**REFERENCES, "pong": pair})
    assert "pong: " in refused(capsys, sequence(tmp_path / "a"), *given)


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sequence(tmp_path / "a")
    assert "argument --normalise: invalid choice: 'humn'" in refused(capsys, run, "--normalise", "humn")
    assert "--outptu" in refused(capsys, run, "--outptu", "x")
    assert "RUN" in refused(capsys)
    assert "missing.json: No such file" in refused(capsys, run, "--references", tmp_path / "missing.json")
    for content in ("[1", "[1]", "3"):
        assert "r.json" in refused(capsys, run, *references(tmp_path / "r.json", content))
    other = references(tmp_path / "r.json", {"MinAtar/Pong-v1": [0, 1]})
    assert "names none of the tasks breakout, " in refused(capsys, run, *other)
    (tmp_path / "file").touch()
    line = refused(capsys, run, "--output", tmp_path / "file")
    assert f"--output: {str(tmp_path / 'file')!r} cannot be written to: File exists" in line
