"""How much of the bare emulator's speed is left after bookkeeping and replay writes.

    python benchmarks/env_throughput.py [--game breakout] [--num_envs 8] [--steps 1000] [--rounds 7]

Bare `AtariVectorEnv.step` and this project's step layer (act at random, step, store, reset by seed) take turns in
one process; the ratio of each round and the median are printed and written to `docs/results/env_throughput.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from torch import Tensor

from bayes_rl.envs import EnvSettings, make_envs
from bayes_rl.replay import ReplayBuffer
from bayes_rl.stream import EpsilonSchedule, ReplayStream


def no_policy(observations: Tensor) -> Tensor:
    """Never called: exploration is certain."""
    raise AssertionError("the benchmark acts at random")


def bare(game: str, num_envs: int) -> Callable[[], None]:
    """One step of the library's vector environment, with the settings that the step layer gives it."""
    envs = AtariVectorEnv(
        game, num_envs, repeat_action_probability=0.25, stack_num=1, noop_max=0, reward_clipping=False,
        use_fire_reset=False,
    )  # fmt: skip
    envs.reset(seed=0)
    rng, actions = np.random.default_rng(0), len(envs.ale.get_action_set())
    return lambda: envs.step(rng.integers(0, actions, num_envs)) and None


def layer(game: str, num_envs: int) -> Callable[[], None]:
    """One step of the stream without learning: actions, emulation, bookkeeping, replay write, seeded resets."""
    envs = make_envs(EnvSettings(game), num_envs)
    replay = ReplayBuffer(50_000, num_envs, envs.screen_shape, envs.screen_dtype)
    epsilon = EpsilonSchedule(1.0, 1.0, 0)
    stream = ReplayStream(
        envs, replay, no_policy, epsilon,
        batch_size=32, updates_per_step=1, batches_per_epoch=1, min_replay_size=1, frame_skip=4, seed=0,
    )  # fmt: skip
    return stream.step_environments


def seconds(step: Callable[[], None], steps: int) -> float:
    """Wall-clock of `steps` calls."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="breakout", help="short name of an Atari game")
    parser.add_argument("--num_envs", type=int, default=8, help="environments stepped together")
    parser.add_argument("--steps", type=int, default=1000, help="vector steps per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turn")
    parser.add_argument("--output", type=Path, default=Path("docs/results/env_throughput.json"))
    options = parser.parse_args()
    contenders = {"bare": bare(options.game, options.num_envs), "layer": layer(options.game, options.num_envs)}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        seconds(step, options.steps // 4)  # warm up
    for _ in range(options.rounds):
        for name, step in contenders.items():
            rates[name].append(options.num_envs * options.steps / seconds(step, options.steps))
    ratios = [ours / theirs for ours, theirs in zip(rates["layer"], rates["bare"], strict=True)]
    result = {
        "game": options.game,
        "num_envs": options.num_envs,
        "bare_agent_steps_per_second": statistics.median(rates["bare"]),
        "layer_agent_steps_per_second": statistics.median(rates["layer"]),
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "ale_py": ale_py.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
