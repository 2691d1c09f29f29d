"""Environments that are stepped together, by kind.

A new kind of environment implements the interface in `base.py` (`VectorEnvs` and `EnvKind`) and is registered in
`kinds.py`.
"""

from bayes_rl.envs.base import (
    UNSEEDED,
    ActionHistory,
    EnvKind,
    EnvSettings,
    EpisodeRules,
    Step,
    VectorEnvs,
    episode_seed,
)
from bayes_rl.envs.deep_sea import DeepSea
from bayes_rl.envs.kinds import action_names, check_env, find_kind, game_name, make_envs, register_kind
from bayes_rl.envs.monitored import FailedEnvError, MonitoredEnvs
from bayes_rl.envs.observation_stack import ObservationStack
from bayes_rl.envs.shared_spaces import task_name, task_settings

__all__ = [
    "UNSEEDED",
    "ActionHistory",
    "DeepSea",
    "EnvKind",
    "EnvSettings",
    "EpisodeRules",
    "FailedEnvError",
    "MonitoredEnvs",
    "ObservationStack",
    "Step",
    "VectorEnvs",
    "action_names",
    "check_env",
    "episode_seed",
    "find_kind",
    "game_name",
    "make_envs",
    "register_kind",
    "task_name",
    "task_settings",
]
