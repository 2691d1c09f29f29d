"""Tasks, arms and searched settings of the sparse-reward suite. Whoever changes the suite changes these tables.

Options have the names of the command line. They change the configuration file of the task, in the order: task, agent of
the task, arm, searched setting, options that are fixed for the arm whatever the search says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from bayes_rl.errors import ConfigError, did_you_mean
from bayes_rl.utils.settings import nested
from benchmarks.runner import ROOT

OptionValues = Mapping[str, Any]


class Share(float):
    """Value of an option as a share of the task's budget of frames."""


# Ten members with prior functions. Their draws bootstrap from themselves: the uncertainty of a state includes that of
# the states that follow, which a Gaussian process leaves out.
MEMBERS: OptionValues = {
    "model.exploration": "thompson",
    "model.network.bayesian": "heads",
    "model.network.prior_function_scale": 1,
    "model.posterior.family": "members",
    "model.posterior.size": 10,
    "model.objective.bootstrap": "greedy",
}

# Of ten members with exact values, one run in five never finds the treasure of DeepSea 100; of twenty, all find it
# (`docs/results/exact_members.md`). The replay holds the whole run. From a replay of that size a new transition would
# be drawn once in many episodes, so half of a minibatch is new.
MANY_MEMBERS: OptionValues = {
    **MEMBERS,
    "model.posterior.size": 20,
    "model.optimizer.critic_lr": 0.001,
    "data.replay.capacity": 1_000_000,
    "data.replay.newest_share": 0.5,
    "data.replay.newest": 2_000,
}


# -------------------------------------------------------------------------------------------------------------- tasks
@dataclass(frozen=True)
class Task:
    """Task of the suite.

    Args:
        config: file of `configs/` to start from.
        options: changes of the file.
        frames: budget in environment frames.
        success_above: an episode succeeds if its raw return is greater.
        solved_at: the task is solved when the mean of `measure` over `window` training episodes reaches this number.
        window: episodes of the moving mean.
        frames_per_second: of training the default agent on one core of a Xeon, to estimate the minutes of a run.
        measure: `success` (the curve is the share of successful episodes) or `return`.
        seeds: seeds of the comparison.
        agent: changes of the file that make the agent which the suite tests; none where the file has that agent.
        like: cheaper task whose search chooses the settings if this task has no complete search; "" for none.
    """

    config: str
    options: OptionValues
    frames: int
    success_above: float
    solved_at: float
    window: int
    frames_per_second: float
    measure: str = "success"
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    agent: OptionValues = field(default_factory=dict)
    like: str = ""

    def score(self, episode_return: float) -> float:
        """Return what the training curve averages: 1 or 0 for success, or the raw return."""
        return float(episode_return > self.success_above) if self.measure == "success" else episode_return


FEW_SEEDS = (1, 2, 3)


def deep_sea(
    size: int, episodes: int, frames_per_second: float = 230, agent: OptionValues = MEMBERS, **more: Any
) -> Task:
    """Return DeepSea of a size. Solved: less than 10 % regret over the last 100 episodes."""
    options = {"data.env_kwargs": {"size": size, "one_hot": False}}
    return Task("deep_sea", options, size * episodes, 0.5, 0.9, 100, frames_per_second, agent=agent, **more)


def minigrid(game: str, frames: int, frames_per_second: float, like: str = "") -> Task:
    """Return a game of MiniGrid, whose return is 0 unless the goal is reached."""
    options = {"data.env": f"MiniGrid-{game}-v0"}
    return Task("minigrid", options, frames, 0, 0.9, 50, frames_per_second, like=like)


TASKS: dict[str, Task] = {
    "deep_sea_10": deep_sea(10, 500),
    "deep_sea_20": deep_sea(20, 1_000),
    "deep_sea_30": deep_sea(30, 2_000, like="deep_sea_20"),
    "deep_sea_50": deep_sea(50, 5_000, seeds=FEW_SEEDS, like="deep_sea_20"),
    "deep_sea_100": deep_sea(100, 5_000, 180, MANY_MEMBERS, seeds=FEW_SEEDS, like="deep_sea_20"),
    "door_key": minigrid("DoorKey-6x6", 100_000, 320),
    "multi_room": minigrid("MultiRoom-N2-S4", 100_000, 320, "door_key"),
    "key_corridor": minigrid("KeyCorridorS3R1", 100_000, 320, "door_key"),
    # A return of -200 is that of an episode which ends at the limit of 200 steps.
    "mountain_car": Task("cartpole", {"data.env": "MountainCar-v0"}, 100_000, -200, 0.9, 50, 420, agent=MEMBERS),
    "minatar_freeway": Task("minatar", {"data.env": "MinAtar/Freeway-v1"}, 200_000, 0, 20, 20, 340, "return"),
    "minatar_seaquest": Task(
        "minatar", {"data.env": "MinAtar/Seaquest-v1"}, 200_000, 0, 10, 50, 330, "return", like="minatar_freeway"
    ),
    "atari_freeway": Task(
        "quickstart", {"data.env": "freeway"}, 1_000_000, 0, 20, 16, 900, "return", FEW_SEEDS, like="minatar_freeway"
    ),
}


def find_task(name: str) -> Task:
    """Return a task of the suite, or DeepSea of another size, `deep_sea_N`, for 50 N episodes.

    Raises:
        ConfigError: if there is no task of this name.
    """
    if name in TASKS:
        return TASKS[name]
    size = name.removeprefix("deep_sea_")
    if not size.isdecimal() or int(size) < 2:
        names = [*TASKS, *ARMS]
        raise ConfigError("only", name, f"is no task or arm{did_you_mean(name, names)}; there are {', '.join(names)}")
    return deep_sea(int(size), 50 * int(size))


# --------------------------------------------------------------------------------------------------------------- arms
@dataclass(frozen=True)
class Arm:
    """Agent of the comparison.

    Args:
        options: changes of the agent that the suite tests.
        searched: arm of `GRIDS` whose search chooses the setting of this arm; "" for none.
        has_members: whether the arm has members where the suite's agent has a Gaussian process.
        fixed: options that hold whatever the search has chosen.
        tasks: names of the tasks that the arm learns; all of them by default.
        library: `bayes_rl`, or the class of Stable-Baselines3 or sb3-contrib.
        slowness: time of a run relative to that of the default agent, to estimate the minutes of a run.
    """

    options: OptionValues
    searched: str = ""
    has_members: bool = False
    fixed: OptionValues = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    library: str = "bayes_rl"
    slowness: float = 1.0

    def learns(self, task: str) -> bool:
        """Return whether the arm learns a task."""
        return not self.tasks or task in self.tasks


PRIOR_SCALE = "model.network.prior_function_scale"
NO_PRIOR: OptionValues = {PRIOR_SCALE: 0}

# One task of each family of environments on which a run takes minutes: a chain that defeats dithering, a physical
# system, a grid seen in part, and a game on planes.
OTHER_LIBRARIES = ("deep_sea_20", "mountain_car", "door_key", "minatar_freeway")

# Members act by draws alone, to the end: with a share of 0 nothing would explore.
ALWAYS_DRAWS: OptionValues = {"data.draws.end": 1, "data.draws.decay_frames": 0}

ARMS: dict[str, Arm] = {
    "default": Arm({}, "default"),
    "epsilon": Arm(
        {
            **NO_PRIOR,
            "model.exploration": "epsilon",
            "model.network.bayesian": "none",
            "model.posterior.family": "mean_field",
            "data.epsilon.start": 1,
        },
        "epsilon",
        slowness=0.5,
    ),
    "ensemble": Arm(
        {},
        "default",
        True,
        # The standard deviation of a weight within a member is exp(-10).
        {
            **ALWAYS_DRAWS,
            "model.objective.kl_temperature": 0,
            "model.posterior.init_log_var": -20,
            "model.posterior.log_var_limit": 20,
        },
    ),
    "no_prior": Arm(NO_PRIOR, has_members=True),
    "mean_field": Arm({**NO_PRIOR, "model.posterior.family": "mean_field"}, has_members=True),
    # From 2 (MiniGrid) to 5 (DeepSea).
    "all_bayesian": Arm({}, "default", True, {**ALWAYS_DRAWS, "model.network.bayesian": "all"}, slowness=4),
    "sb3_dqn": Arm({}, "sb3_dqn", tasks=OTHER_LIBRARIES, library="DQN"),
    "sb3_qrdqn": Arm({}, "sb3_qrdqn", tasks=OTHER_LIBRARIES, library="QRDQN"),
}

# ----------------------------------------------------------------------------------------------------------- settings
_SB3_GRID: dict[str, OptionValues] = {
    f"decay{100 * share:g}_end{100 * end:g}": {"exploration_fraction": share, "exploration_final_eps": end}
    for share in (0.05, 0.5)
    for end in (0.01, 0.1)
}

# Beside the draws, for half of the budget, and none in the end.
RANDOM_ACTIONS: OptionValues = {
    "model.exploration": "both",
    "data.epsilon.start": 1,
    "data.epsilon.decay_frames": Share(0.5),
    "data.epsilon.end": 0,
}

GRIDS: dict[str, dict[str, OptionValues]] = {
    "default": {
        **{f"prior{scale}": {PRIOR_SCALE: scale} for scale in (3, 1, 10)},
        "prior3_random50": {PRIOR_SCALE: 3, **RANDOM_ACTIONS},
    },
    # The share of episodes that are played by draws falls to 0, as epsilon falls. Draws find the reward; the episodes
    # after that are played by what was learned.
    "process": {
        f"draws{100 * share:g}_decay{100 * random:g}": {
            "data.draws.end": 0,
            "data.draws.decay_frames": Share(share),
            "data.epsilon.decay_frames": Share(random),
            "data.epsilon.end": 0.01,
        }
        for share in (0.3, 0.1)
        for random in (0.05, 0.5)
    },
    "epsilon": {
        f"decay{100 * share:g}_end{100 * end:g}": {
            "data.epsilon.decay_frames": Share(share),
            "data.epsilon.end": end,
        }
        for share in (0.05, 0.5)
        for end in (0.01, 0.1)
    },
    "sb3_dqn": _SB3_GRID,
    "sb3_qrdqn": _SB3_GRID,
}
"""Settings of every searched arm, equally many for each. The first one is used where no search chooses. Those of the
default arm are `default` on tasks with members and `process` on the others; see `grid_of`."""


def grid_of(task: Task, arm: str) -> Mapping[str, OptionValues]:
    """Return the settings of a searched arm on a task, by name."""
    has_members = task.agent.get("model.posterior.family") == "members"
    return GRIDS["process"] if arm == "default" and not has_members else GRIDS[arm]


def options_of(task: Task, arm: Arm, setting: str) -> dict[str, Any]:
    """Return all changes of a task's configuration file, or the arguments of another library's agent.

    Args:
        task: what is learned.
        arm: by which agent.
        setting: name in the grid of the arm; "" for an arm without a search.
    """
    chosen = grid_of(task, arm.searched)[setting] if arm.searched else {}
    if arm.library != "bayes_rl":
        return _values(chosen, task.frames)
    members = MEMBERS if arm.has_members else {}
    return {**task.options, **members, **task.agent, **arm.options, **_values(chosen, task.frames), **arm.fixed}


def _values(setting: OptionValues, frames: int) -> dict[str, Any]:
    """Return a setting with numbers for shares of `frames`."""
    return {key: round(value * frames) if isinstance(value, Share) else value for key, value in setting.items()}


def configuration(task: Task, options: OptionValues) -> dict[str, Any]:
    """Return the configuration file of a task with changed options."""
    return nested(options, yaml.safe_load((ROOT / "configs" / f"{task.config}.yaml").read_text()))
