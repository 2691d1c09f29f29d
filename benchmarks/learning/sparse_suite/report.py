"""Tables and curves of the sparse-reward suite, from the rows of its finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from bayes_rl.metrics.intervals import FEWEST_RUNS, jackknife_interval, leave_one_out
from bayes_rl.reporting.figures import INTERVALS, estimate
from bayes_rl.reporting.figures import table as markdown_table
from benchmarks.learning.sparse_suite.tasks import ARMS, TASKS, find_task, grid_of, options_of
from benchmarks.runner import Row

NOT_RUN = "not run"
FEWEST_COMPARED = 3  # seeds of each arm below which a comparison counts as lost
BEHIND_BELOW = 0.9  # of the baseline's mean
OURS, BASELINE = "default", "epsilon"


class Comparison(NamedTuple):
    """Our arm beside the baseline on one task.

    Attributes:
        difference: of the means, in words.
        ahead: whether our arm is better beyond doubt.
        behind: whether our mean is more than 10 % below the baseline's, or an arm was not run.
    """

    difference: str
    ahead: bool
    behind: bool


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return Welch's 95 % interval of the difference of two means.

    Args:
        ours: values of independent runs, `[N]`.
        theirs: values of independent runs of the other arm, `[M]`.
    """
    arms = [torch.tensor([values], dtype=torch.float64).T for values in (ours, theirs)]
    difference = statistics.mean(ours) - statistics.mean(theirs)
    # The jackknife variance of a mean is Student's, and the degrees of freedom are those of Welch and Satterthwaite.
    return jackknife_interval(difference, [leave_one_out(values, torch.mean) for values in arms], len(ours))


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare the areas of two arms on one task.

    From five seeds on, our arm is ahead if the Welch interval of the difference lies above 0; with fewer, if our worst
    run is above the baseline's best.

    Args:
        ours: areas of our runs.
        theirs: areas of the baseline's runs.
    """
    fewest = min(len(ours), len(theirs))
    if fewest < FEWEST_COMPARED:
        words = f"fewer than {FEWEST_COMPARED} seeds" if fewest else NOT_RUN
        return Comparison(words, ahead=False, behind=True)
    difference = statistics.mean(ours) - statistics.mean(theirs)
    behind = statistics.mean(ours) < BEHIND_BELOW * statistics.mean(theirs)
    if fewest >= FEWEST_RUNS:
        low, high = welch_interval(ours, theirs)
        return Comparison(f"{difference:.3f} [{low:.3f}, {high:.3f}]", low > 0, behind)
    worst, best = min(ours), max(theirs)
    return Comparison(f"{difference:.3f}; our worst {worst:.3f}, its best {best:.3f}", worst > best, behind)


def chosen_settings(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return the setting with the greatest mean area for every task and arm whose search is complete.

    A search is complete when all settings of the grid, as it stands today, have runs of the same seeds.

    Args:
        rows: of the search.

    Returns:
        Names of settings by task and arm.
    """
    chosen = {}
    for task, arm in dict.fromkeys((row["task"], row["arm"]) for row in rows):
        found: dict[str, dict[int, float]] = {setting: {} for setting in grid_of(find_task(task), arm)}
        for row in of(rows, task, arm):
            setting = row["setting"]
            if setting in found and row["options"] == options_of(find_task(task), ARMS[arm], setting):
                found[setting][row["seed"]] = row["area"]
        first, *others = (areas.keys() for areas in found.values())
        if first and all(seeds == first for seeds in others):
            chosen[task, arm] = max(found, key=lambda setting: statistics.mean(found[setting].values()))
    return chosen


def source_of_setting(task: str, arm: str, searched: Container[tuple[str, str]]) -> str:
    """Return the task whose complete search chooses the setting of an arm on `task`: itself, its like, or ""."""
    return next((name for name in (task, find_task(task).like) if (name, arm) in searched), "")


def of(rows: Sequence[Row], task: str, arm: str) -> list[Row]:
    """Return the rows of one arm on one task, in the order of their seeds."""
    return sorted((row for row in rows if (row["task"], row["arm"]) == (task, arm)), key=lambda row: row["seed"])


def is_search(rows: Sequence[Row]) -> bool:
    """Return whether rows are those of a search, whose names hold the setting."""
    return any(row["setting"] and f"_{row['setting']}_" in row["run"] for row in rows)


def table(rows: list[Row]) -> str:
    """Return the tables of a comparison or of a search as Markdown."""
    return search_table(rows) if is_search(rows) else comparison_tables(rows)


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Return the tasks of the suite, run or not, and then other tasks that were run."""
    return list(dict.fromkeys([*TASKS, *(row["task"] for row in rows)]))


def comparison_tables(rows: Sequence[Row]) -> str:
    """Return the comparison with the baseline, the areas of all arms, and further numbers of all arms."""
    against, areas, details = [], [], []
    verdicts = []
    for name in tasks_of(rows):
        task = find_task(name)
        by_arm = {arm: of(rows, name, arm) for arm in ARMS}
        ours, theirs = ([row["area"] for row in by_arm[arm]] for arm in (OURS, BASELINE))
        compared = compare(ours, theirs)
        if name in TASKS:
            verdicts.append(compared)
        word = "ahead" if compared.ahead else "behind" if compared.behind else "neither"
        shown = [area_in_words(by_arm[arm]) for arm in (OURS, BASELINE)]
        against.append([name, f"{task.frames:,}", task.measure, *shown, compared.difference, word])
        cells = [area_in_words(by_arm[arm]) if arm_learns(arm, name) else "-" for arm in ARMS]
        areas.append([name, *cells])
        details += [[name, arm, *details_of(found)] for arm, found in by_arm.items() if found]
    ahead, behind = (sum(getattr(verdict, which) for verdict in verdicts) for which in ("ahead", "behind"))
    total = (
        f"`{OURS}` is ahead of `{BASELINE}` on {ahead} of {len(TASKS)} tasks, and behind by more than 10 % on {behind}."
    )
    heading = ["task", "frames", "curve", OURS, BASELINE, "difference", "result"]
    lines = [
        total,
        "",
        markdown_table(heading, against),
        "",
        "Area: mean over the budget of frames of the training curve, exploration included. Ahead: from five seeds on, "
        "Welch's 95 % interval lies above 0; with fewer, our worst run is above its best. A cell that is "
        f"{NOT_RUN}, or has fewer than {FEWEST_COMPARED} seeds, counts as behind.",
        "",
        markdown_table(["area", *ARMS], areas),
        "",
        INTERVALS,
        "",
        markdown_table(["task", "arm", *DETAILS], details),
        "",
        "Medians over the seeds that got there, and means of greedy games and minutes. In brackets: another task, "
        "whose search chose the setting.",
    ]
    return "\n".join(lines) + "\n"


def arm_learns(arm: str, task: str) -> bool:
    """Return whether an arm is to learn a task."""
    return ARMS[arm].learns(task)


def area_in_words(rows: Sequence[Row]) -> str:
    """Return the mean area with its interval or range; `mixed options` if the runs are not those of one agent."""
    if not rows:
        return NOT_RUN
    text = estimate(torch.tensor([[row["area"]] for row in rows], dtype=torch.float64), torch.mean)
    return text if all(row["options"] == rows[0]["options"] for row in rows) else f"{text}, mixed options"


DETAILS = ("setting", "seeds", "first success: episode", "frames", "solved", "episode", "frames", "greedy", "minutes")


def details_of(rows: Sequence[Row]) -> list[str]:
    """Return the further numbers of one arm on one task, in the order of `DETAILS`."""
    searched = ARMS[rows[0]["arm"]].searched
    # The searches that were complete when the runs began, not those of today.
    sources = {source_of_setting(row["task"], searched, set(map(tuple, row.get("searched", [])))) for row in rows}
    setting = rows[0]["setting"] or "-"
    if searched and sources != {rows[0]["task"]}:
        setting += f" ({', '.join(sorted(sources - {''})) or 'no search'})"
    solved = sum(row["solved_episode"] is not None for row in rows)
    return [
        setting,
        ", ".join(str(row["seed"]) for row in rows),
        median(rows, "first_success_episode"),
        median(rows, "first_success_frames"),
        f"{solved} of {len(rows)}",
        median(rows, "solved_episode"),
        median(rows, "solved_frames"),
        f"{statistics.mean(row['greedy_score'] for row in rows):.2f}",
        f"{statistics.mean(row['minutes'] for row in rows):.1f}",
    ]


def median(rows: Sequence[Row], key: str) -> str:
    """Return the median of a number over the runs that have one."""
    known = [row[key] for row in rows if row[key] is not None]
    return f"{statistics.median(known):,.0f}" if known else "-"


def search_table(rows: Sequence[Row]) -> str:
    """Return all settings of a search with their areas; the chosen ones in bold."""
    chosen = chosen_settings(rows)
    lines = []
    for task, arm in sorted({(row["task"], row["arm"]) for row in rows}, key=lambda pair: (order(pair[0]), pair[1])):
        for setting in grid_of(find_task(task), arm):
            found = [row for row in of(rows, task, arm) if row["setting"] == setting]
            if not found:
                lines.append([task, arm, setting, "", NOT_RUN, "", "", ""])
                continue
            name = f"**{setting}**" if chosen.get((task, arm)) == setting else setting
            _, seeds, _, success, solved, _, _, greedy, minutes = details_of(found)
            lines.append([task, arm, name, seeds, area_in_words(found), success, solved, f"{greedy}; {minutes}"])
    heading = ["task", "arm", "setting", "seeds", "area", "frames to first success", "solved", "greedy; minutes"]
    return f"{markdown_table(heading, lines)}\n\nBold: the greatest mean area, if the search is complete.\n"


def order(task: str) -> int:
    """Return the place of a task in the suite; other tasks are last."""
    return [*TASKS].index(task) if task in TASKS else len(TASKS)


# ------------------------------------------------------------------------------------------------------------- figure
def draw(rows: list[Row]) -> Figure | None:
    """Draw the training curves, one panel for each task of the suite: mean over the seeds of every arm."""
    if is_search(rows):
        return None
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(3, 4).flatten()
    for panel, (name, task) in zip(panels, TASKS.items(), strict=True):
        drawn = [draw_arm(panel, arm, of(rows, name, arm), colour) for colour, arm in enumerate(ARMS)]
        if not any(drawn):
            panel.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=panel.transAxes, color="0.5")
        limits: Mapping[str, Any] = {"ylim": (-0.03, 1.03)} if task.measure == "success" else {}
        panel.set(title=name, xlim=(0, task.frames / 1000), **limits)
        panel.grid(alpha=0.3)
    for panel in panels[-4:]:
        panel.set_xlabel("thousand environment frames")
    for panel in panels[::4]:
        panel.set_ylabel("success, or return, in training")
    labelled = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside upper center", ncols=len(ARMS))
    return figure


def draw_arm(panel: Any, arm: str, rows: Sequence[Row], colour: int) -> bool:
    """Draw the mean curve of an arm, and return whether there is one. The two compared arms have their range too."""
    if not rows:
        return False
    curves = np.array([row["curve"] for row in rows])
    thousands = np.linspace(0, rows[0]["frames"] / 1000, curves.shape[1])
    if arm in (OURS, BASELINE):
        panel.fill_between(thousands, curves.min(0), curves.max(0), color=f"C{colour}", alpha=0.15, linewidth=0)
    panel.plot(thousands, curves.mean(0), color=f"C{colour}", label=arm)
    return True
