"""Speed of stepping environments: the bare emulator, this project's stream without learning, Gymnasium's wrappers.

    python -m benchmarks environments [--envs 1 2 4 8 16 32 64] [--rounds 40] [--steps 512] [--contenders ...]

All contenders act at random and play the same game with the same options, for each number of environments:

- `emulator`: `ale_py`'s `AtariVectorEnv`, which restarts ended games by itself;
- `stream`: the same by `ReplayStream`: exploration, bookkeeping, watching for failures, resets, and every step written
  to a memory-mapped replay that is full, so that new screens replace old ones;
- `filling`: the same while the replay still grows, so that the system has to find memory for each screen;
- `sync`, `async`: Gymnasium's `AtariPreprocessing` and `FrameStackObservation` in its two vector environments. They
  need OpenCV (`pip install opencv-python-headless`) and are left out where that is not installed.

The contenders take short turns of equally many agent steps in one process, in another order every round, so that a
machine whose speed drifts slows all of them equally. Results are medians and quartiles over rounds, of the speed and of
its ratio to the emulator's in the same round. A number of environments replaces its earlier row in the file; the other
rows stay. Seeded resets, one per environment in at least `steps_per_seed` steps, are too rare for such turns: they are
timed apart, and a second ratio includes them.
"""

from __future__ import annotations

import argparse
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
from matplotlib.figure import Figure
from torch import Tensor

from bayes_rl.data.exploration import EpsilonSchedule
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream
from bayes_rl.envs.atari import AtariEnvs
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from benchmarks.runner import Benchmark, Cell, Options, Row

STICKY = 0.25
STACK = 4
CONTENDERS = ["emulator", "stream", "filling", "sync", "async"]
Turn = Callable[[int], None]
"""Function that plays a number of vector steps, and waits until the last one has ended."""


def no_policy(observations: Tensor) -> Tensor:
    """Raise an error: with epsilon 1 no policy is asked."""
    raise AssertionError("the benchmark acts at random")


def play(envs: gym.vector.VectorEnv[Any, Any, Any], num_envs: int, actions: int) -> Turn:
    """Return turns of a vector environment that restarts ended games by itself."""
    rng = np.random.default_rng(0)
    envs.reset(seed=0)

    def turn(steps: int) -> None:
        for _ in range(steps):
            envs.step(rng.integers(0, actions, num_envs))

    return turn


def make_emulator(game: str, num_envs: int) -> AtariVectorEnv:
    """Return `ale_py`'s vector environment, with the settings that the stream's environments give it."""
    return AtariVectorEnv(
        game, num_envs, repeat_action_probability=STICKY, stack_num=1, noop_max=0, reward_clipping=False,
        use_fire_reset=False,
    )  # fmt: skip


@contextmanager
def emulator(game: str, num_envs: int) -> Iterator[Turn]:
    """Yield turns of the bare emulator."""
    envs = make_emulator(game, num_envs)
    yield play(envs, num_envs, len(envs.ale.get_action_set()))
    envs.close()


@contextmanager
def stream(game: str, num_envs: int, capacity: int, full: bool) -> Iterator[Turn]:
    """Yield turns of the stream without learning. No step is pending after a turn, as it would slow the next contender.

    Args:
        game: short name of an Atari game.
        num_envs: number of environments stepped together.
        capacity: transitions that the replay holds.
        full: whether the replay is filled beforehand.
    """
    envs = make_envs(EnvSettings(game, sticky_actions=STICKY), num_envs)
    with tempfile.TemporaryDirectory() as directory:
        replay = ReplayBuffer(capacity, num_envs, envs.screen_shape, envs.screen_dtype, directory=Path(directory))
        steps = ReplayStream(
            envs, replay, no_policy, EpsilonSchedule(1.0, 1.0, 0),
            batch_size=32, updates_per_step=1, batches_per_epoch=1, replay_min_size=1, frame_skip=4, seed=0,
        )  # fmt: skip

        def turn(count: int) -> None:
            for _ in range(count):
                steps.step_environments()
            steps.finish_step()

        while full and replay.stored < replay.ring * num_envs:
            turn(1)
        yield turn
        steps.envs.close()


@contextmanager
def wrapped(game: str, num_envs: int, processes: bool) -> Iterator[Turn]:
    """Yield turns of Gymnasium's own wrappers, in this process or in one for each environment."""
    name = next(i for i, spec in gym.registry.items() if i.startswith("ALE/") and spec.kwargs["game"] == game)

    def make() -> gym.Env[Any, Any]:
        env = gym.make(name, frameskip=1, repeat_action_probability=STICKY, disable_env_checker=True)
        return gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env, noop_max=0), STACK)

    envs = (gym.vector.AsyncVectorEnv if processes else gym.vector.SyncVectorEnv)([make] * num_envs)
    yield play(envs, num_envs, int(envs.single_action_space.n))  # type: ignore[attr-defined]
    envs.close()


def seeded_reset(game: str) -> float:
    """Return the seconds of one environment's reset with a new seed, while the other environments wait."""
    envs = make_emulator(game, 2)
    envs.reset(seed=0)
    seconds = []
    for seed in range(9):
        start = time.perf_counter()
        envs.reset(seed=np.array([seed]), options={"reset_mask": np.array([True, False])})
        seconds.append(time.perf_counter() - start)
    envs.close()
    return float(np.median(seconds))


def measure(cell: Cell, options: Options) -> Row:
    """Measure all contenders with one number of environments, in turns."""
    game, num_envs = options.game, cell["num_envs"]
    steps = max(options.steps // num_envs, 1)
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
            turn(steps)  # warm-up
        for number in range(options.rounds):
            order = [*turns][number % len(turns) :] + [*turns][: number % len(turns)]
            for name in order if number // len(turns) % 2 else order[::-1]:
                start = time.perf_counter()
                turns[name](steps)
                seconds[name].append(time.perf_counter() - start)
    return {
        "ale_py": ale_py.__version__,
        "gymnasium": gym.__version__,
        "game": game,
        "rounds": options.rounds,
        "vector_steps_per_turn": steps,
        **summary({name: np.array(values) for name, values in seconds.items()}, num_envs * steps, seeded_reset(game)),
    }


def summary(seconds: dict[str, np.ndarray], agent_steps: int, reset: float) -> dict[str, Any]:
    """Return the quartiles (lower, median, upper) over turns, of speeds and of ratios.

    Args:
        seconds: seconds of every turn, by contender.
        agent_steps: agent steps in a turn.
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


def cells(options: Options, rows: list[Row]) -> list[Cell]:
    """Return one cell for each number of environments."""
    return [{"num_envs": num_envs} for num_envs in options.envs]


def table(rows: list[Row]) -> str:
    """Return median agent steps per second and, in brackets, the ratio to the emulator's, as Markdown."""
    names = [name for name in CONTENDERS if any(name in speeds(row) for row in rows)]
    lines = [f"| environments | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        ratios = row["ratio_to_emulator"]
        columns = [f"{speeds(row)[n][1]:.0f} ({ratios[n][1]:.2f})" if n in ratios else "-" for n in names]
        lines.append(f"| {row['num_envs']} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def speeds(row: Row) -> dict[str, list[float]]:
    """Return the quartiles of a row's speeds, by contender."""
    return dict(row["agent_steps_per_second"])


def draw(rows: list[Row]) -> Figure:
    """Draw speeds, and their ratios to the emulator's, over the number of environments; bars are quartiles."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("agent_steps_per_second", "ratio_to_emulator"), strict=True):
        for name in (name for name in CONTENDERS if any(name in speeds(row) for row in rows)):
            counts = [row["num_envs"] for row in rows if name in row[key]]
            low, middle, high = np.array([row[key][name] for row in rows if name in row[key]]).T
            axes.errorbar(counts, middle, [middle - low, high - middle], label=name, marker="o", capsize=2)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("environments")
        axes.set_title(key.replace("_", " "))
        axes.legend()
    return figure


def prepare(options: Options) -> None:
    """Add the contenders that the ratios need, and print which ones are left out."""
    options.contenders = {*options.contenders, "emulator", "stream"}
    if not find_spec("cv2") and options.contenders & {"sync", "async"}:
        print("Gymnasium's wrappers are left out: OpenCV is not installed (pip install opencv-python-headless)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the game, the numbers of environments and the contenders."""
    parser.add_argument("--game", default="breakout", help="short name of an Atari game")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="stepped together")
    parser.add_argument("--steps", type=int, default=512, help="agent steps per turn, over all environments")
    parser.add_argument("--replay", type=int, default=20_000, help="transitions that the full replay holds")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="all by default")


BENCHMARK = Benchmark(
    description=__doc__,
    cells=cells,
    measure=measure,
    table=table,
    draw=draw,
    prepare=prepare,
    add_arguments=add_arguments,
    shared={"rounds": 40},
    key=("num_envs",),
)
