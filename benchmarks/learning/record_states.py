"""States of games for `novelty_auroc_other_game` and `novelty_auroc_unvisited`, recorded from random or scripted play.

    python -m benchmarks.learning.record_states pong breakout breakout_later minatar_breakout_later

writes `bayes_rl/evaluation/recordings/NAME.npz` for each name, and prints the scores of the games. A recording of play
at random serves agents of other games. A recording of a player that follows the ball holds states in which the score
is about twice the mean score of an agent of this game, which such an agent does not reach as a rule; the games end
there, so that the states are not those of a far better player. Frame skip, sticky actions and frame stack are those of
the bundled configurations of the game.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import bayes_rl.evaluation
from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.kinds import make_envs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.utils.files import write_atomic

PLACE = Path(bayes_rl.evaluation.__file__).parent / "recordings"
SEED = 100  # seeds from 100 on choose and prepare; seeds 1 to 5 are reported
GAMES, STEPS = 8, 3000  # games at once, and agent steps after which a game ends
NOOP, FIRE, RIGHT, LEFT = 0, 1, 2, 3  # Atari Breakout's own actions

Player = Callable[[Tensor, np.random.Generator, int], int]
"""Player that maps an observation `[C, H, W]`, a generator and the number of actions to an action."""


def play_at_random(observation: Tensor, rng: np.random.Generator, num_actions: int) -> int:
    """Return any action."""
    return int(rng.integers(num_actions))


def follow_ball_on_planes(observation: Tensor, rng: np.random.Generator, num_actions: int) -> int:
    """Return the action of MinAtar Breakout that moves the paddle to the ball's next column, or sometimes to its own.

    Either column hits the ball, in two directions.
    """
    paddle, ball, trail, _ = (plane.nonzero() for plane in observation)
    column = int(ball[0, 1])
    following = 2 * column - int(trail[0, 1])
    target = following if 0 <= following <= 9 and rng.random() < 0.7 else column
    move = target - int(paddle[0, 1])
    return 1 if move < 0 else 2 if move > 0 else 0


def follow_ball_on_screen(observation: Tensor, rng: np.random.Generator, num_actions: int) -> int:
    """Return the action of Atari Breakout that moves the paddle to where the ball will land; FIRE if none is seen."""
    between = observation[-2:, :, 4:80].float()  # the walls, on a ground of brightness 28
    before, now = ((screen[38:74] > 40).nonzero().float().mean(0) for screen in between)
    paddle = (between[-1, 76] > 60).nonzero().float().mean()
    if now.isnan().any() or paddle.isnan():
        return FIRE  # sticky actions can swallow that of `auto_fire`
    column = float(now[1])
    down, right = (now - before).tolist()
    if down > 0.5:  # the ball falls: follow its line to the paddle, reflected by the walls
        column = (column + right * (37 - float(now[0])) / down) % 150
        column = min(column, 150 - column)
    distance = column - float(paddle)  # a step moves the paddle by 6 pixels, and the paddle has 8
    return NOOP if abs(distance) < 5 else RIGHT if distance > 0 else LEFT


@dataclass(frozen=True)
class Recording:
    """Settings of one recording.

    Args:
        settings: of the game.
        frame_stack: screens of an observation.
        player: of the games.
        low: least score in a recorded state.
        high: score at which a game ends.
        states: number of states.
        every: agent steps between two states of a game.
        text: who plays, for readers of the file.
    """

    settings: EnvSettings
    frame_stack: int
    player: Player
    low: float
    high: float
    states: int
    every: int
    text: str


ATARI = {"frame_skip": 4, "sticky_actions": 0.25, "auto_fire": True}
RANDOM = "play at random"
RECORDINGS = {
    "pong": Recording(EnvSettings("pong", **ATARI), 4, play_at_random, -np.inf, np.inf, 128, 4, RANDOM),  # type: ignore[arg-type]
    "breakout": Recording(EnvSettings("breakout", **ATARI), 4, play_at_random, 0, np.inf, 128, 4, RANDOM),  # type: ignore[arg-type]
    "breakout_later": Recording(
        EnvSettings("breakout", **ATARI),  # type: ignore[arg-type]
        *(4, follow_ball_on_screen, 56, 68, 128, 4),
        text="a player that follows the ball, games ended at a score of 68; quickstart's agent scores 31",
    ),
    "minatar_breakout_later": Recording(
        EnvSettings("MinAtar/Breakout-v1", frame_skip=1, sticky_actions=0.1, max_episode_frames=10_000),
        *(1, follow_ball_on_planes, 16, 20, 128, 1),
        text="a player that follows the ball, games ended at a score of 20; the agent of minatar.yaml scores 8 to 9",
    ),
}


def play_games(recording: Recording, first_seed: int) -> tuple[list[Tensor], list[float]]:
    """Return the states of `GAMES` games that belong to a recording, and the scores at the ends of the games."""
    envs = make_envs(recording.settings, GAMES)
    stack = ObservationStack(GAMES, recording.frame_stack, envs.screen_shape, envs.screen_dtype)
    rng, everyone = np.random.default_rng(first_seed), np.ones(GAMES, bool)
    stack.begin(envs.reset(first_seed + np.arange(GAMES), everyone)[0], everyone)
    states, scores, playing = [], np.zeros(GAMES), everyone.copy()
    for steps in range(STEPS):
        observations = stack.observations()
        # The first screens of a stack are empty, which would tell it from later states.
        if steps % recording.every == 0 and steps >= recording.frame_stack:
            states += [observations[game].clone() for game in np.flatnonzero(playing & (scores >= recording.low))]
        actions = np.zeros(GAMES, np.int64)
        for game in np.flatnonzero(playing):
            actions[game] = recording.player(observations[game], rng, envs.num_actions)
        step = envs.step(actions)
        stack.push(step.screens)
        scores += np.where(playing, step.rewards, 0)
        over = step.terminated | step.truncated
        playing &= ~over & (scores < recording.high)
        if not playing.any():
            break
        if over.any():
            envs.reset(np.zeros(over.sum(), np.int64), over)  # environments are stepped together; this game counts not
    envs.close()
    return states, scores.tolist()


def record(name: str, recording: Recording) -> None:
    """Play games until there are twice as many states as a recording needs, and write a random choice of them."""
    found: dict[bytes, Tensor] = {}  # without repetitions
    scores: list[float] = []
    while len(found) < 2 * recording.states:
        played, ended = play_games(recording, SEED + len(scores))
        found |= {state.numpy().tobytes(): state for state in played}
        scores += ended
    states = list(found.values())
    chosen = np.random.default_rng(SEED).permutation(len(states))[: recording.states]
    observations = torch.stack([states[number] for number in sorted(chosen)]).numpy()
    assert observations.dtype == np.uint8
    bits = observations.max() <= 1
    content = {
        "states": np.packbits(observations) if bits else observations,
        "shape": np.array(observations.shape),
        "least_score": np.array(recording.low),
        "seed": np.array(SEED),
        "made_by": np.array(f"python -m benchmarks.learning.record_states {name}: {recording.text}"),
    }
    PLACE.mkdir(exist_ok=True)
    write_atomic(PLACE / f"{name}.npz", lambda file: np.savez_compressed(file, **content))  # type: ignore[arg-type]
    size, mean = (PLACE / f"{name}.npz").stat().st_size, np.mean(scores)
    print(f"{name}: {len(observations)} states, {size:,} bytes, {len(scores)} games, scores {mean:.1f} on average")


if __name__ == "__main__":
    for word in sys.argv[1:] or RECORDINGS:
        record(word, RECORDINGS[word])
