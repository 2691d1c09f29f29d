"""Replay, stream and data module."""

from bayes_rl.data.curriculum import Curriculum
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.device_replay import DeviceReplay
from bayes_rl.data.exploration import EpsilonSchedule, ExplorationNoise
from bayes_rl.data.replay import ReplayBuffer
from bayes_rl.data.stream import ReplayStream

__all__ = [
    "Curriculum",
    "DeviceReplay",
    "EpsilonSchedule",
    "ExplorationNoise",
    "ReplayBuffer",
    "ReplayDataModule",
    "ReplayStream",
]
