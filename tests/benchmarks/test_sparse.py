"""The sparse-reward suite: its tables from made-up rows, its selection of runs, and one run of the real command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks import runner
from benchmarks.learning import sparse
from benchmarks.learning.silent_run import prepare_run
from benchmarks.learning.sparse_suite import other_libraries, report, tasks, training

Row = dict[str, Any]


def made_up(task: str, arm: str, seed: int, area: float, setting: str = "", search: bool = False) -> Row:
    """Return the row of a run with a given area, whose agent succeeded in its episode 3 and solved nothing."""
    searched = tasks.ARMS[arm].searched
    first = next(iter(tasks.grid_of(tasks.find_task(task), searched))) if searched else ""
    cell = sparse.cell(task, arm, seed, setting or first, search)
    frames = tasks.find_task(task).frames
    result = training.summary(tasks.find_task(task), [frames // 2], [0.0], [1.0])
    result |= {"area": area, "first_success_episode": 3, "first_success_frames": 30}
    return {**cell, **result, "updates": 7, "minutes": 2.0, "commit": "0" * 40}


def rows_of(task: str, arm: str, areas: Sequence[float]) -> list[Row]:
    return [made_up(task, arm, seed, area) for seed, area in enumerate(areas, 1)]


def row_of_table(text: str, *start: str) -> list[str]:
    """Return the cells of the first line of Markdown tables that begins with some cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(line for line in lines if line[: len(start)] == list(start))


# --------------------------------------------------------------------------------------------------------- comparison
def test_the_interval_of_a_difference_is_that_of_welch() -> None:
    ours, theirs = [0.9, 0.7, 0.85, 0.6, 0.95], [0.1, 0.4, 0.35, 0.2, 0.25, 0.3]
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert report.welch_interval(ours, theirs) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "ahead", "behind"),
    [
        ([0.8, 0.9, 0.8, 0.9, 0.8], [0.1, 0.2, 0.1, 0.2, 0.1], True, False),
        ([0.8, 0.9, 0.8, 0.9, 0.1], [0.6, 0.5, 0.6, 0.5, 0.7], False, False),  # better, but not beyond doubt
        ([0.8, 0.9, 0.7], [0.1, 0.2, 0.6], True, False),  # our worst above its best
        ([0.8, 0.9, 0.5], [0.1, 0.2, 0.6], False, False),
        ([0.50, 0.50, 0.50], [0.55, 0.55, 0.55], False, False),  # 9 % behind
        ([0.50, 0.50, 0.50], [0.57, 0.57, 0.57], False, True),  # 12 % behind
        ([], [0.1, 0.1, 0.1], False, True),
        ([0.9, 0.9, 0.9], [], False, True),
        ([0.9, 0.9], [0.1, 0.1, 0.1], False, True),
    ],
)
def test_a_task_is_won_beyond_doubt_or_lost_by_a_tenth(
    ours: list[float], theirs: list[float], ahead: bool, behind: bool
) -> None:
    assert report.compare(ours, theirs)[1:] == (ahead, behind)


def test_the_table_has_all_tasks_and_counts_those_not_run_as_lost() -> None:
    rows = rows_of("deep_sea_10", "default", [0.8, 0.9, 0.8, 0.9, 0.8])
    rows += rows_of("deep_sea_10", "epsilon", [0.1, 0.2, 0.1, 0.2, 0.1])
    rows += rows_of("deep_sea_50", "default", [0.5, 0.5, 0.5]) + rows_of("deep_sea_50", "epsilon", [0.5, 0.6, 0.4])
    rows += rows_of("mountain_car", "epsilon", [0.5] * 5)
    text = report.table(rows)
    assert "`default` is ahead of `epsilon` on 1 of 12 tasks, and behind by more than 10 % on 10." in text
    won = row_of_table(text, "deep_sea_10", "5,000")
    low, high = report.welch_interval([0.8, 0.9, 0.8, 0.9, 0.8], [0.1, 0.2, 0.1, 0.2, 0.1])
    assert won[5:] == [f"0.700 [{low:.3f}, {high:.3f}]", "ahead"]
    assert row_of_table(text, "deep_sea_50", "250,000")[5:] == ["0.000; our worst 0.500, its best 0.600", "neither"]
    assert row_of_table(text, "mountain_car", "100,000")[3:] == ["not run", "0.50 [0.50, 0.50]", "not run", "behind"]
    for task in tasks.TASKS:
        assert len([line for line in text.splitlines() if line.startswith(f"| {task} ")]) >= 2
    assert row_of_table(text, "door_key", *["not run"] * 8)
    assert row_of_table(text, "deep_sea_30", *["not run"] * 6, "-", "-")
    details = row_of_table(text, "deep_sea_10", "default", "prior3 (no search)")
    assert details[3:] == ["1, 2, 3, 4, 5", "3", "30", "0 of 5", "-", "-", "1.00", "2.0"]


def test_runs_of_two_agents_are_not_averaged_silently() -> None:
    rows = rows_of("door_key", "default", [0.5, 0.5, 0.5])
    assert "mixed" not in report.table(rows)
    rows[1]["options"] = {**rows[1]["options"], "model.posterior.size": 3}
    assert "0.50 (0.50 to 0.50), mixed options" in report.table(rows)


def test_the_figure_has_a_panel_for_every_task() -> None:
    figure = report.draw(rows_of("door_key", "default", [0.5]) + rows_of("door_key", "epsilon", [0.5, 0.6, 0.2]))
    assert figure is not None
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert list(panels) == list(tasks.TASKS)
    assert [len(panel.lines) for panel in panels.values()] == [2 * (name == "door_key") for name in panels]


# ------------------------------------------------------------------------------------------------------------- search
def search_rows(areas: dict[str, list[float]]) -> list[Row]:
    return [
        made_up("deep_sea_10", "epsilon", seed, area, setting, search=True)
        for setting, found in areas.items()
        for seed, area in zip((100, 101), found, strict=False)
    ]


def test_a_complete_search_chooses_the_greatest_mean() -> None:
    first, second, third, fourth = tasks.GRIDS["epsilon"]
    areas = {first: [0.9, 0.1], second: [0.4, 0.7], third: [0.0, 0.0], fourth: [0.5, 0.5]}
    rows = search_rows(areas)
    assert report.chosen_settings(rows) == {("deep_sea_10", "epsilon"): second}
    assert f"**{second}**" in report.table(rows)
    assert report.draw(rows) is None
    # A setting with a seed less, a missing setting, and a setting whose options are now others.
    assert report.chosen_settings(rows[:-1]) == {}
    assert report.chosen_settings([row for row in rows if row["setting"] != first]) == {}
    rows[2]["options"] = {**rows[2]["options"], "data.epsilon.start": 0.5}
    assert report.chosen_settings(rows) == {}


def made_up_options(task: str, setting: str) -> Row:
    return dict(sparse.cell(task, "epsilon", 100, setting, search=True)["options"])


def options_of_command(**changes: Any) -> argparse.Namespace:
    usual: dict[str, Any] = {"only": [], "seeds": [], "search": False, "search_rows": []}
    return argparse.Namespace(**(usual | changes))


def test_the_comparison_takes_the_chosen_setting() -> None:
    first, second, *_ = tasks.GRIDS["epsilon"]
    rows = search_rows({setting: [float(setting == second)] for setting in tasks.GRIDS["epsilon"]})
    options = options_of_command(only=["deep_sea_10", "deep_sea_20", "epsilon"], search_rows=rows)
    settings = {cell["task"]: (cell["setting"], cell["options"]) for cell in sparse.cells(options, [])}
    (known, changes), (unknown, _) = settings["deep_sea_10"], settings["deep_sea_20"]
    assert (known, unknown) == (second, first)
    assert changes["data.epsilon.decay_frames"] == 0.05 * 5_000
    assert changes["data.epsilon.end"] == 0.1


def test_a_task_without_a_search_takes_the_setting_of_its_like() -> None:
    rows = search_rows({setting: [float(i == 1)] for i, setting in enumerate(tasks.GRIDS["epsilon"])})
    rows = [{**row, "task": "door_key", "options": made_up_options("door_key", row["setting"])} for row in rows]
    options = options_of_command(only=["key_corridor", "mountain_car", "epsilon"], search_rows=rows)
    first, second, *_ = tasks.GRIDS["epsilon"]
    settings = {(cell["task"], cell["setting"]) for cell in sparse.cells(options, [])}
    assert settings == {("key_corridor", second), ("mountain_car", first)}
    searched = json.loads(json.dumps(sparse.facts(options)["searched"]))
    assert searched == [["door_key", "epsilon"]]
    known = {"searched": searched}
    shown = [
        report.details_of([made_up(task, arm, 1, 0.5) | known])[0].partition(" ")[2]
        for task, arm in (("door_key", "epsilon"), ("key_corridor", "epsilon"), ("door_key", "ensemble"))
    ]
    assert shown == ["", "(door_key)", "(no search)"]
    assert report.details_of([made_up("door_key", "mean_field", 1, 0.5)])[0] == "-"


def test_every_searched_arm_has_equally_many_settings() -> None:
    assert {arm.searched for arm in tasks.ARMS.values()} - {""} == set(tasks.GRIDS) - {"process"}
    assert len({len(grid) for grid in tasks.GRIDS.values()}) == 1
    cells = sparse.cells(options_of_command(search=True, only=["deep_sea_10", "default", "epsilon"]), [])
    runs = {(cell["arm"], cell["setting"], cell["seed"]) for cell in cells}
    settings = {(arm, setting) for arm in ("default", "epsilon") for setting in tasks.GRIDS[arm]}
    assert runs == {(*pair, seed) for pair in settings for seed in (100, 101)}
    assert len({cell["run"] for cell in cells}) == len(cells)


# ------------------------------------------------------------------------------------------------------ tasks and arms
def test_the_suite_has_twelve_tasks_and_its_arms_in_order() -> None:
    assert len(tasks.TASKS) == 12
    ours = ["default", "epsilon", "ensemble", "no_prior", "mean_field", "all_bayesian"]
    assert list(tasks.ARMS) == [*ours, "sb3_dqn", "sb3_qrdqn"]
    assert all(set(task.seeds) in ({1, 2, 3}, {1, 2, 3, 4, 5}) for task in tasks.TASKS.values())


OURS = [arm for arm in tasks.ARMS if not arm.startswith("sb3")]


@pytest.mark.parametrize(
    ("task", "arm"),
    [(task, "default") for task in tasks.TASKS]
    + [(task, arm) for task in ("deep_sea_20", "door_key") for arm in OURS[1:]],
)
def test_every_run_can_be_prepared(task: str, arm: str) -> None:
    searched = tasks.ARMS[arm].searched
    setting = next(iter(tasks.grid_of(tasks.TASKS[task], searched))) if searched else ""
    options = tasks.options_of(tasks.TASKS[task], tasks.ARMS[arm], setting)
    data, agent, trainer = prepare_run(tasks.configuration(tasks.TASKS[task], options), 1)
    shipped = arm == "default" and not tasks.TASKS[task].agent  # explores by draws of its process and at random
    assert agent.explores_at_random == (arm == "epsilon" or shipped)
    assert agent.explores_by_draw == (arm != "epsilon")
    assert trainer.gradient_clip_val == (None if task == "atari_freeway" else 10)
    assert data.seed == 1


def test_members_are_searched_by_their_prior_and_a_process_by_the_schedule_of_its_draws() -> None:
    def options(task: str, arm: str, setting: str) -> dict[str, Any]:
        return tasks.options_of(tasks.find_task(task), tasks.ARMS[arm], setting)

    assert options("deep_sea_20", "default", "prior3")[tasks.PRIOR_SCALE] == 3
    assert options("deep_sea_20", "ensemble", "prior10")[tasks.PRIOR_SCALE] == 10
    assert options("deep_sea_20", "no_prior", "")[tasks.PRIOR_SCALE] == 0
    of_process = options("atari_freeway", "default", "draws30_decay5")
    assert tasks.PRIOR_SCALE not in of_process  # that of the configuration
    assert of_process["data.draws.end"] == 0
    assert of_process["data.draws.decay_frames"] == 300_000
    assert of_process["data.epsilon.decay_frames"] == 50_000
    for arm in ("ensemble", "all_bayesian", "no_prior", "mean_field"):  # of members, which nothing else lets explore
        setting = "draws30_decay5" if tasks.ARMS[arm].searched else ""
        of_arm = tasks.configuration(tasks.TASKS["atari_freeway"], options("atari_freeway", arm, setting))
        assert of_arm["model"]["exploration"] == "thompson"
        assert of_arm["data"].get("draws", {}).get("end", 1) == 1
    for arm in ("default", "ensemble", "no_prior", "mean_field", "all_bayesian"):
        setting = "prior3" if tasks.ARMS[arm].searched else ""
        sizes = [options(f"deep_sea_{size}", arm, setting)["model.posterior.size"] for size in (20, 100)]
        assert sizes == [10, 20]  # an arm has as many members as the agent of the suite
    for task in tasks.TASKS.values():
        grid = tasks.grid_of(task, "default")
        assert (grid is tasks.GRIDS["default"]) == (
            task.config == "deep_sea" or "MountainCar-v0" in task.options.values()
        )
        assert len(grid) == len(tasks.grid_of(task, "epsilon"))


@pytest.mark.parametrize(
    ("task", "numbers", "actions"),
    [("deep_sea_20", 400, 2), ("mountain_car", 2, 3), ("door_key", 980, 7), ("minatar_freeway", 700, 3)],
)
def test_other_libraries_play_the_same_games_by_vectors(task: str, numbers: int, actions: int) -> None:
    env = other_libraries.make_env(tasks.TASKS[task])
    observation, _ = env.reset(seed=1)
    assert observation.shape == (numbers,)
    assert env.action_space.n == actions  # type: ignore[attr-defined]
    if task == "deep_sea_20":
        assert (observation.sum(), observation[0]) == (1, 1)


def test_agents_of_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of_command()
    for installed, arms in ((False, 6), (True, 8)):
        monkeypatch.setattr(other_libraries.importlib.util, "find_spec", lambda name, there=installed: there or None)
        cells = sparse.cells(options, [])
        assert len({cell["arm"] for cell in cells}) == arms
    theirs = {cell["task"] for cell in cells if cell["arm"].startswith("sb3")}
    assert theirs == set(tasks.OTHER_LIBRARIES)
    assert len(theirs) == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["DQN", "QRDQN"])
def test_another_library_learns_a_tiny_task(library: str) -> None:
    pytest.importorskip(other_libraries.MODULES[library])
    task, options = tasks.find_task("deep_sea_4"), {"exploration_fraction": 0.5, "exploration_final_eps": 0.1}
    found = other_libraries.train(library, task, options, seed=1)
    assert (found["episodes"], found["frames"]) == (200, 800)
    assert found["updates"] > 0


def test_success_is_what_the_task_says() -> None:
    scores = {name: [task.score(x) for x in (-200.0, -199.0, 0.0, 0.01, 0.99)] for name, task in tasks.TASKS.items()}
    assert scores["deep_sea_50"] == [0, 0, 0, 0, 1]
    assert scores["key_corridor"] == [0, 0, 0, 1, 1]
    assert scores["mountain_car"] == [0, 1, 1, 1, 1]
    assert scores["minatar_freeway"] == [-200, -199, 0, 0.01, 0.99]


def test_the_summary_of_a_run() -> None:
    """DeepSea of size 10 with 5000 frames, good from frame 1000 on: 20 bad episodes of 10 games, then good ones."""
    frames = [100 * (i // 10 + 1) for i in range(500)]
    returns = [0.99 * (frame > 1_000) for frame in frames]
    found = training.summary(tasks.TASKS["deep_sea_10"], frames, returns, [0.99])
    assert (found["first_success_episode"], found["first_success_frames"]) == (101, 1100)
    assert (found["solved_episode"], found["solved_frames"]) == (190, 1900)  # 90 of the last 100
    rise = sum(0.1 * step * 100 for step in range(1, 11))  # from frame 1100 on
    assert found["area"] == pytest.approx((rise + 5000 - 2100) / 5000)
    assert len(found["curve"]) == 101
    assert found["curve"][20:46:4] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert (found["greedy_score"], found["greedy_return"], found["episodes"]) == (1, 0.99, 500)


# ------------------------------------------------------------------------------------------------------------ command
def command(*words: object) -> int:
    return runner.main(sparse.BENCHMARK, "sparse", [str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "deep_sea_10", "defautl"], "error: --only: 'defautl' is no task or arm; nearest: 'default'"),
        (["--seeds", "100"], "error: --seeds: 100 is a seed of the search"),
        (["--search", "--seeds", "1"], "error: --seeds: 1 is a seed of the comparison"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*words, "--output", tmp_path / "results")
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert printed.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_list_tells_minutes_and_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in rows_of("door_key", "default", [0.5, 0.5]):
        runner.write_json(tmp_path / f"{row['run']}.json", row)
    stale = made_up("door_key", "default", 3, 0.5)
    runner.write_json(tmp_path / f"{stale['run']}.json", {**stale, "options": {}})
    with pytest.raises(SystemExit) as stop:
        command("--list", "--only", "door_key", "default", "--output", tmp_path)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert row_of_table(printed, "door_key")[5:] == ["2", "5", "3", "0.1"]  # minutes of a run, runs, left, hours
    assert "3 of 5 runs are left: about 0.1 h" in printed


def test_tables_and_figure_are_made_from_the_files_alone(tmp_path: Path) -> None:
    for row in rows_of("door_key", "default", [0.5, 0.6, 0.7]):
        runner.write_json(tmp_path / f"{row['run']}.json", row)
    assert command("--most", "0", "--output", tmp_path) == 0
    text = (tmp_path / "table.md").read_text()
    assert row_of_table(text, "door_key", "100,000")[3] == "0.60 (0.50 to 0.70)"
    assert (tmp_path / f"{tmp_path.name}.png").stat().st_size > 0


def test_the_minutes_of_a_run_are_those_of_its_like() -> None:
    """A run of `made_up` takes 2 minutes, DeepSea 10 has 5000 frames at 230 a second, epsilon takes half the time."""
    cell, other = {"task": "deep_sea_10", "arm": "epsilon"}, {"task": "deep_sea_10", "arm": "default"}
    assert sparse.expected_minutes(cell, rows_of("door_key", "epsilon", [0])) == pytest.approx(0.5 * 5000 / 230 / 60)
    assert sparse.expected_minutes(cell, rows_of("deep_sea_10", "default", [0])) == 1
    rows = rows_of("deep_sea_10", "epsilon", [0, 0])
    assert [sparse.expected_minutes(run, rows) for run in (cell, other)] == [2, 4]


def wait_until(condition: Any, seconds: float = 500) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_terminated_run_continues_and_a_finished_one_is_skipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DeepSea of size 4 through the real command; its end is that of a run without an interruption."""
    words = ["--only", "deep_sea_4", "default", "--seeds", "1", "--jobs", "1"]
    words += ["--output", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    environment = os.environ | {"PYTHONPATH": str(runner.ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks", "sparse", *words], env=environment)
    name = "deep_sea_4_default_seed1"
    wait_until((tmp_path / "runs" / name / "last.ckpt").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 128 + signal.SIGTERM
    assert not list((tmp_path / "results").glob("*.json"))
    saved = (tmp_path / "runs" / name / "last.ckpt").read_bytes()
    time.sleep(1)  # a child process that went on would save again
    assert (tmp_path / "runs" / name / "last.ckpt").read_bytes() == saved

    assert command(*words) == 0
    printed = capfd.readouterr().out
    assert f"{name}: continues from its checkpoint" in printed
    assert "0 of 1 are left; about 0.0 h" in printed
    file = tmp_path / "results" / f"{name}.json"
    row = json.loads(file.read_text())
    assert not list((tmp_path / "runs").iterdir())
    assert {"commit", "torch", "processor", "versions", "options", "minutes"} <= set(row)
    assert row_of_table((tmp_path / "results" / "table.md").read_text(), "deep_sea_4", "800")

    straight = training.train({key: row[key] for key in ("run", "task", "arm", "setting", "seed", "options")}, tmp_path)
    differing = [key for key in straight if key != "minutes" and row[key] != straight[key]]
    assert differing == []
    assert 0 < straight["area"] < 1
    capfd.readouterr()

    before = file.read_bytes(), file.stat().st_mtime_ns
    assert command(*words) == 0
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert "deep_sea_4" not in capfd.readouterr().out.split("`default` is ahead")[0]
