"""Frames per second, learning included, of this library, Stable-Baselines3's DQN and TorchRL's DQN on Atari Breakout.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python benchmarks/end_to_end.py                                   # all of it: 20 minutes on two cores
    python benchmarks/end_to_end.py --parts matched --arms sb3 bayes_rl --rounds 5 --seconds 20
    python benchmarks/end_to_end.py --keep --most 3                   # in pieces: the next three processes

Three parts:
    matched: the same network (Nature's convolutions, 512 features), batch of 32, one update per four agent steps, frame
        skip and stack of 4, 84 x 84 grey, 1 or 8 environments, one-step returns, float32 and two threads for all.
    search: a small grid of what each library offers by options (environments, their vectorisation, threads, precision,
        compilation, memory), once each; network, batch and updates per step stay the same.
    best: the fastest of each library's grid, in turns.

Every measurement is a process of its own: 1 000 random steps, a warm-up, then `--seconds` of learning, with 0.1 of the
actions at random, a replay of 50 000 transitions, and TensorBoard where the library writes it. Arms take turns (A B C
A B C); the medians of the rounds and their quartiles are written to `docs/results/libraries.json`, `.md` and `.png`;
ratios to Stable-Baselines3 are taken within a round. A frame is a fourth of an agent step. Arms whose package is
missing are left out with a line.

Everyone plays ALE/Breakout-v5 with sticky actions (0.25) and a lost life as the end of a return. What still differs:
    Stable-Baselines3: its own AtariWrapper (OpenCV resizes, FIRE after each lost life outside of the agent's steps, a
        lost life is an episode's end), Huber loss, hard target updates, clipped gradients.
    TorchRL: no DQN for Atari in the package, so its own script's loop is followed (400 steps, then 100 updates), with
        Gymnasium's AtariPreprocessing and uint8 screens in place of the script's slower float transforms; no FIRE.
    bayes_rl: `configs/breakout.yaml` by the command line, FIRE pressed in the agent's steps; two actors and two critics
        with Bayesian heads on one trunk with a LayerNorm, target by a moving average at every update. `bayes_rl_plain`
        has no Bayesian layer and trains one pair of the two per update; both pairs are still evaluated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import distributions
from itertools import groupby
from pathlib import Path
from typing import Any

from arms import NEEDS, Cell, measure
from common import RESULTS, ROOT, origin, write

PARTS = ("matched", "search", "best")


def matched() -> list[Cell]:
    """The same for all, in the order of their turns."""
    return [Cell(arm, num_envs) for num_envs in (1, 8) for arm in NEEDS]


def grid() -> list[Cell]:
    """What is searched for each library's best settings."""
    sb3 = [Cell("sb3", 1), Cell("sb3", 4, 2, {"vec_env": "dummy"})]
    sb3 += [Cell("sb3", n, 2, {"vec_env": vec}) for n in (8, 16) for vec in ("dummy", "subproc")]
    sb3 += [Cell("sb3", 8, 1, {"vec_env": "subproc"})]
    sb3 += [Cell("sb3", 8, 2, {"vec_env": "dummy", "optimize_memory_usage": True})]
    kinds = ((1, "serial"), (8, "serial"), (8, "parallel"), (16, "parallel"))
    theirs = [Cell("torchrl", n, 2, {"env": env}) for n, env in kinds]
    theirs += [Cell("torchrl", 8, 2, {"env": env, "compile": True}) for env in ("serial", "parallel")]
    theirs += [Cell("torchrl", 8, 2, {"env": "serial", "collector": "async"})]
    ours = [Cell("bayes_rl", n) for n in (8, 16, 32)] + [Cell("bayes_rl", 16, 1)]
    ours += [Cell("bayes_rl", 16, 2, {"trainer.precision": "bf16-mixed"})]
    ours += [Cell("bayes_rl", 16, 2, {"model.compile": "default"})]
    return [replace(cell, part="search") for cell in (*sb3, *theirs, *ours)]


# ------------------------------------------------------------------------------------------------ turns and results
def cell_of(row: dict[str, Any], part: str) -> Cell:
    """What a measurement was made of, for another part."""
    return Cell(row["arm"], row["num_envs"], row["threads"], row["options"], part, row["steps_per_update"])


def best(rows: list[dict[str, Any]]) -> list[Cell]:
    """The fastest measurement of each arm of the search."""
    found = [row for row in rows if row["part"] == "search"]
    arms = [arm for arm in NEEDS if any(row["arm"] == arm for row in found)]
    of = {arm: max((r for r in found if r["arm"] == arm), key=lambda r: r["frames_per_second"]) for arm in arms}
    return [cell_of(row, "best") for row in of.values()]


def next_cell(options: argparse.Namespace, rows: list[dict[str, Any]], failed: list[Cell]) -> tuple[Cell, int] | None:
    """What is to be measured next, and in which round, by what is there."""
    for part in PARTS:
        cells = {"matched": matched, "search": grid, "best": lambda: best(rows)}[part]()
        for round in range(1 if part == "search" else options.rounds):
            for cell in cells if part in options.parts else []:
                done = [row["round"] for row in rows if cell_of(row, row["part"]) == cell]
                if cell.arm in options.arms and round not in done and cell not in failed:
                    return cell, round
    return None


def measure_apart(script: str, cell: Cell, seconds: float) -> dict[str, Any] | str:
    """Measure in a process of its own, which is a script's `--child`; the last line of its error if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = ["--child", json.dumps(asdict(cell)), "--seconds", str(seconds), "--output", str(result)]
        environment = os.environ | {"OMP_NUM_THREADS": str(cell.threads), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, script, *words]
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.exists():
            return dict(json.loads(result.read_text()))
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return lines[-1]


def quartiles(values: list[float]) -> list[float]:
    """First, second and third quartile."""
    if len(values) == 1:
        return values * 3
    return [round(q, 3) for q in statistics.quantiles(values, n=4, method="inclusive")]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each cell of `matched` and `best`: quartiles over rounds, and of its ratio to Stable-Baselines3."""
    lines = []
    order = [
        (part, n, arm) for part in ("matched", "best") for n in ((1, 8) if part == "matched" else (0,)) for arm in NEEDS
    ]

    def place(row: dict[str, Any]) -> tuple[str, int, str]:
        return row["part"], row["num_envs"] if row["part"] == "matched" else 0, row["arm"]

    kept = sorted(
        (row for row in rows if row["part"] != "search"), key=lambda row: (order.index(place(row)), row["round"])
    )
    for (part, num_envs, arm), group in groupby(kept, key=place):
        runs = list(group)
        base = {r["round"]: r for r in kept if place(r) == (part, num_envs, "sb3")}
        ratios = [r["frames_per_second"] / base[r["round"]]["frames_per_second"] for r in runs if r["round"] in base]
        lines.append(
            {
                "part": part,
                "arm": arm,
                "settings": cell_of(runs[0], part).name,
                "rounds": len(runs),
                "frames_per_second": quartiles([r["frames_per_second"] for r in runs]),
                "updates_per_second": round(statistics.median(r["updates_per_second"] for r in runs), 2),
                "peak_mib": round(max(r["peak_mib"] for r in runs), 1),
                "replay_mib": runs[0]["replay_mib"],
                "ratio_to_sb3": quartiles(ratios) if ratios else None,
            }
        )
    return lines


def table(lines: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ("part", "arm", "settings", "rounds", "frames/s (quartiles)", "updates/s", "peak MiB", "replay MiB")
    text = [f"| {' | '.join(head)} | against SB3 (quartiles) |", "|" + "---|" * 9]
    for line in lines:
        low, middle, high = line["frames_per_second"]
        ratio = line["ratio_to_sb3"]
        against = f"**{ratio[1]:.2f}** ({ratio[0]:.2f} to {ratio[2]:.2f})" if ratio else "-"
        rates = f"**{middle:.0f}** ({low:.0f} to {high:.0f}) | {line['updates_per_second']:.1f}"
        sizes = f"{line['peak_mib']:.0f} | {line['replay_mib']:.0f}"
        what = f"{line['part']} | {line['arm']} | {line['settings']} | {line['rounds']}"
        text.append(f"| {what} | {rates} | {sizes} | {against} |")
    searched = [row for row in rows if row["part"] == "search"]
    text += ["", "| searched | settings | frames/s |", "|---|---|---|"] if searched else []
    for row in searched:
        text.append(f"| {row['arm']} | {cell_of(row, 'search').name} | {row['frames_per_second']:.0f} |")
    return "\n".join(text) + "\n"


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Bars of the medians with the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [
        list(group) for _, group in groupby(lines, key=lambda x: (x["part"], x["part"] == "matched" and x["settings"]))
    ]
    colours = dict(zip(NEEDS, ("tab:orange", "tab:red", "tab:blue", "tab:cyan"), strict=True))
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.6), layout="constrained", squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        for place, line in enumerate(group):
            low, middle, high = line["frames_per_second"]
            axis.bar(place, middle, yerr=[[middle - low], [high - middle]], color=colours[line["arm"]], capsize=3)
            axis.annotate(f"{middle:.0f}", (place, high), ha="center", va="bottom")
        axis.set_xticks(range(len(group)), [line["arm"].replace("_plain", "\nplain") for line in group], fontsize=8)
        axis.set_title("each at its best" if group[0]["part"] == "best" else group[0]["settings"], fontsize=9)
        axis.margins(y=0.12)
    axes[0][0].set_ylabel("frames per second, learning")
    figure.savefig(path, dpi=120)


def installed(arms: list[str]) -> list[str]:
    """Those arms whose packages are there; a line for each that is not."""
    there = []
    for arm in arms:
        missing = [name for name in NEEDS[arm] if importlib.util.find_spec(name) is None]
        if missing:
            print(
                f"{arm} is left out: {', '.join(missing)} not installed; pip install --editable '.[bench]'",
                file=sys.stderr,
            )
        else:
            there.append(arm)
    return there


def packages() -> dict[str, str]:
    """Versions of what is compared and of what it stands on, where installed."""
    names = ("stable-baselines3", "torchrl", "tensordict", "opencv-python-headless", "ale-py", "pytorch-lightning")
    found = {distribution.name: distribution.version for distribution in distributions()}
    known = {name.lower().replace("_", "-"): number for name, number in found.items()}
    return {name: known[name] for name in names if name in known}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--arms", nargs="+", default=list(NEEDS), choices=list(NEEDS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm, but for the search, which has one")
    parser.add_argument("--seconds", type=float, default=6, help="measured of each process")
    parser.add_argument("--keep", action="store_true", help="go on with the measurements that the file has")
    parser.add_argument("--most", type=int, default=10**6, help="processes now; the others with --keep")
    parser.add_argument("--output", type=Path, default=RESULTS / "libraries.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child:
        with tempfile.TemporaryDirectory() as folder:
            write(options.output, measure(Cell(**json.loads(options.child)), options.seconds, folder))
        return
    options.arms = installed(options.arms)
    before = json.loads(options.output.read_text()) if options.keep and options.output.exists() else {}
    rows: list[dict[str, Any]] = before.get("measurements", [])
    failed: list[Cell] = []
    source = {**origin(" ".join(["python", *sys.argv])), "packages": packages(), "seconds": options.seconds}
    if before and before["commit"] != source["commit"]:
        sys.exit(f"{options.output} is of commit {before['commit'][:7]}: drop --keep to measure all of it again")
    for _ in range(options.most):
        todo = next_cell(options, rows, failed)
        if todo is None:
            break
        cell, round = todo
        result = measure_apart(__file__, cell, options.seconds)
        if isinstance(result, str):
            failed.append(cell)
            print(f"{cell.part} {cell.arm} ({cell.name}) failed: {result}", file=sys.stderr, flush=True)
            continue
        rows.append(result | {"round": round})
        if len(sizes := {row["encoder_parameters"] for row in rows}) > 1:
            sys.exit(f"the encoders are not the same: {sorted(sizes)} parameters")
        print(
            f"{cell.part} {cell.arm} ({cell.name}), round {round}: {result['frames_per_second']:.0f} frames/s",
            flush=True,
        )
        lines = summary(rows)
        write(options.output, {**source, "summary": lines, "measurements": rows})
        options.output.with_suffix(".md").write_text(table(lines, rows))
        if lines:
            draw(lines, options.output.with_suffix(".png"))
    print(table(summary(rows), rows))


if __name__ == "__main__":
    main()
