"""Data of training: the data module, the stream of minibatches that steps environments, and the replay.

What a checkpoint holds of the data, and how a resumed run restores it, is in `state_dict` and `load_state_dict` of
`datamodule.py`, `stream.py` and `replay.py`. The state of the agent is in `bayes_rl/agent/module.py`.
"""

from bayes_rl.data.curriculum import Curriculum, CurriculumSettings
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.data.device_replay import DeviceReplay
from bayes_rl.data.exploration import DrawSchedule, EpsilonSchedule, ExplorationNoise, LinearSchedule
from bayes_rl.data.replay import ReplayBuffer, ReplaySettings
from bayes_rl.data.stream import ReplayStream

__all__ = [
    "Curriculum",
    "CurriculumSettings",
    "DeviceReplay",
    "DrawSchedule",
    "EpsilonSchedule",
    "ExplorationNoise",
    "LinearSchedule",
    "ReplayBuffer",
    "ReplayDataModule",
    "ReplaySettings",
    "ReplayStream",
]
