"""DeepSea of every size: episodes until solved, by Thompson sampling and by epsilon-greedy.

    python benchmarks/deep_sea.py [--sizes 10 12 ... 50] [--agents thompson epsilon] [--jobs 2]
    python benchmarks/deep_sea.py --size 20 --agent thompson        # one of them, in this process

A size is solved at the first episode where the share of bad episodes so far falls below 0.9 (bsuite's criterion), and
given up after `--episodes` of them. Each finished run is a file in `docs/results/deep_sea/`; runs whose file is there
are not run again, so that a stopped sweep goes on where it was. The last thing is the table and the plot of all files.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import common
import pytorch_lightning as pl
import yaml
from common import ROOT, learner, origin, run_missing, write

RESULTS = common.RESULTS / "deep_sea"
SIZES = list(range(10, 51, 2))
SOLVED_BELOW = 0.9
# The same networks without what explores: no members, no prior functions, random actions instead.
EPSILON = {
    "model": {"posterior": "mean_field", "prior_scale": 0.0, "exploration": "epsilon"},
    "data": {"epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_decay_frames": 20_000},
}


class Episodes(pl.Callback):
    """Counts finished training episodes, and stops the run when they solve the problem or there were enough."""

    def __init__(self, limit: int, name: str) -> None:
        self.limit, self.name = limit, name
        self.episodes = self.good = 0
        self.first_good: int | None = None
        self.solved: int | None = None
        self.start = self.shown = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        stream = trainer.datamodule.stream  # type: ignore[attr-defined]
        new = stream.finished_episodes - self.episodes
        for score in list(stream.recent_returns)[len(stream.recent_returns) - new :]:
            self.episodes += 1
            if score > 0.5:  # the treasure, less the cost of going there
                self.good += 1
                self.first_good = self.first_good or self.episodes
            if self.solved is None and 1 - self.good / self.episodes < SOLVED_BELOW:
                self.solved = self.episodes
        if time.monotonic() - self.shown > 20:
            self.shown = time.monotonic()
            print(f"{self.name}: {self.episodes} episodes, {self.good} good, {self.seconds:.0f} s", flush=True)
        if self.solved is not None or self.episodes >= self.limit:
            trainer.should_stop = True
            stream.batches_per_epoch = 1  # leave the epoch too

    @property
    def seconds(self) -> float:
        """Wall-clock since the start."""
        return time.monotonic() - self.start


def run(size: int, agent: str, seed: int, limit: int) -> dict[str, Any]:
    """Train one agent on one size; what came of it."""
    config = yaml.safe_load((ROOT / "configs" / "deep_sea.yaml").read_text())
    changes: dict[str, Any] = EPSILON if agent == "epsilon" else {"model": {}, "data": {}}
    env_kwargs = config["data"]["env_kwargs"] | {"size": size}
    config["model"] |= changes["model"]
    # One epoch: nothing is evaluated in between.
    config["data"] |= changes["data"] | {"env_kwargs": env_kwargs, "frames_per_epoch": size * limit}
    episodes = Episodes(limit, f"{agent} {size}")
    data, module, trainer = learner(config, seed, max_epochs=1, limit_val_batches=0, callbacks=[episodes])
    trainer.fit(module, datamodule=data)
    return {
        "agent": agent,
        "size": size,
        "seed": seed,
        "solved_after_episodes": episodes.solved,
        "first_good_episode": episodes.first_good,
        "good_episodes": episodes.good,
        "episodes": episodes.episodes,
        "updates": module.global_step,
        "minutes": round(episodes.seconds / 60, 2),
        **origin(f"python benchmarks/deep_sea.py --size {size} --agent {agent} --seed {seed} --episodes {limit}"),
    }


def path_of(agent: str, size: int, seed: int) -> Path:
    """The file of a finished run."""
    return RESULTS / f"{agent}_size{size}_seed{seed}.json"


def sweep(options: argparse.Namespace) -> None:
    """Run what is missing, the shortest first."""
    runs = []
    for size in sorted(options.sizes):
        for agent in options.agents:
            if agent == "thompson" or size in options.epsilon_sizes:
                words = ["--agent", agent, "--size", str(size), "--seed", str(options.seed)]
                words += ["--episodes", str(options.episodes)]
                runs.append((path_of(agent, size, options.seed), words))
    run_missing(__file__, runs, options.jobs)


def report() -> None:
    """Table and plot of all finished runs."""
    from matplotlib.figure import Figure

    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_size*.json"))]
    rows.sort(key=lambda row: (row["agent"], row["size"], row["seed"]))
    lines = [
        "| agent | N | seed | solved after episodes | first success | episodes played | updates | minutes | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        solved = row["solved_after_episodes"] or f"not in {row['episodes']}"
        columns = [row["agent"], row["size"], row["seed"], solved, row["first_good_episode"] or "-", row["episodes"]]
        columns += [row["updates"], row["minutes"], f"`{row['commit'][:7]}`"]
        lines.append("| " + " | ".join(str(column) for column in columns) + " |")
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for agent, marker in (("thompson", "o"), ("epsilon", "s")):
        for solved in (True, False):
            found = [row for row in rows if row["agent"] == agent and bool(row["solved_after_episodes"]) == solved]
            if found:
                x, y = zip(
                    *((row["size"], row["solved_after_episodes"] or row["episodes"]) for row in found), strict=True
                )
                axes.plot(x, y, marker if solved else "x", label=agent if solved else f"{agent}: not solved")
    axes.plot(range(5, 20), [2**n for n in range(5, 20)], "--", color="grey", label="2^N: dithering")
    axes.axhline(10_000, color="grey", linewidth=0.5)
    axes.set(yscale="log", xlabel="size N", ylabel="episodes until solved", title="DeepSea", ylim=(20, 20_000))
    axes.legend()
    figure.savefig(RESULTS / "deep_sea.png", dpi=120)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sizes of the sweep")
    parser.add_argument("--agents", nargs="+", default=["thompson", "epsilon"], choices=("thompson", "epsilon"))
    parser.add_argument("--epsilon_sizes", type=int, nargs="+", default=[10, 14, 20], help="sizes for epsilon-greedy")
    parser.add_argument("--episodes", type=int, default=10_000, help="episodes after which a size is given up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--size", type=int, help="run this size only, in this process")
    parser.add_argument("--agent", default="thompson", choices=("thompson", "epsilon"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.size is None:
        sweep(options)
        report()
        return
    result = run(options.size, options.agent, options.seed, options.episodes)
    write(path_of(options.agent, options.size, options.seed), result)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
