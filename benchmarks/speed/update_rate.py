"""Frames per second of this library, Stable-Baselines3's DQN and TorchRL's DQN against how often they learn.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python -m benchmarks update_rate                 # a quarter of an hour on two cores
    python -m benchmarks update_rate --every 4 128 --rounds 5

As in `libraries`, in the settings that its search found to be each library's fastest, but with an update of 32
transitions per 4, 16 or 64 agent steps: with fewer updates the speed of the environments matters more. The environments
of the other two libraries are stepped one after the other; in processes they were slower at each of these rates when
all were tried once (Stable-Baselines3's by 1 to 17 %, TorchRL's by 2 to 12 %). Results are medians and quartiles over
rounds; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from matplotlib.figure import Figure

from benchmarks.runner import Cell, Options, Row
from benchmarks.speed.contenders import (
    Setting,
    comparison,
    frames_per_second,
    rate_and_ratio,
    ratio_to_sb3,
    turns,
)

ARMS = ("sb3", "torchrl", "bayes_rl")
RATES = (500, 1000, 2000, 4000, 8000)  # of the plot's axis


def fastest_settings(every: int) -> list[Setting]:
    """Return each library's fastest settings, with an update per `every` agent steps."""
    fastest = [
        Setting("sb3", 16, 2, {"vec_env": "dummy"}),
        Setting("torchrl", 8, 2, {"env": "serial", "compile": True}),
        Setting("bayes_rl", 32),
    ]
    return [replace(setting, part="update_rate", steps_per_update=every) for setting in fastest]


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all rates and libraries, in turns."""
    settings = [setting for every in options.every for setting in fastest_settings(every)]
    return turns(settings, options.rounds, options.arms)


def summarize(rows: list[Row]) -> list[Row]:
    """Return a line for each number of steps per update and each arm: quartiles of its rate and of its ratio."""
    lines = []
    for every in sorted({row["steps_per_update"] for row in rows}):
        compared = [row for row in rows if row["steps_per_update"] == every]
        runs = {arm: [row for row in compared if row["arm"] == arm] for arm in ARMS}
        lines += [
            {
                "steps_per_update": every,
                "arm": arm,
                "rounds": len(runs[arm]),
                "frames_per_second": frames_per_second(runs[arm]),
                "ratio_to_sb3": ratio_to_sb3(runs[arm], runs["sb3"]),
            }
            for arm in ARMS
            if runs[arm]
        ]
    return lines


def table(rows: list[Row]) -> str:
    """Return the summary as Markdown."""
    text = ["| agent steps per update | arm | rounds | frames/s (quartiles) | against SB3 |", "|---|---|---|---|---|"]
    for line in summarize(rows):
        what = f"{line['steps_per_update']} | {line['arm']} | {line['rounds']}"
        text.append(f"| {what} | {' | '.join(rate_and_ratio(line))} |")
    return "\n".join(text) + "\n"


def draw(rows: list[Row]) -> Figure:
    """Draw rates against agent steps per update."""
    lines = summarize(rows)
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axis = figure.subplots()
    for arm, colour in zip(ARMS, ("tab:orange", "tab:red", "tab:blue"), strict=True):
        points = [(line["steps_per_update"], line["frames_per_second"][1]) for line in lines if line["arm"] == arm]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=arm)
    values = sorted({line["steps_per_update"] for line in lines})
    axis.set(xscale="log", yscale="log", xlabel="agent steps per update of 32 transitions", ylabel="frames per second")
    axis.set_xticks(values, [str(value) for value in values])
    axis.set_yticks(RATES, [f"{rate:,}" for rate in RATES])
    axis.minorticks_off()
    axis.legend()
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the rates. All arms are measured."""
    parser.set_defaults(arms=list(ARMS))
    parser.add_argument("--every", type=int, nargs="+", default=[4, 16, 64], help="agent steps per update")


BENCHMARK = comparison(
    description=__doc__,
    cells=cells,
    table=table,
    draw=draw,
    summarize=summarize,
    add_arguments=add_arguments,
)
