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
from dataclasses import asdict, replace

from matplotlib.figure import Figure

from benchmarks.runner import Benchmark, Cell, Options, Row, quartiles
from benchmarks.speed.contenders import Setting, different_encoders, installed, measure, packages

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
    return [
        asdict(setting) | {"round": round}
        for round in range(options.rounds)
        for every in options.every
        for setting in fastest_settings(every)
        if setting.arm in options.arms
    ]


def summarize(rows: list[Row]) -> list[Row]:
    """Return a line for each number of steps per update and each arm: quartiles of its rate and of its ratio."""
    lines = []
    for every in sorted({row["steps_per_update"] for row in rows}):
        of = {(row["arm"], row["round"]): row["frames_per_second"] for row in rows if row["steps_per_update"] == every}
        for arm in ARMS:
            rates = {round: rate for (name, round), rate in of.items() if name == arm}
            ratios = [rate / of["sb3", round] for round, rate in rates.items() if ("sb3", round) in of]
            if rates:
                line = {"steps_per_update": every, "arm": arm, "rounds": len(rates)}
                line |= {"frames_per_second": quartiles(list(rates.values()))}
                lines.append(line | {"ratio_to_sb3": quartiles(ratios) if ratios else None})
    return lines


def table(rows: list[Row]) -> str:
    """Return the summary as Markdown."""
    text = ["| agent steps per update | arm | rounds | frames/s (quartiles) | against SB3 |", "|---|---|---|---|---|"]
    for line in summarize(rows):
        low, middle, high = line["frames_per_second"]
        ratio = line["ratio_to_sb3"]
        against = f"**{ratio[1]:.2f}** ({ratio[0]:.2f} to {ratio[2]:.2f})" if ratio else "-"
        what = f"{line['steps_per_update']} | {line['arm']} | {line['rounds']}"
        text.append(f"| {what} | **{middle:.0f}** ({low:.0f} to {high:.0f}) | {against} |")
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


def prepare(options: Options) -> None:
    """Leave out the libraries that are not installed."""
    options.arms = installed(ARMS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the rates."""
    parser.add_argument("--every", type=int, nargs="+", default=[4, 16, 64], help="agent steps per update")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    summarize=summarize,
    prepare=prepare,
    check=different_encoders,
    add_arguments=add_arguments,
    shared={"rounds": 3, "seconds": 6},
    facts=lambda options: {"packages": packages()},
    child=True,
)
