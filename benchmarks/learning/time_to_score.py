"""Breakout scores after equally many minutes: Stable-Baselines3's DQN beside `configs/quickstart.yaml`.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python cli.py fit --config configs/quickstart.yaml                      # about a quarter of an hour
    python -m benchmarks time_to_score ours runs/quickstart/version_0 --commit 1a2b3c4
    python -m benchmarks time_to_score sb3 --minutes 15
    python -m benchmarks time_to_score sb3 --minutes 15 --steps_per_update 16 --epsilon_frames 200000

Each call adds a run to `docs/results/time_to_score.json`, in place of one of the same kind and seed, and draws
`docs/results/time_to_score.png`: the mean raw score of the last 100 training games, which still explore, against
minutes; and that of 20 whole greedy games by the final weights, with sticky actions (0.25). Ours are those of the last
validation, where a game ends after 5 000 frames without a reward.

Compared runs need the same share of the machine. Ours has threads for the emulation besides those of torch;
Stable-Baselines3, stepping environments one after the other, has none. So run two at a time on two cores, each with
`OMP_NUM_THREADS=1`: on average each of them has a core.

Stable-Baselines3 has batches of 32, a step size of 1e-4, a replay of 100 000, targets copied every 1000 agent steps (as
its zoo has it for Atari, from memory), 16 environments, and short schedules: learning starts after 5 000 steps, epsilon
falls to 0.02 within `--epsilon_frames`, from the first step on (ours: from the first update on). Its features are 512,
the quickstart's 256. Its minutes are those of training; ours are those of the fit until its last update, validations
included. The quickstart was tuned for this game and length and Stable-Baselines3 was not: the
figures compare defaults, not the best that either could reach.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from matplotlib.figure import Figure

from benchmarks.runner import Benchmark, Cell, Options, Results, Row, markdown
from benchmarks.speed.contenders import sb3_schedule

GAME, STICKY, GAMES, PREFILL, SKIP, ENVS = "ALE/Breakout-v5", 0.25, 20, 5_000, 4, 16
TRAIN, TAGS = "train/return_mean", tuple(f"val/return_{what}" for what in ("mean", "median", "min", "max"))


def sb3(options: Options) -> Row:
    """Train Stable-Baselines3's DQN for `options.minutes` minutes, then play."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecFrameStack

    def environments(count: int, seed: int) -> VecFrameStack:
        sticky = {"frameskip": 1, "repeat_action_probability": STICKY}
        return VecFrameStack(make_atari_env(GAME, count, seed, env_kwargs=sticky, wrapper_kwargs={"noop_max": 0}), 4)

    class Watch(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.curve: list[tuple[float, int, float]] = []
            self.began, self.next, self.minutes = time.perf_counter(), 0.0, 0.0

        def _on_step(self) -> bool:
            self.minutes = (time.perf_counter() - self.began) / 60
            if self.minutes >= self.next and self.model.ep_info_buffer:
                mean = statistics.mean(game["r"] for game in self.model.ep_info_buffer)
                self.curve.append((round(self.minutes, 3), SKIP * self.num_timesteps, round(mean, 3)))
                self.next = self.minutes + 0.2
            return self.minutes < options.minutes

    total = 10**7
    with tempfile.TemporaryDirectory() as folder:
        model = DQN(
            "CnnPolicy",
            environments(ENVS, options.seed),
            learning_rate=1e-4,
            buffer_size=100_000,
            learning_starts=PREFILL,
            batch_size=32,
            **sb3_schedule(options.steps_per_update, ENVS),
            target_update_interval=1000,
            exploration_fraction=options.epsilon_frames / SKIP / total,
            exploration_final_eps=0.02,
            tensorboard_log=folder,
            seed=options.seed,
            device="cpu",
        )
        watch = Watch()
        model.learn(total, watch)
    # Full games: an episode is one life, and FIRE follows a lost life.
    scores, _ = evaluate_policy(model, environments(1, 1000 + options.seed), GAMES, return_episode_rewards=True)
    what = {"arm": "sb3", "steps_per_update": options.steps_per_update, "epsilon_frames": options.epsilon_frames}
    return what | {"minutes": round(watch.minutes, 3), "curve": watch.curve, "test": summary(cast(list[float], scores))}


def ours(options: Options) -> Row:
    """Read a finished fit of this library."""
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = yaml.safe_load((options.run / "config.yaml").read_text())
    data = config["data"]
    files = [EventAccumulator(str(path)).Reload() for path in sorted(options.run.glob("events.out.tfevents.*"))]
    found = {tag: [x for f in files if tag in f.Tags()["scalars"] for x in f.Scalars(tag)] for tag in (TRAIN, *TAGS)}
    if data["env"] != "breakout" or not all(found.values()):
        sys.exit(f"{options.run} is no finished fit of breakout with games played in training and validation")
    began = files[0].FirstEventTimestamp()
    curve = [(round((x.wall_time - began) / 60, 3), round(x.step), round(x.value, 3)) for x in found[TRAIN]]
    scores = {tag.removeprefix("val/return_"): found[tag][-1].value for tag in TAGS} | {
        "games": data["evaluation"]["games"]
    }
    what = {"arm": "bayes_rl", "steps_per_update": round(1 / data["updates_per_step"])}
    what |= {"seed": config["seed_everything"], "epsilon_frames": data["epsilon"]["decay_frames"]}
    thinned = curve[:: -max(1, len(curve) // 100)][::-1]  # keeps the last point
    return what | {"commit": options.commit, "minutes": curve[-1][0], "curve": thinned, "test": scores}


def summary(scores: list[float]) -> dict[str, float]:
    """Return statistics of the games of a test."""
    known = {"mean": statistics.mean(scores), "median": statistics.median(scores)}
    return known | {"min": min(scores), "max": max(scores), "games": len(scores)}


def draw(runs: list[Row]) -> Figure:
    """Draw scores against minutes."""
    names = {"bayes_rl": "bayes_rl, quickstart", "sb3": "Stable-Baselines3 DQN"}
    styles = {("bayes_rl", 16): "tab:blue", ("sb3", 4): "tab:orange", ("sb3", 16): "tab:brown"}
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    seen = set()
    for run in runs:
        kind = run["arm"], run["steps_per_update"]
        label = f"{names[kind[0]]}, an update per {kind[1]} agent steps"
        minutes, _, scores = zip(*run["curve"], strict=True)
        colour = styles.get(kind, "tab:gray")
        axis.plot(minutes, scores, color=colour, label=None if label in seen else label)
        axis.plot(run["minutes"], run["test"]["mean"], "o", color=colour)
        seen.add(label)
    axis.set(xlabel="minutes, two runs at a time on two cores", ylabel="score of training games (dots: greedy games)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return the one run that the command line names."""
    return [{"arm": "bayes_rl" if options.arm == "ours" else "sb3", "seed": options.seed}]


def measure(cell: Cell, options: Options) -> Row:
    """Train Stable-Baselines3, or read a finished fit of this library."""
    return sb3(options) if options.arm == "sb3" else ours(options)


def table(runs: list[Row]) -> str:
    """Return the scores of the greedy games after the last minute as Markdown."""
    shown = ("arm", "steps_per_update", "epsilon_frames", "seed", "minutes")
    rows = [{key: run[key] for key in shown} | {"frames": run["curve"][-1][1], **run["test"]} for run in runs]
    return markdown(rows)


def prepare(options: Options) -> None:
    """Exit unless the directory of a finished fit is given where one is needed."""
    if options.arm == "ours" and options.run is None:
        sys.exit("ours needs the directory of a finished fit")


def report(options: Options, results: Results) -> None:
    """Print the score of the run that was added."""
    arm = "bayes_rl" if options.arm == "ours" else "sb3"
    run = next(run for run in reversed(results.added) if run["arm"] == arm)
    frames = run["curve"][-1][1]
    print(f"{run['arm']}: {run['test']['mean']:.2f} after {run['minutes']:.1f} minutes and {frames:,} frames")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the library, the finished fit and the schedule of Stable-Baselines3."""
    parser.add_argument("arm", choices=("ours", "sb3"))
    parser.add_argument("run", type=Path, nargs="?", help="of ours: directory of a finished fit")
    parser.add_argument("--commit", default="", help="of ours: commit that the fit was of")
    parser.add_argument("--steps_per_update", type=int, default=4, help="of sb3: agent steps between updates")
    parser.add_argument("--epsilon_frames", type=int, default=100_000, help="of sb3: frames until epsilon is 0.02")
    parser.add_argument("--minutes", type=float, default=15, help="of sb3: minutes of training")
    parser.add_argument("--seed", type=int, default=1, help="of sb3")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    prepare=prepare,
    finish=report,
    add_arguments=add_arguments,
    key=("arm", "steps_per_update", "epsilon_frames", "seed"),
)
