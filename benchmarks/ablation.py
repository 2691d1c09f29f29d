"""What distributions over weights bring and cost in score: three objectives on MinAtar games.

    python benchmarks/ablation.py [--games Breakout SpaceInvaders] [--seeds 1 2 3] [--jobs 2]
    python benchmarks/ablation.py --run elbo Breakout 1             # one of them, in this process

Arms: `plain` has no Bayesian layer; `elbo` has Bayesian heads and the true ELBO (KL / N); `unscaled` has the same heads
and adds the whole KL to the mean loss of a minibatch, as the original system does. Everything else is
`configs/minatar.yaml`. Each run trains for `--epochs` epochs, is evaluated on test games after the last, and leaves a
file in `docs/results/ablation/`; runs whose file is there are not run again. The table of all files has the mean over
seeds with a 95 % bootstrap interval, and how often realised returns lay in the agent's intervals.
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
import numpy as np
import yaml
from common import ROOT, learner, origin, run_missing, write

from bayes_rl import losses

RESULTS = common.RESULTS / "ablation"
ARMS = ("plain", "elbo", "unscaled")


def run(arm: str, game: str, seed: int, epochs: int, games: int) -> dict[str, Any]:
    """Train and evaluate one agent."""
    start = time.monotonic()
    if game == "CartPole":
        config = yaml.safe_load((ROOT / "configs" / "cartpole.yaml").read_text())
    else:
        config = yaml.safe_load((ROOT / "configs" / "minatar.yaml").read_text())
        config["data"]["env"] = f"MinAtar/{game}-v1"
    if arm == "plain":
        config["model"]["bayesian"] = "none"
    if arm == "unscaled":
        losses.negative_elbo = lambda nll, kl, num_data, temperature: nll + kl  # the original system's objective
    config["data"]["eval_games"] = games
    # Validated once, after the last epoch: it fits the noise of returns.
    data, module, trainer = learner(config, seed, max_epochs=epochs, check_val_every_n_epoch=epochs)
    trainer.fit(module, datamodule=data)
    frames = data.stream.frames
    scores = trainer.test(module, datamodule=data, verbose=False)[0]
    return {
        "arm": arm,
        "game": game,
        "seed": seed,
        "frames": frames,
        "minutes": round((time.monotonic() - start) / 60, 2),
        **{key.removeprefix("test/"): value for key, value in scores.items() if key.startswith("test/")},
        **origin(f"python benchmarks/ablation.py --run {arm} {game} {seed} --epochs {epochs} --test_games {games}"),
    }


def path_of(arm: str, game: str, seed: int | str) -> Path:
    """The file of a finished run."""
    return RESULTS / f"{game}_{arm}_seed{seed}.json"


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean over runs and its 95 % percentile bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.mean(values)), float(low), float(high)


def report() -> None:
    """The table of all finished runs."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_seed*.json"))]
    lines = [
        "| game | arm | seeds | score (95 % interval) | in 50 % interval | in 90 % interval | calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    for game in sorted({row["game"] for row in rows}):
        for arm in ARMS:
            found = [row for row in rows if (row["game"], row["arm"]) == (game, arm)]
            if not found:
                continue
            mean, low, high = interval([row["return_mean"] for row in found])
            parts = [np.mean([row[k] for row in found]) for k in ("coverage_50", "coverage_90", "calibration_error")]
            seeds = ", ".join(str(row["seed"]) for row in found)
            columns = [game, arm, seeds, f"{mean:.2f} ({low:.2f} to {high:.2f})", *(f"{p:.2f}" for p in parts)]
            lines.append("| " + " | ".join(columns) + " |")
    (RESULTS / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Breakout", "SpaceInvaders"], help="MinAtar games, or CartPole")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4, help="of 25 000 frames")
    parser.add_argument("--test_games", type=int, default=50, help="for validation, and as many others for the test")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--run", nargs=3, metavar=("ARM", "GAME", "SEED"), help="do this run, in this process")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.run:
        arm, game, seed = options.run
        result = run(arm, game, int(seed), options.epochs, options.test_games)
        write(path_of(arm, game, seed), result)
        print(arm, game, seed, result["return_mean"], result["coverage_90"], result["minutes"], flush=True)
        return
    runs = []
    for seed in options.seeds:
        for game in options.games:
            for arm in options.arms:
                words = ["--run", arm, game, str(seed), "--epochs", str(options.epochs)]
                runs.append((path_of(arm, game, seed), [*words, "--test_games", str(options.test_games)]))
    run_missing(__file__, runs, options.jobs)
    report()


if __name__ == "__main__":
    main()
