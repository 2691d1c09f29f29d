"""Three MinAtar games in sequence: what is kept, by which method.

    python benchmarks/continual.py [--arms fine_tuning ewc online_ewc vcl single] [--seeds 1 2 3] [--jobs 2]

Arms: `fine_tuning` protects nothing; `ewc`, `online_ewc` and `vcl` are `--model.consolidation`; `single` learns each
game alone, as reference. All else is `configs/continual.yaml`. Each run is one `cli.py fit` of its own; a run that was
stopped goes on from its last checkpoint, and one that is finished leaves `config.yaml` and `metrics.npy` in
`docs/results/continual/runs/`. The last thing is the report of all finished runs: table, curves and heat map. Scores
are normalised by uniformly random play (0) and by the mean of the references' last validations (1), which
`references.json` holds. Untrained play is no zero: a network that always says "up" does well in Freeway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import common
import numpy as np
import torch
import yaml
from common import ROOT, origin, run_missing, write

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.shared_spaces import task_name

RESULTS = common.RESULTS / "continual"
CONFIG = ROOT / "configs" / "continual.yaml"
RANDOM_GAMES = 200
ARMS: dict[str, list[str]] = {
    "fine_tuning": ["--model.consolidation=none", "--model.ewc_lambda=null"],
    "ewc": ["--model.consolidation=ewc"],
    "online_ewc": ["--model.consolidation=online_ewc"],
    "vcl": ["--model.consolidation=vcl", "--model.bayesian=all"],
}


def tasks() -> list[str]:
    """The games of the sequence."""
    return list(yaml.safe_load(CONFIG.read_text())["data"]["tasks"])


def options_of(arm: str) -> list[str]:
    """What an arm (`single:GAME` for a reference) changes in the configuration."""
    if not arm.startswith("single:"):
        return ARMS[arm]
    config = yaml.safe_load(CONFIG.read_text())["data"]
    epochs = config["frames_per_task"] // config["frames_per_epoch"]
    env = ["--data.tasks=null", f"--data.env={arm.partition(':')[2]}", "--data.task_conditioning=none"]
    return [*env, f"--trainer.max_epochs={epochs}", *ARMS["fine_tuning"]]


def name_of(arm: str, seed: int | str) -> str:
    """Of a run."""
    return f"{arm.replace(':', '_').replace('/', '-')}_seed{seed}"


def run(arm: str, seed: str, more: list[str]) -> None:
    """Train one arm, or go on where it was stopped; keep what the report needs."""
    root = Path("runs") / "continual"  # relative: the configuration is kept
    words = ["fit", f"--config={CONFIG.relative_to(ROOT)}", f"--name={name_of(arm, seed)}"]
    words += [f"--trainer.default_root_dir={root}"]
    words += [f"--seed_everything={seed}", "--trainer.enable_progress_bar=false", *options_of(arm), *more]
    resumed = (ROOT / root / name_of(arm, seed)).glob("version_*/checkpoints/last.ckpt")
    again = ["--ckpt_path=last"] if any(resumed) else []
    command = [sys.executable, str(ROOT / "cli.py"), *words, *again]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    newest = max(
        (ROOT / root / name_of(arm, seed)).glob("version_*/metrics.npy"), key=lambda path: path.stat().st_mtime
    )
    kept = RESULTS / "runs" / name_of(arm, seed)
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("config.yaml", "metrics.npy"):
        shutil.copy(newest.parent / file, kept / file)
    scores = np.load(newest, allow_pickle=False)[-1]
    columns = [column for column in scores.dtype.names or () if column.endswith("return_mean")]
    shown = {column: round(float(scores[column]), 2) for column in columns}
    script = " ".join(["python benchmarks/continual.py --run", arm, seed, *more])
    write(kept / "origin.json", {"arm": arm, "seed": int(seed), "scores": shown, **origin(script)})
    print(name_of(arm, seed), shown, flush=True)


def random_score(task: str) -> float:
    """Mean score of a uniformly random player, with the game's own actions."""
    config = yaml.safe_load(CONFIG.read_text())["data"] | {"tasks": None, "env": task, "seed": 0}
    data = ReplayDataModule(**config)
    generator = torch.Generator().manual_seed(0)
    games = data.games("test", RANDOM_GAMES).play(
        lambda observations: torch.randint(data.num_actions, (len(observations),), generator=generator)
    )
    return float(np.mean([game.score for game in games]))


def references() -> list[str]:
    """The report's option for what counts as 0 and as 1, as far as all games have been learned alone."""
    pairs: dict[str, list[float]] = {}
    for task in tasks():
        files = (RESULTS / "runs").glob(f"{name_of(f'single:{task}', '*')}/origin.json")
        alone = [json.loads(file.read_text())["scores"]["return_mean"] for file in files]
        if not alone:
            return []
        pairs[task_name(task)] = [random_score(task), float(np.mean(alone))]
    file = RESULTS / "references.json"
    write(file, {**pairs, "random_games": RANDOM_GAMES, **origin("python benchmarks/continual.py")})
    return ["--references", str(file.relative_to(ROOT)), "--normalise", "reference"]


def report() -> None:
    """Table, curves and heat map of all finished runs; it says itself what is missing, single-task references first."""
    finished = sorted(path.parent for path in (RESULTS / "runs").glob("*/origin.json"))
    words = [*(str(path.relative_to(ROOT)) for path in finished), *references()]
    where = str(RESULTS.relative_to(ROOT))
    subprocess.run([sys.executable, "-m", "bayes_rl", "report", *words, "--output", where], cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "single"], choices=[*ARMS, "single"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--run", nargs=2, metavar=("ARM", "SEED"), help="do this run, in this process")
    options, more = parser.parse_known_args()  # the rest goes to cli.py
    if options.run:
        arm, seed = options.run
        run(arm, seed, more)
        return
    arms = [arm for arm in options.arms if arm != "single"]
    arms += [f"single:{env}" for env in tasks() if "single" in options.arms]
    runs: list[tuple[Path, list[str]]] = []
    for seed in options.seeds:
        for arm in arms:
            done = RESULTS / "runs" / name_of(arm, seed) / "origin.json"
            runs.append((done, ["--run", arm, str(seed), *more]))
    run_missing(__file__, runs, options.jobs)
    report()


if __name__ == "__main__":
    main()
