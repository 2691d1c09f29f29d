"""Frames per second of this library, Stable-Baselines3's DQN and TorchRL's DQN against how often they learn.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python benchmarks/update_rate.py                 # a quarter of an hour on two cores
    python benchmarks/update_rate.py --every 4 128 --rounds 5

As in `end_to_end.py`, in the settings that its search found to be each library's fastest, but with an update of 32
transitions per 4, 16 or 64 agent steps: the less is learned of a frame, the more it matters how frames are made. The
other two's environments are stepped one after the other; in processes they were slower at each of these rates when all
were tried once (Stable-Baselines3's by 1 to 17 %, TorchRL's by 2 to 12 %). Medians and quartiles of rounds, ratios
within a round; written to `docs/results/update_rate.json`, `.md` and `.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import Cell, measure
from common import RESULTS, origin, write
from end_to_end import installed, measure_apart, packages, quartiles

ARMS = ("sb3", "torchrl", "bayes_rl")
RATES = (500, 1000, 2000, 4000, 8000)  # of the plot's axis


def cells(every: int) -> list[Cell]:
    """Each library in its settings, with an update per `every` agent steps."""
    fastest = [
        Cell("sb3", 16, 2, {"vec_env": "dummy"}),
        Cell("torchrl", 8, 2, {"env": "serial", "compile": True}),
        Cell("bayes_rl", 32),
    ]
    return [replace(cell, part="update_rate", steps_per_update=every) for cell in fastest]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each number of agent steps per update and each arm: quartiles of its rate and of its ratio."""
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


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""
    text = ["| agent steps per update | arm | rounds | frames/s (quartiles) | against SB3 |", "|---|---|---|---|---|"]
    for line in lines:
        low, middle, high = line["frames_per_second"]
        ratio = line["ratio_to_sb3"]
        against = f"**{ratio[1]:.2f}** ({ratio[0]:.2f} to {ratio[2]:.2f})" if ratio else "-"
        what = f"{line['steps_per_update']} | {line['arm']} | {line['rounds']}"
        text.append(f"| {what} | **{middle:.0f}** ({low:.0f} to {high:.0f}) | {against} |")
    return "\n".join(text) + "\n"


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Rates against agent steps per update."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.8, 3.6), layout="constrained")
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
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[4, 16, 64], help="agent steps per update")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--seconds", type=float, default=6, help="measured of each process")
    parser.add_argument("--output", type=Path, default=RESULTS / "update_rate.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child:
        with tempfile.TemporaryDirectory() as folder:
            write(options.output, measure(Cell(**json.loads(options.child)), options.seconds, folder))
        return
    arms = installed(list(ARMS))
    source = {**origin(" ".join(["python", *sys.argv])), "packages": packages(), "seconds": options.seconds}
    rows: list[dict[str, Any]] = []
    for round in range(options.rounds):
        for cell in (cell for every in options.every for cell in cells(every) if cell.arm in arms):
            result = measure_apart(__file__, cell, options.seconds)
            words = f"{cell.arm} ({cell.name}), an update per {cell.steps_per_update} steps, round {round}"
            if isinstance(result, str):
                print(f"{words} failed: {result}", file=sys.stderr, flush=True)
                continue
            rows.append(result | {"round": round})
            if len(sizes := {row["encoder_parameters"] for row in rows}) > 1:
                sys.exit(f"the encoders are not the same: {sorted(sizes)} parameters")
            print(f"{words}: {result['frames_per_second']:.0f} frames/s", flush=True)
            lines = summary(rows)
            write(options.output, {**source, "summary": lines, "measurements": rows})
            options.output.with_suffix(".md").write_text(table(lines))
            draw(lines, options.output.with_suffix(".png"))
    print(table(summary(rows)))


if __name__ == "__main__":
    main()
