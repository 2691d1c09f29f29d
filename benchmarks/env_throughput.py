"""How fast environments are stepped: the bare emulator, this project's stream without learning, Gymnasium's wrappers.

    python benchmarks/env_throughput.py [--envs 1 2 4 8 16 32 64] [--rounds 40] [--steps 512] [--contenders ...]

Everybody acts at random and plays the same game with the same options, for each number of environments:

- `emulator`: `ale_py`'s `AtariVectorEnv`, which starts ended games again by itself;
- `stream`: the same by `ReplayStream`: exploration, bookkeeping, watching for failures, resets, and every step written
  to a memory-mapped replay, which is full and goes round;
- `filling`: the same while the replay still grows, so that the system has to find memory for each screen;
- `sync`, `async`: Gymnasium's `AtariPreprocessing` and `FrameStackObservation` in its two vector environments. They
  need OpenCV (`pip install opencv-python-headless`) and are left out where that is not installed.

All of them take short turns of as many agent steps each in one process, in another order every round, so that a
machine whose speed drifts slows all alike. Medians and quartiles over rounds, of the speed and of its ratio to the
emulator's in the same round, are printed, and written to `docs/results/environments.json` beside the rows of other
numbers of environments that stand there; a picture of them all is drawn next to it. Seeded resets, one per
environment in at least `steps_per_seed` steps, are too seldom for such turns: they are timed apart, and a second ratio
counts them in.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from common import RESULTS, origin, write
from matplotlib.figure import Figure
from torch import Tensor

from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.atari import AtariEnvs
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs

STICKY = 0.25
STACK = 4
CONTENDERS = ["emulator", "stream", "filling", "sync", "async"]
Turn = Callable[[int], None]  # plays so many vector steps, to their end


def no_policy(observations: Tensor) -> Tensor:
    """Never called: exploration is certain."""
    raise AssertionError("the benchmark acts at random")


def play(envs: gym.vector.VectorEnv[Any, Any, Any], num_envs: int, actions: int) -> Turn:
    """Turns of a vector environment that starts ended games again by itself."""
    rng = np.random.default_rng(0)
    envs.reset(seed=0)

    def turn(steps: int) -> None:
        for _ in range(steps):
            envs.step(rng.integers(0, actions, num_envs))

    return turn


def make_emulator(game: str, num_envs: int) -> AtariVectorEnv:
    """The library's vector environment, with the settings that the stream's environments give it."""
    return AtariVectorEnv(
        game, num_envs, repeat_action_probability=STICKY, stack_num=1, noop_max=0, reward_clipping=False,
        use_fire_reset=False,
    )  # fmt: skip


@contextmanager
def emulator(game: str, num_envs: int) -> Iterator[Turn]:
    """Turns of the bare emulator."""
    envs = make_emulator(game, num_envs)
    yield play(envs, num_envs, len(envs.ale.get_action_set()))
    envs.close()


@contextmanager
def stream(game: str, num_envs: int, capacity: int, full: bool) -> Iterator[Turn]:
    """Turns of the stream without learning; each leaves no step under way that another one would pay for.

    Args:
        game: short name of an Atari game.
        num_envs: environments stepped together.
        capacity: of the replay.
        full: whether the replay is filled beforehand.
    """
    envs = make_envs(EnvSettings(game, sticky_actions=STICKY), num_envs)
    with tempfile.TemporaryDirectory() as directory:
        replay = ReplayBuffer(capacity, num_envs, envs.screen_shape, envs.screen_dtype, directory=Path(directory))
        steps = ReplayStream(
            envs, replay, no_policy, EpsilonSchedule(1.0, 1.0, 0),
            batch_size=32, updates_per_step=1, batches_per_epoch=1, min_replay_size=1, frame_skip=4, seed=0,
        )  # fmt: skip

        def turn(count: int) -> None:
            for _ in range(count):
                steps.step_environments()
            steps.finish_step()

        while full and len(replay) < replay.ring * num_envs:
            turn(1)
        yield turn
        steps.envs.close()


@contextmanager
def wrapped(game: str, num_envs: int, processes: bool) -> Iterator[Turn]:
    """Turns of Gymnasium's own wrappers, in one process or in one for each environment."""
    name = next(i for i, spec in gym.registry.items() if i.startswith("ALE/") and spec.kwargs["game"] == game)

    def make() -> gym.Env[Any, Any]:
        env = gym.make(name, frameskip=1, repeat_action_probability=STICKY, disable_env_checker=True)
        return gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env, noop_max=0), STACK)

    envs = (gym.vector.AsyncVectorEnv if processes else gym.vector.SyncVectorEnv)([make] * num_envs)
    yield play(envs, num_envs, int(envs.single_action_space.n))  # type: ignore[attr-defined]
    envs.close()


def seeded_reset(game: str) -> float:
    """Seconds that one environment's reset with a new seed takes, while the others wait."""
    envs = make_emulator(game, 2)
    envs.reset(seed=0)
    seconds = []
    for seed in range(9):
        start = time.perf_counter()
        envs.reset(seed=np.array([seed]), options={"reset_mask": np.array([True, False])})
        seconds.append(time.perf_counter() - start)
    envs.close()
    return float(np.median(seconds))


def measure(options: argparse.Namespace, num_envs: int) -> dict[str, Any]:
    """One row: seconds of every turn of everybody, and what follows from them."""
    game, steps = options.game, max(options.steps // num_envs, 1)
    unfilled = 2 * num_envs * steps * (options.rounds + 2)
    contenders = {  # processes are forked before there are threads
        **(
            {"async": wrapped(game, num_envs, True), "sync": wrapped(game, num_envs, False)} if find_spec("cv2") else {}
        ),
        "emulator": emulator(game, num_envs),
        "stream": stream(game, num_envs, options.replay, True),
        "filling": stream(game, num_envs, unfilled, False),
    }
    with ExitStack() as stack:
        turns = {name: stack.enter_context(c) for name, c in contenders.items() if name in options.contenders}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for turn in turns.values():
            turn(steps)  # warm up
        for number in range(options.rounds):
            order = [*turns][number % len(turns) :] + [*turns][: number % len(turns)]
            for name in order if number // len(turns) % 2 else order[::-1]:
                start = time.perf_counter()
                turns[name](steps)
                seconds[name].append(time.perf_counter() - start)
    return {
        **origin(" ".join(["python", *sys.argv])),
        "ale_py": ale_py.__version__,
        "gymnasium": gym.__version__,
        "game": game,
        "num_envs": num_envs,
        "rounds": options.rounds,
        "vector_steps_per_turn": steps,
        **summary({name: np.array(values) for name, values in seconds.items()}, num_envs * steps, seeded_reset(game)),
    }


def summary(seconds: dict[str, np.ndarray], agent_steps: int, reset: float) -> dict[str, Any]:
    """Quartiles (lower, median, upper) over turns.

    Args:
        seconds: of every turn, by contender.
        agent_steps: in a turn.
        reset: seconds of a seeded reset.
    """

    def quartiles(values: np.ndarray) -> list[float]:
        return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]

    bare = seconds["emulator"]
    seeds = agent_steps / AtariEnvs.steps_per_seed * reset  # seconds per turn, at most
    return {
        "agent_steps_per_second": {name: quartiles(agent_steps / values) for name, values in seconds.items()},
        "ratio_to_emulator": {name: quartiles(bare / values) for name, values in seconds.items()},  # round by round
        "ratio_of_sums": {name: float(bare.sum() / values.sum()) for name, values in seconds.items()},
        "seeded_reset_seconds": reset,
        "stream_ratio_with_seeded_resets": quartiles(bare / (seconds["stream"] + seeds)),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Median agent steps per second and, in brackets, the ratio to the emulator's, by number of environments."""
    names = [name for name in CONTENDERS if any(name in speeds(row) for row in rows.values())]
    lines = ["environments" + "".join(f"{name:>16s}" for name in names)]
    for count, row in rows.items():
        ratios = row["ratio_to_emulator"]
        cells = [f"{speeds(row)[n][1]:.0f} ({ratios[n][1]:.2f})" if n in ratios else "-" for n in names]
        lines.append(f"{count:>12s}" + "".join(f"{cell:>16s}" for cell in cells))
    return "\n".join(lines)


def speeds(row: dict[str, Any]) -> dict[str, list[float]]:
    """Quartiles of a row's speeds, by contender."""
    found: dict[str, list[float]] = row["agent_steps_per_second"]
    return found


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Speeds, and their ratios to the emulator's, over the number of environments; bars are quartiles."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("agent_steps_per_second", "ratio_to_emulator"), strict=True):
        for name in (name for name in CONTENDERS if any(name in speeds(row) for row in rows.values())):
            counts = [int(count) for count, row in rows.items() if name in row[key]]
            low, middle, high = np.array([row[key][name] for row in rows.values() if name in row[key]]).T
            axes.errorbar(counts, middle, [middle - low, high - middle], label=name, marker="o", capsize=2)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("environments")
        axes.set_title(key.replace("_", " "))
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="breakout", help="short name of an Atari game")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="stepped together")
    parser.add_argument("--steps", type=int, default=512, help="agent steps per turn, over all environments")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each")
    parser.add_argument("--replay", type=int, default=20_000, help="transitions that the full replay holds")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="all by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "environments.json")
    options = parser.parse_args()
    options.contenders = {*options.contenders, "emulator", "stream"}
    if not find_spec("cv2") and options.contenders & {"sync", "async"}:
        print("Gymnasium's wrappers are left out: OpenCV is not installed (pip install opencv-python-headless)")
    rows = json.loads(options.output.read_text())["rows"] if options.output.is_file() else {}
    for num_envs in options.envs:
        rows = {**rows, str(num_envs): measure(options, num_envs)}
        rows = {count: rows[count] for count in sorted(rows, key=int)}
        write(options.output, {"rows": rows})
    draw(rows, options.output.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
