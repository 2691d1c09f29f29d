"""How much of the bare emulator's speed is left after bookkeeping and replay writes.

    python benchmarks/env_throughput.py [--game breakout] [--num_envs 8] [--steps 250] [--rounds 100]

Bare `AtariVectorEnv.step` and this project's step layer (act at random, step, store in a memory-mapped replay, reset)
take short turns in one process, so that a machine whose speed drifts slows both; the ratio of the whole times, the
median over rounds and its quartiles are printed and written to `docs/results/env_throughput.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from common import origin, write
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


def layer(game: str, num_envs: int, directory: Path) -> Callable[[], None]:
    """One step of the stream without learning: actions, emulation, bookkeeping, replay write, resets."""
    envs = make_envs(EnvSettings(game), num_envs)
    replay = ReplayBuffer(50_000, num_envs, envs.screen_shape, envs.screen_dtype, directory=directory)
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
    parser.add_argument("--steps", type=int, default=250, help="vector steps per turn")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each")
    parser.add_argument("--output", type=Path, default=Path("docs/results/env_throughput.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        contenders = {
            "bare": bare(options.game, options.num_envs),
            "layer": layer(options.game, options.num_envs, Path(directory)),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for step in contenders.values():
            seconds(step, options.steps)  # warm up
        for round in range(options.rounds):
            for name in sorted(contenders, reverse=round % 2 == 1):  # each goes first in every other round
                times[name].append(seconds(contenders[name], options.steps))
    ratios = [theirs / ours for theirs, ours in zip(times["bare"], times["layer"], strict=True)]
    total = {name: sum(values) for name, values in times.items()}
    result = {
        **origin(" ".join(["python", *sys.argv])),
        "game": options.game,
        "num_envs": options.num_envs,
        "rounds": options.rounds,
        "steps": options.steps,
        "bare_agent_steps_per_second": options.num_envs * options.steps * options.rounds / total["bare"],
        "layer_agent_steps_per_second": options.num_envs * options.steps * options.rounds / total["layer"],
        "ratio": total["bare"] / total["layer"],
        "ratio_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75))],
        "ale_py": ale_py.__version__,
    }
    write(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
