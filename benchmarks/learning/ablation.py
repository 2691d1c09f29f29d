"""Benefit and cost of distributions over weights in score: three objectives on MinAtar games.

    python -m benchmarks ablation [--games Breakout SpaceInvaders] [--seeds 1 2 3] [--jobs 2]

Arms: `plain` has no Bayesian layer; `elbo` has Bayesian heads and KL / N, the ELBO of the regression on TD targets;
`unscaled` has the same heads and adds the whole KL to the mean loss of a minibatch, as the original system does. All
other settings are those of `configs/minatar.yaml`. Each run trains for `--epochs` epochs, is evaluated on test games
after the last one, and leaves a file in `docs/results/ablation/`. Runs whose file exists are not repeated. The table of
all files has the mean over seeds with a 95 % interval, below five seeds with minimum and maximum, and the share of
realised returns within the agent's intervals.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import yaml

from bayes_rl import losses
from bayes_rl.reporting.figures import INTERVALS, estimate
from benchmarks.learning.silent_run import prepare_run, silence_lightning
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row

ARMS = ("plain", "elbo", "unscaled")


def measure(cell: Cell, options: Options) -> Row:
    """Train and evaluate one agent."""
    silence_lightning()
    arm, game, seed, epochs = cell["arm"], cell["game"], cell["seed"], options.epochs
    start = time.monotonic()
    if game == "CartPole":
        config = yaml.safe_load((ROOT / "configs" / "cartpole.yaml").read_text())
    else:
        config = yaml.safe_load((ROOT / "configs" / "minatar.yaml").read_text())
        config["data"]["env"] = f"MinAtar/{game}-v1"
    # The agent of 0.1.0: heads with distributions, a fixed noise of returns, random actions.
    config["model"] |= {"exploration": "epsilon", "likelihood": {"noise_std": 1.0}}
    bayesian = "none" if arm == "plain" else "heads"
    config["model"]["network"] |= {"bayesian": bayesian, "prior_function_scale": 0.0}
    if arm == "unscaled":
        losses.negative_elbo = lambda nll, kl, num_data, temperature: nll + kl  # the original system's objective
    config["data"]["evaluation"]["games"] = options.test_games
    # One validation after the last epoch suffices: it fits the noise of returns.
    data, module, trainer = prepare_run(config, seed, max_epochs=epochs, check_val_every_n_epoch=epochs)
    trainer.fit(module, datamodule=data)
    frames = data.stream.frames
    scores = trainer.test(module, datamodule=data, verbose=False)[0]
    return {
        "frames": frames,
        "minutes": round((time.monotonic() - start) / 60, 2),
        **{key.removeprefix("test/"): value for key, value in scores.items() if key.startswith("test/")},
    }


def table(rows: list[Row]) -> str:
    """Return scores and calibration of all finished runs as Markdown."""
    lines = [
        "| game | arm | seeds | score | in 50 % interval | in 90 % interval | calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    for game in sorted({row["game"] for row in rows}):
        for arm in ARMS:
            found = [row for row in rows if (row["game"], row["arm"]) == (game, arm)]
            if not found:
                continue
            score = estimate(torch.tensor([[row["return_mean"]] for row in found]), torch.mean)
            parts = [np.mean([row[k] for row in found]) for k in ("coverage_50", "coverage_90", "calibration_error")]
            seeds = ", ".join(str(row["seed"]) for row in found)
            columns = [game, arm, seeds, score, *(f"{p:.2f}" for p in parts)]
            lines.append("| " + " | ".join(columns) + " |")
    return "\n".join([*lines, "", f"Scores: {INTERVALS}"]) + "\n"


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, seed by seed."""
    return [
        {"game": game, "arm": arm, "seed": seed}
        for seed in options.seeds
        for game in options.games
        for arm in options.arms
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the games, the arms, the seeds and the length of a run."""
    parser.add_argument("--games", nargs="+", default=["Breakout", "SpaceInvaders"], help="MinAtar games, or CartPole")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4, help="epochs of 25 000 frames")
    parser.add_argument("--test_games", type=int, default=50, help="for the validation, and as many for the test")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    add_arguments=add_arguments,
    shared={"jobs": 2},
    files="{game}_{arm}_seed{seed}.json",
    child=True,
    show_output=True,
)
