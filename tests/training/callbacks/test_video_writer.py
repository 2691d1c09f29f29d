"""Video of a trained agent's game."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bayes_rl.agent.module import VariationalActorCritic
from bayes_rl.data.datamodule import ReplayDataModule
from bayes_rl.evaluation.video import PANEL_WIDTH
from bayes_rl.training.callbacks.video_writer import record_game


def test_the_video_of_a_fit_shows_the_uncertainty_beside_the_game(tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="CartPole is drawn by pygame")
    rules: Any = {"frame_skip": 1, "sticky_actions": 0, "max_episode_frames": 5}
    data = ReplayDataModule(env="CartPole-v1", frame_stack=1, rules=rules)
    network: Any = {"encoder": "mlp", "hidden_dim": 8}
    agent = VariationalActorCritic(network=network, **data.agent_arguments())
    with Image.open(record_game(data, agent, 0, tmp_path)) as video:
        assert video.width == 600 + PANEL_WIDTH  # CartPole is 600 pixels wide
        assert video.n_frames == 6
