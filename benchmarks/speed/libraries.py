"""Frames per second, learning included, of this library, Stable-Baselines3's DQN and TorchRL's DQN on Atari Breakout.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python -m benchmarks libraries                                    # all of it: 20 minutes on two cores
    python -m benchmarks libraries --parts matched --arms sb3 bayes_rl --rounds 5 --seconds 20
    python -m benchmarks libraries --keep --most 3                   # in pieces: the next three processes

Three parts:
    matched: the same network (Nature's convolutions, 512 features), batch of 32, one update per four agent steps, frame
        skip and stack of 4, 84 x 84 grey, 1 or 8 environments, one-step returns, float32 and two threads for all.
    search: a small grid of what each library offers by options (environments, their vectorisation, threads, precision,
        compilation, memory), once each; network, batch and updates per step stay the same.
    best: the fastest of each library's grid, in turns.

Every measurement is a process of its own: 1 000 random steps, a warm-up, then `--seconds` of learning, with 0.1 of the
actions at random, a replay of 50 000 transitions, and TensorBoard where the library writes it. Arms take turns (A B C
A B C). Results are medians over rounds and their quartiles; ratios to Stable-Baselines3 are taken within a round. A
frame is a fourth of an agent step. Arms whose package is missing are left out with a line.

All arms play ALE/Breakout-v5 with sticky actions (0.25) and a lost life as the end of a return. Remaining differences:
    Stable-Baselines3: its own AtariWrapper (OpenCV resizes, FIRE after each lost life outside of the agent's steps, a
        lost life is an episode's end), Huber loss, hard target updates, clipped gradients.
    TorchRL: no DQN for Atari in the package, so its own script's loop is followed (400 steps, then 100 updates), with
        Gymnasium's AtariPreprocessing and uint8 screens in place of the script's slower float transforms; no FIRE.
    bayes_rl: `configs/breakout.yaml` by the command line, FIRE in the agent's steps; two actors and two critics
        on one trunk with a LayerNorm and a Gaussian process beside them, target by a moving average at every update
        (the figures of 0.1.0 are those of Bayesian heads). `bayes_rl_plain` has no process, explores by epsilon and
        trains one pair of the two per update; both pairs are still evaluated.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from itertools import groupby

from matplotlib.figure import Figure

from benchmarks.runner import Cell, Options, Row
from benchmarks.speed.contenders import (
    NEEDS,
    Setting,
    comparison,
    frames_per_second,
    rate_and_ratio,
    ratio_to_sb3,
    setting_of,
    turns,
)

PARTS = ("matched", "search", "best")


def matched() -> list[Setting]:
    """Return the settings that are the same for all arms, in the order of their turns."""
    return [Setting(arm, num_envs) for num_envs in (1, 8) for arm in NEEDS]


def grid() -> list[Setting]:
    """Return the settings among which each library's fastest are searched."""
    sb3 = [Setting("sb3", 1), Setting("sb3", 4, 2, {"vec_env": "dummy"})]
    sb3 += [Setting("sb3", n, 2, {"vec_env": vec}) for n in (8, 16) for vec in ("dummy", "subproc")]
    sb3 += [Setting("sb3", 8, 1, {"vec_env": "subproc"})]
    sb3 += [Setting("sb3", 8, 2, {"vec_env": "dummy", "optimize_memory_usage": True})]
    kinds = ((1, "serial"), (8, "serial"), (8, "parallel"), (16, "parallel"))
    theirs = [Setting("torchrl", n, 2, {"env": env}) for n, env in kinds]
    theirs += [Setting("torchrl", 8, 2, {"env": env, "compile": True}) for env in ("serial", "parallel")]
    theirs += [Setting("torchrl", 8, 2, {"env": "serial", "collector": "async"})]
    ours = [Setting("bayes_rl", n) for n in (8, 16, 32)] + [Setting("bayes_rl", 16, 1)]
    ours += [Setting("bayes_rl", 16, 2, {"trainer.precision": "bf16-mixed"})]
    ours += [Setting("bayes_rl", 16, 2, {"model.compile": "default"})]
    return [replace(setting, part="search") for setting in (*sb3, *theirs, *ours)]


# ------------------------------------------------------------------------------------------------ turns and results
def best(rows: list[Row]) -> list[Setting]:
    """Return the fastest setting of each arm of the search."""
    searched = [row for row in rows if row["part"] == "search"]
    arms = [arm for arm in NEEDS if any(row["arm"] == arm for row in searched)]
    fastest = [max((r for r in searched if r["arm"] == arm), key=lambda r: r["frames_per_second"]) for arm in arms]
    return [replace(setting_of(row), part="best") for row in fastest]


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all settings of all parts, in turns. Those of `best` follow from the rows of `search`."""
    settings = {"matched": matched(), "search": grid(), "best": best(rows)}
    return [
        cell
        for part in PARTS
        if part in options.parts
        for cell in turns(settings[part], 1 if part == "search" else options.rounds, options.arms)
    ]


def summarize(rows: list[Row]) -> list[Row]:
    """Return a line for each setting of `matched` and `best`: quartiles over rounds of speeds and ratios to sb3."""
    lines = []
    order = [
        (part, n, arm) for part in ("matched", "best") for n in ((1, 8) if part == "matched" else (0,)) for arm in NEEDS
    ]

    def place(row: Row) -> tuple[str, int, str]:
        return row["part"], row["num_envs"] if row["part"] == "matched" else 0, row["arm"]

    compared = sorted(
        (row for row in rows if row["part"] != "search"), key=lambda row: (order.index(place(row)), row["round"])
    )
    for (part, num_envs, arm), group in groupby(compared, key=place):
        runs = list(group)
        sb3_runs = [row for row in compared if place(row) == (part, num_envs, "sb3")]
        lines.append(
            {
                "part": part,
                "arm": arm,
                "settings": setting_of(runs[0]).name,
                "rounds": len(runs),
                "frames_per_second": frames_per_second(runs),
                "updates_per_second": round(statistics.median(r["updates_per_second"] for r in runs), 2),
                "peak_mib": round(max(r["peak_mib"] for r in runs), 1),
                "replay_mib": runs[0]["replay_mib"],
                "ratio_to_sb3": ratio_to_sb3(runs, sb3_runs),
            }
        )
    return lines


def table(rows: list[Row]) -> str:
    """Return the summary, and the settings that were searched, as Markdown."""
    head = ("part", "arm", "settings", "rounds", "frames/s (quartiles)", "updates/s", "peak MiB", "replay MiB")
    text = [f"| {' | '.join(head)} | against SB3 (quartiles) |", "|" + "---|" * 9]
    for line in summarize(rows):
        rate, ratio = rate_and_ratio(line)
        sizes = f"{line['peak_mib']:.0f} | {line['replay_mib']:.0f}"
        what = f"{line['part']} | {line['arm']} | {line['settings']} | {line['rounds']}"
        text.append(f"| {what} | {rate} | {line['updates_per_second']:.1f} | {sizes} | {ratio} |")
    searched = [row for row in rows if row["part"] == "search"]
    text += ["", "| searched | settings | frames/s |", "|---|---|---|"] if searched else []
    for row in searched:
        text.append(f"| {row['arm']} | {setting_of(row).name} | {row['frames_per_second']:.0f} |")
    return "\n".join(text) + "\n"


def draw(rows: list[Row]) -> Figure | None:
    """Draw bars of the medians with the quartiles."""
    lines = summarize(rows)
    if not lines:
        return None
    groups = [
        list(group) for _, group in groupby(lines, key=lambda x: (x["part"], x["part"] == "matched" and x["settings"]))
    ]
    colours = dict(zip(NEEDS, ("tab:orange", "tab:red", "tab:blue", "tab:cyan"), strict=True))
    figure = Figure(figsize=(3.2 * len(groups), 3.6), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        for place, line in enumerate(group):
            low, middle, high = line["frames_per_second"]
            axis.bar(place, middle, yerr=[[middle - low], [high - middle]], color=colours[line["arm"]], capsize=3)
            axis.annotate(f"{middle:.0f}", (place, high), ha="center", va="bottom")
        axis.set_xticks(range(len(group)), [line["arm"].replace("_plain", "\nplain") for line in group], fontsize=8)
        axis.set_title("each at its best" if group[0]["part"] == "best" else group[0]["settings"], fontsize=9)
        axis.margins(y=0.12)
    axes[0][0].set_ylabel("frames per second, learning")
    return figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the parts and the arms."""
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--arms", nargs="+", default=list(NEEDS), choices=list(NEEDS))


BENCHMARK = comparison(
    description=__doc__,
    cells=cells,
    table=table,
    draw=draw,
    summarize=summarize,
    add_arguments=add_arguments,
)
