"""Three MinAtar games in sequence: scores on earlier games after later ones, by consolidation method.

    python -m benchmarks continual [--arms fine_tuning ewc online_ewc vcl single] [--seeds 1 2 3] [--jobs 2]

Arms: `fine_tuning` protects nothing; `ewc`, `online_ewc` and `vcl` are values of
`--model.consolidation.method`; `single` learns each
game alone, as reference. All other settings are those of `configs/continual.yaml`; unknown options are passed on to
`cli.py`. Each run is one `cli.py fit`. A stopped run continues from its last checkpoint, and a finished one leaves
`config.yaml` and `metrics.npy` in `docs/results/continual/runs/`. The last step is the report of all finished runs:
table, curves and heat map. Scores are normalised by uniformly random play (0) and by the mean of the references' last
validations (1), which `references.json` holds. Untrained play is no zero: a network that always says "up" does well in
Freeway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import yaml

from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.envs.shared_spaces import task_name
from benchmarks.runner import ROOT, Benchmark, Cell, Options, Results, Row, markdown, origin, write_json

CONFIG = ROOT / "configs" / "continual.yaml"
RANDOM_GAMES = 200
ARMS: dict[str, list[str]] = {
    "fine_tuning": ["--model.consolidation.method=none", "--model.consolidation.ewc_lambda=null"],
    "ewc": ["--model.consolidation.method=ewc"],
    "online_ewc": ["--model.consolidation.method=online_ewc"],
    "vcl": ["--model.consolidation.method=vcl", "--model.network.bayesian=all"],
}


def tasks() -> list[str]:
    """Return the games of the sequence."""
    return list(yaml.safe_load(CONFIG.read_text())["data"]["tasks"])


def options_of(arm: str) -> list[str]:
    """Return the options by which an arm (`single:GAME` for a reference) differs from the configuration."""
    if not arm.startswith("single:"):
        return ARMS[arm]
    config = yaml.safe_load(CONFIG.read_text())["data"]
    epochs = config["curriculum"]["frames_per_task"] // config["frames_per_epoch"]
    # By the observations and actions of the sequence: by its own ones a game is easier or harder to learn.
    env = ["--data.tasks=null", f"--data.env={arm.partition(':')[2]}", f"--data.spaces_of={json.dumps(tasks())}"]
    env += ["--data.curriculum.task_conditioning=none"]
    return [*env, f"--trainer.max_epochs={epochs}", *ARMS["fine_tuning"]]


def name_of(arm: str, seed: int | str) -> str:
    """Return the name of a run."""
    return f"{arm.replace(':', '_').replace('/', '-')}_seed{seed}"


def measure(cell: Cell, options: Options) -> Row:
    """Train one arm, or continue where it was stopped; keep the files that the report reads."""
    root, name, seed = Path("runs") / "continual", cell["name"], cell["seed"]  # relative: the configuration is kept
    words = ["fit", f"--config={CONFIG.relative_to(ROOT)}", f"--name={name}"]
    words += [f"--trainer.default_root_dir={root}"]
    words += [f"--seed_everything={seed}", "--trainer.enable_progress_bar=false"]
    words += [*options_of(cell["arm"]), *options.more]
    stopped = (ROOT / root / name).glob("version_*/checkpoints/last.ckpt")
    again = ["--ckpt_path=last"] if any(stopped) else []
    command = [sys.executable, str(ROOT / "cli.py"), *words, *again]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    newest = max((ROOT / root / name).glob("version_*/metrics.npy"), key=lambda path: path.stat().st_mtime)
    folder = options.output / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.yaml", "metrics.npy"):
        shutil.copy(newest.parent / file, folder / file)
    scores = np.load(newest, allow_pickle=False)[-1]
    columns = [column for column in scores.dtype.names or () if column.endswith("return_mean")]
    return {"scores": {column: round(float(scores[column]), 2) for column in columns}}


def random_score(task: str) -> float:
    """Return the mean score of uniformly random play, with the actions of the sequence."""
    config = yaml.safe_load(CONFIG.read_text())["data"] | {"seed": 0}
    config |= {"tasks": None, "env": task, "spaces_of": config["tasks"]}
    data = ReplayDataModule(**config)
    generator = torch.Generator().manual_seed(0)
    games = data.games("test", RANDOM_GAMES).play(
        lambda observations: torch.randint(data.num_actions, (len(observations),), generator=generator)
    )
    return float(np.mean([game.score for game in games]))


def references(folder: Path, command: str) -> list[str]:
    """Return the report's options for scores 0 and 1, or none before all games have been learned alone.

    `references.json` has both scores, for other runs. The report itself takes score 1 from the single-task runs, so
    that its intervals know their spread.
    """
    pairs: dict[str, list[float]] = {}
    for task in tasks():
        files = (folder / "runs").glob(f"{name_of(f'single:{task}', '*')}/origin.json")
        alone = [json.loads(file.read_text())["scores"]["return_mean"] for file in files]
        if not alone:
            return []
        pairs[task_name(task)] = [random_score(task), float(np.mean(alone))]
    file = folder / "references.json"
    write_json(file, {**pairs, "random_games": RANDOM_GAMES, **origin(command)})
    random = folder / "random_scores.json"
    write_json(random, {task: [low, None] for task, (low, _) in pairs.items()})
    return ["--references", str(random), "--normalise", "reference"]


def report(options: Options, results: Results) -> None:
    """Write table, curves and heat map of all finished runs. The report itself names missing references."""
    folder = options.output.resolve()
    where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    finished = sorted(path.parent for path in (ROOT / where / "runs").glob("*/origin.json"))
    if not finished:
        return
    words = [str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path) for path in finished]
    words += references(ROOT / where, results.source["command"])
    words = [word.removeprefix(f"{ROOT}/") for word in words]
    subprocess.run([sys.executable, "-m", "bayes_rl", "report", *words, "--output", str(where)], cwd=ROOT)


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return all runs, seed by seed: the sequence by every method, then every game alone."""
    arms = [arm for arm in options.arms if arm != "single"]
    arms += [f"single:{env}" for env in tasks() if "single" in options.arms]
    return [{"arm": arm, "seed": seed, "name": name_of(arm, seed)} for seed in options.seeds for arm in arms]


def table(rows: list[Row]) -> str:
    """Return the last scores of all finished runs as Markdown."""
    return markdown([{"arm": row["arm"], "seed": row["seed"], **row["scores"]} for row in rows])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arms and the seeds."""
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "single"], choices=[*ARMS, "single"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    finish=report,
    add_arguments=add_arguments,
    shared={"jobs": 2},
    files="runs/{name}/origin.json",
    accepts_more=True,
    child=True,
    show_output=True,
)
