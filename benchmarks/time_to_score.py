"""What Breakout agents have learned after as many minutes: Stable-Baselines3's DQN beside `configs/quickstart.yaml`.

    pip install --constraint constraints.txt --editable '.[minatar,bench]'
    python cli.py fit --config configs/quickstart.yaml                      # about a quarter of an hour
    python benchmarks/time_to_score.py ours runs/quickstart/version_0
    python benchmarks/time_to_score.py sb3 --steps_per_update 4 --minutes 15
    python benchmarks/time_to_score.py sb3 --steps_per_update 16 --minutes 15

Each call adds a run to `docs/results/time_to_score.json`, in place of one of the same kind and seed, and draws
`docs/results/time_to_score.png`: the mean raw score of the last 100 training games, which still explore, against
minutes. Then 20 whole greedy games are played with sticky actions (0.25). Run things at the same time that are to be
compared, on as many threads (`OMP_NUM_THREADS=1`).

Stable-Baselines3 has the Atari settings of its zoo (batch 32, step size 1e-4, targets copied every 1000 steps, a replay
of 100 000), 16 environments, its fastest number here, and short schedules instead of its zoo's for ten million steps:
learning starts after 5 000 of them, epsilon falls to 0.02 over `--epsilon_frames`. Its minutes are those of training;
ours are those of the whole fit until its last update, validation games included. The quickstart was tuned for this game
and length and Stable-Baselines3 was not: it is a comparison of what one gets, not of what could be had.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from common import RESULTS, origin, write

GAME, STICKY, GAMES, PREFILL, SKIP, ENVS = "ALE/Breakout-v5", 0.25, 20, 5_000, 4, 16


def sb3(options: argparse.Namespace) -> dict[str, Any]:
    """Train Stable-Baselines3's DQN for so many minutes, then play."""
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
            self.began, self.next = time.perf_counter(), 0.0

        def _on_step(self) -> bool:
            minutes = (time.perf_counter() - self.began) / 60
            if minutes >= self.next and self.model.ep_info_buffer:
                mean = statistics.mean(game["r"] for game in self.model.ep_info_buffer)
                self.curve.append((round(minutes, 3), SKIP * self.num_timesteps, round(mean, 3)))
                self.next = minutes + 0.2
            return minutes < options.minutes

    total = 10**7
    with tempfile.TemporaryDirectory() as folder:
        model = DQN(
            "CnnPolicy",
            environments(ENVS, options.seed),
            learning_rate=1e-4,
            buffer_size=100_000,
            learning_starts=PREFILL,
            batch_size=32,
            train_freq=(max(1, options.steps_per_update // ENVS), "step"),
            gradient_steps=max(1, ENVS // options.steps_per_update),
            target_update_interval=1000,
            exploration_fraction=options.epsilon_frames / SKIP / total,
            exploration_final_eps=0.02,
            tensorboard_log=folder,
            seed=options.seed,
            device="cpu",
        )
        watch = Watch()
        model.learn(total, watch)
    # Full games, of which an episode is one life; a lost one is followed by FIRE.
    scores, _ = evaluate_policy(model, environments(1, 1000 + options.seed), GAMES, return_episode_rewards=True)
    what = {"arm": "sb3", "steps_per_update": options.steps_per_update, "epsilon_frames": options.epsilon_frames}
    return what | {"minutes": watch.curve[-1][0], "curve": watch.curve, "test": summary(cast(list[float], scores))}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Read a finished fit."""
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = [EventAccumulator(str(path)).Reload() for path in sorted(options.run.glob("events.out.tfevents.*"))]
    train = next(f for f in files if "train/return_mean" in f.Tags()["scalars"]).Scalars("train/return_mean")
    test = next(f for f in files if "test/return_mean" in f.Tags()["scalars"])
    began = files[0].FirstEventTimestamp()
    keys = {"mean": "return_mean", "median": "return_median", "min": "return_min", "max": "return_max"}
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    what = {"arm": "bayes_rl", "steps_per_update": round(1 / config["data"]["updates_per_step"])}
    curve = [(round((x.wall_time - began) / 60, 3), round(x.step), round(x.value, 3)) for x in train]
    scores = {key: test.Scalars(f"test/{tag}")[-1].value for key, tag in keys.items()} | {"games": GAMES}
    seed = {"seed": config["seed_everything"], "epsilon_frames": config["data"]["epsilon_decay_frames"]}
    return what | seed | {"minutes": curve[-1][0], "curve": curve[:: max(1, len(curve) // 100)], "test": scores}


def summary(scores: list[float]) -> dict[str, float]:
    """Of the games of a test."""
    known = {"mean": statistics.mean(scores), "median": statistics.median(scores)}
    return known | {"min": min(scores), "max": max(scores), "games": len(scores)}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Scores against minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"bayes_rl": "bayes_rl, quickstart", "sb3": "Stable-Baselines3 DQN"}
    styles = {("bayes_rl", 16): "tab:blue", ("sb3", 4): "tab:orange", ("sb3", 16): "tab:brown"}
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    seen = set()
    for run in runs:
        kind = run["arm"], run["steps_per_update"]
        label = f"{names[kind[0]]}, an update per {kind[1]} steps"
        minutes, _, scores = zip(*run["curve"], strict=True)
        colour = styles.get(kind, "tab:gray")
        axis.plot(minutes, scores, color=colour, label=None if label in seen else label)
        axis.plot(minutes[-1], run["test"]["mean"], "o", color=colour)
        seen.add(label)
    axis.set(xlabel="minutes on one thread of two cores", ylabel="score of training games (dots: greedy games)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=("ours", "sb3"))
    parser.add_argument("run", type=Path, nargs="?", help="of ours: directory of a finished fit")
    parser.add_argument("--steps_per_update", type=int, default=4, help="of sb3: agent steps between updates")
    parser.add_argument("--epsilon_frames", type=int, default=100_000, help="of sb3: frames until epsilon is 0.02")
    parser.add_argument("--minutes", type=float, default=15, help="of sb3: minutes of training")
    parser.add_argument("--seed", type=int, default=1, help="of sb3")
    parser.add_argument("--output", type=Path, default=RESULTS / "time_to_score.json")
    options = parser.parse_args()
    if options.arm == "ours" and options.run is None:
        parser.error("ours needs the directory of a finished fit")
    return options


def main() -> None:
    options = parse()
    source = origin(" ".join(["python", *sys.argv])) | {"threads": torch.get_num_threads()}
    run = source | {"seed": options.seed} | (sb3 if options.arm == "sb3" else ours)(options)
    kind = ("arm", "steps_per_update", "seed")
    runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else []  # read as late as possible
    runs = [other for other in runs if [other[k] for k in kind] != [run[k] for k in kind]] + [run]
    runs.sort(key=lambda run: [run[k] for k in kind])
    write(options.output, {"runs": runs})
    draw(runs, options.output.with_suffix(".png"))
    frames = run["curve"][-1][1]
    print(f"{run['arm']}: {run['test']['mean']:.2f} after {run['minutes']:.1f} minutes and {frames:,} frames")


if __name__ == "__main__":
    main()
