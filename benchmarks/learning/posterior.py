"""Compare the shipped agents with plain twins: scores, what the uncertainty knows, intervals, and the price.

    python -m benchmarks posterior [--games minatar_breakout quickstart ...] [--arms default plain] [--seeds 1 2 3 4 5]
    python -m benchmarks posterior --most 0                     # the table from the files alone

The default agent is the shipped configuration of each game: a Gaussian process beside plain networks. Its twin has no
distribution and explores by epsilon alone; all else is equal. Each finished run is a file in `docs/results/posterior/`
and is not repeated. It has a row for each validation (frames, processor minutes of the training, metrics) and the
metrics of 200 test games, which are fresh: shares of 20 games scatter by some 7 %. `conformal_coverage_90` is the share
of returns in conformal intervals of the test games: each half is tested with the fit of the other half. The column
`at_plain_minutes` is the score of the default agent at the processor minutes of its twin's last validation,
interpolated between validations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from bayes_rl.evaluation.game_metrics import GameMetrics
from bayes_rl.evaluation.games import Game
from benchmarks.learning.silent_run import prepare_run, silence_lightning
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Row, markdown

GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "cartpole": ("cartpole", {}),
    "minatar_breakout": ("minatar", {}),
    "minatar_space_invaders": ("minatar", {"env": "MinAtar/SpaceInvaders-v1"}),
    "minatar_freeway": ("minatar", {"env": "MinAtar/Freeway-v1"}),
    "minatar_asterix": ("minatar", {"env": "MinAtar/Asterix-v1"}),
    "minatar_seaquest": ("minatar", {"env": "MinAtar/Seaquest-v1"}),
    "quickstart": ("quickstart", {}),
}
"""Name of a game to its configuration file and changes of `data`."""
ARMS = ("default", "plain")
KINDS = ("noise", "shuffled", "other_game", "unvisited")
SHOWN = ("return_mean", *(f"novelty_auroc_{kind}" for kind in KINDS), "error_correlation_low", "error_correlation")
SHOWN += ("raw_coverage_90", "coverage_90", "predictive_error_correlation")
"""Metrics of a validation and of the test."""
CONFORMAL = "conformal_coverage_90"


class TestGames(pl.Callback):
    """Callback that keeps the test games."""

    def __init__(self) -> None:
        self.played: list[Game] = []

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Keep the games of a batch."""
        self.played += outputs["games"]


def conformal_coverage(played: Sequence[Game], every: int, gamma: float) -> float:
    """Return the share of returns in conformal 90 % intervals, each half of the games with the fit of the other.

    Args:
        played: games.
        every: agent steps between two estimates of a game.
        gamma: discount per agent step.
    """
    halves = [played[0::2], played[1::2]]
    shares = []
    for fitted, tested in (halves, halves[::-1]):
        metrics = GameMetrics()
        for games in (fitted, tested):  # the first fit makes the intervals of the second half
            metrics.update(games, range(len(games)), every, gamma)
            metrics.uncertainty.update(torch.ones(2, 1, 2))  # has no part in the share; empty, it would warn
            share = metrics.finish("", fit=True)["coverage_90"]
        shares.append(float(share))
    return statistics.mean(shares)


class Curve(pl.Callback):
    """Callback that keeps the metrics of every validation with the processor time of the training until then."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._training, self._began = 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock: validations of longer games are not a price of the agent."""
        self._training += time.process_time() - self._began

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics."""
        frames = trainer.datamodule.stream.frames  # type: ignore[attr-defined]
        metrics = {key.removeprefix("val/"): float(value) for key, value in trainer.callback_metrics.items()}
        shown = {key: round(metrics[key], 4) for key in SHOWN if key in metrics}
        self.rows.append({"frames": frames, "minutes": round(self._training / 60, 3), **shown})


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, game by game."""
    return [
        {"game": game, "arm": arm, "seed": seed}
        for game in options.games
        for seed in options.seeds
        for arm in options.arms
    ]


def measure(cell: Cell, options: Options) -> Row:
    """Train and test one agent on one thread."""
    silence_lightning()
    torch.set_num_threads(1)
    name, changes = GAMES[cell["game"]]
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    config["data"] |= changes
    if cell["arm"] == "plain":
        config["model"] |= {"exploration": "epsilon"}
        config["model"]["network"] |= {"bayesian": "none", "prior_function_scale": 0.0}
    curve = Curve()
    epochs = options.epochs or config["trainer"]["max_epochs"]
    data, agent, trainer = prepare_run(config, cell["seed"], max_epochs=epochs, callbacks=[curve])
    trainer.fit(agent, datamodule=data)
    data.evaluation = replace(data.evaluation, games=options.test_games)
    games = TestGames()
    trainer.callbacks.append(games)  # type: ignore[attr-defined]
    (test,) = trainer.test(agent, datamodule=data, verbose=False)
    every = next(iter(data.test_dataloader())).estimate_every
    share = conformal_coverage(games.played, every, data.gamma)
    found = {key.removeprefix("test/"): round(float(value), 4) for key, value in {**test, CONFORMAL: share}.items()}
    return {**cell, "epochs": epochs, "test_games": options.test_games, "curve": curve.rows, "test": found}


def score_at(curve: list[Row], minutes: float) -> float:
    """Return the score at a time, interpolated between validations: 0 at the start, the last one after the end."""
    before = {"minutes": 0.0, "return_mean": 0.0}
    for row in curve:
        if row["minutes"] >= minutes:
            share = (minutes - before["minutes"]) / (row["minutes"] - before["minutes"])
            return float(before["return_mean"] + share * (row["return_mean"] - before["return_mean"]))
        before = row
    return float(before["return_mean"])


def runs_of(rows: list[Row]) -> list[Row]:
    """Return a line for each run, with its last validation, its test and the score at its twin's minutes."""
    of_plain = {(row["game"], row["seed"]): row["curve"][-1] for row in rows if row["arm"] == "plain"}
    lines = []
    for row in sorted(rows, key=lambda row: (row["game"], row["arm"], row["seed"])):
        last, plain = row["curve"][-1], of_plain.get((row["game"], row["seed"]))
        line = {key: row[key] for key in ("game", "arm", "seed")} | {
            "frames": last["frames"],
            "minutes": last["minutes"],
        }
        line |= {"validation": last.get("return_mean")}
        line |= {key.removeprefix("novelty_"): row["test"].get(key) for key in (*SHOWN, CONFORMAL)}
        compared = plain if row["arm"] == "default" else None
        line["at_plain_minutes"] = round(score_at(row["curve"], compared["minutes"]), 2) if compared else None
        lines.append(line)
    return lines


def summary_of(lines: list[Row]) -> list[Row]:
    """Return a line for each game and arm: the mean over seeds and the range, from the least to the greatest.

    Args:
        lines: of single runs, from `runs_of`.
    """
    summary = []
    for game, arm in dict.fromkeys((line["game"], line["arm"]) for line in lines):
        runs = [line for line in lines if (line["game"], line["arm"]) == (game, arm)]
        row: Row = {"game": game, "arm": arm, "seeds": len(runs)}
        for key in list(runs[0])[4:]:
            values = [run[key] for run in runs if run[key] is not None]
            row[key] = [min(values), statistics.mean(values), max(values)] if values else None
        summary.append(row)
    return summary


def table(rows: list[Row]) -> str:
    """Return the games and the runs as two tables of Markdown."""
    if not rows:
        return "nothing measured\n"
    lines = runs_of(rows)
    summary = summary_of(lines)
    of_games = "Mean over seeds (least to greatest):\n\n" + markdown(summary, list(summary[0]))
    return f"{of_games}\nSingle runs:\n\n{markdown(lines, list(lines[0]))}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add games, arms, seeds and the length of a run."""
    parser.add_argument("--games", nargs="+", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--test_games", type=int, default=200, help="games of the test, which are fresh")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of a run; 0 for those of the configuration")


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
