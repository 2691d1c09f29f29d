"""Closing table of a run."""

from __future__ import annotations

import pytest

from bayes_rl.reporting.score_table import score_table


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_a_table_of_several_tasks_is_at_most_80_columns_wide(count: int) -> None:
    tasks = [f"MinAtar/Game{number}-v1" for number in range(count)]
    scores = {f"{task}/return_mean": 10.0 + number for number, task in enumerate(tasks)}
    title, head, means = score_table("", tasks, 0.1, scores, {}).splitlines()
    assert title == "tasks: raw scores of whole greedy games, sticky actions 0.1"
    assert len(head) == len(means) <= 80
    assert means.split() == ["mean", *(f"{10 + number}.00" for number in range(count))]
    cells = head.split()
    assert len(cells) == count
    assert all(task.endswith(cell) for task, cell in zip(tasks, cells, strict=True))


def test_a_table_of_one_game_names_its_scores_and_files() -> None:
    lines = score_table("pong", [], 0.25, {"return_mean": 20.5}, {"checkpoint": "runs/x/best.ckpt"}).splitlines()
    assert lines == [
        "pong: raw scores of whole greedy games, sticky actions 0.25",
        f"  {'mean':<18}{'20.50':>10}",
        f"{'checkpoint':<16}runs/x/best.ckpt",
    ]
