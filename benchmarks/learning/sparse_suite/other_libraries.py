"""DQN of Stable-Baselines3 and QR-DQN of sb3-contrib on the tasks of the suite, with their own default settings."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from bayes_rl.envs.base import EnvSettings
from bayes_rl.envs.gymnasium_envs import GymnasiumKind
from bayes_rl.envs.kinds import find_kind, resolve
from benchmarks.learning.sparse_suite.tasks import Task, configuration
from benchmarks.runner import Row

MODULES = {"DQN": "stable_baselines3", "QRDQN": "sb3_contrib"}


def is_installed(library: str) -> bool:
    """Return whether an agent of another library can be trained here; always true of this library."""
    return library == "bayes_rl" or importlib.util.find_spec(MODULES[library]) is not None


def make_env(task: Task) -> gym.Env[Any, Any]:
    """Return one environment with the rules of the task, whose observations are vectors.

    DeepSea is observed as a one-hot grid, because a network without an embedding cannot read the number of a cell.
    """
    data = configuration(task, task.options)["data"]
    arguments = data.get("env_kwargs") or {}
    arguments = {**arguments, "one_hot": True} if "one_hot" in arguments else arguments
    settings = resolve(EnvSettings(data["env"], **data["rules"], env_kwargs=arguments))
    kind = find_kind(settings.env)
    assert isinstance(kind, GymnasiumKind)
    return gym.wrappers.FlattenObservation(kind.make_single(settings))


def train(library: str, task: Task, options: Mapping[str, Any], seed: int) -> Row:
    """Train an agent of another library on one environment, and play greedy games.

    Args:
        library: class of the agent.
        task: what is learned.
        options: arguments of the class.
        seed: of the agent and of the environment.
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    from benchmarks.learning.sparse_suite.training import summary

    data = configuration(task, task.options)["data"]

    def environment() -> Any:
        envs = DummyVecEnv([lambda: Monitor(make_env(task))])
        return VecFrameStack(envs, data["frame_stack"]) if data["frame_stack"] > 1 else envs

    frames: list[int] = []
    returns: list[float] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    frames.append(self.num_timesteps)
                    returns.append(float(info["episode"]["r"]))
            return True

    began = time.monotonic()
    agent = getattr(importlib.import_module(MODULES[library]), library)
    model = agent("MlpPolicy", environment(), seed=seed, device="cpu", **options)
    model.learn(task.frames, Watch())
    minutes = round((time.monotonic() - began) / 60, 2)
    games = environment()
    games.seed(1000 + seed)
    greedy, _ = evaluate_policy(model, games, data["evaluation"]["games"], return_episode_rewards=True)
    return {**summary(task, frames, returns, greedy), "updates": model._n_updates, "minutes": minutes}
